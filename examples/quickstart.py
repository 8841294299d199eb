"""Train a spiking network on handwritten digits, attack it on ideal and on imperfect hardware, and judge it."""

from torch import nn

from snnrobust import SpikingClassifier, attacks, data, evaluation, hardware, learning_rules, quantization
from snnrobust.encoders import Poisson
from snnrobust.layers import BNTT, MeanOutput, Sequential
from snnrobust.neurons import LIF

T, test = 8, data.load("digits", "test")
network = Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False), BNTT(16, T), LIF(decay=0.95), nn.Flatten(), nn.Linear(1024, 10)
)
model = SpikingClassifier(Poisson(T), network, MeanOutput())
learning_rules.BPTT(lr=3e-3).fit(model, data.load("digits", "train"), epochs=5)
pgd = attacks.PGD(attacks.Linf("0.1"), steps=20, gradient=attacks.EOT(4))
chip = hardware.deploy(model, hardware.Chain(quantization.Uniform(bits=4), hardware.GaussianNoise(0.2)), seed=7)
report = evaluation.evaluate(model, test, {"PGD-20": pgd}, chips={"ideal": None, "noisy 4-bit": chip}, n=100)
print(report.summary(), evaluation.diagnose(model, test, pgd.threat, n=100), report.save("runs/mine"), sep="\n")
