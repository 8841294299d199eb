"""The examples of CONTRIBUTING.md work as shown."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from snnrobust import hardware
from snnrobust.attacks import ATTACKS
from snnrobust.draws import draws
from snnrobust.encoders import ENCODERS
from snnrobust.hardware import BACKENDS
from snnrobust.learning_rules import RULES

IMPORTS = """
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar
import torch.nn.functional as F
from torch import Tensor, nn
from snnrobust import checks
from snnrobust.attacks.attack import Attack, warn_if_blunt
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.gradient import Backprop, GradientSource
from snnrobust.attacks.losses import cross_entropy
from snnrobust.attacks.threat import Linf
from snnrobust.draws import Stream
from snnrobust.encoders.encoder import Encoder, repeat
from snnrobust.hardware.backend import Array, Backend
from snnrobust.learning_rules import RULES, Lent, Supervised
"""


@pytest.fixture
def shown() -> Iterator[dict[str, Any]]:
    """The classes that the page defines; they register themselves, and are forgotten afterwards."""
    page = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    before = [dict(registry) for registry in (ATTACKS, ENCODERS, BACKENDS, RULES)]
    names: dict[str, Any] = {}
    exec(IMPORTS + "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), names)
    yield names
    for registry, content in zip((ATTACKS, ENCODERS, BACKENDS, RULES), before, strict=True):
        registry.clear()
        registry.update(content)  # type: ignore[arg-type]


def test_they_register_themselves(shown: dict[str, Any]) -> None:
    assert "SmallSteps" in ATTACKS
    assert "Noisy" in ENCODERS
    assert "DeadCells" in BACKENDS
    assert "LabelSmoothing" in RULES


def test_the_attack_raises_the_loss_within_the_budget(shown: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 3)), torch.rand(20, 6), torch.randint(0, 3, (20,))
    x_adv = shown["SmallSteps"](shown["Linf"](0.1))(model, x, y)
    with torch.no_grad():
        before, after = (float(nn.functional.cross_entropy(model(inputs), y)) for inputs in (x, x_adv))
    assert after > before + 0.05


def test_the_encoder_streams_what_it_encodes(shown: dict[str, Any]) -> None:
    encoder, x = shown["Noisy"](4, 0.5), torch.rand(3, 5)
    with draws(encoder, 1):
        whole = encoder(x)
        assert torch.equal(torch.stack([encoder.step(x, t) for t in range(4)]), whole)
    assert float((whole - x).std()) == pytest.approx(0.5, rel=0.3)


def test_the_backend_kills_its_share(shown: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Linear(100, 100, bias=False))
    chip = hardware.deploy(model, shown["DeadCells"](0.3), seed=1)
    stored = chip(torch.eye(100))
    assert float((stored == 0).float().mean()) == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 10_000) ** 0.5)
    assert torch.equal(stored, hardware.deploy(model, shown["DeadCells"](0.3), seed=1)(torch.eye(100)))


def test_the_rule_learns_what_it_says(shown: dict[str, Any]) -> None:
    """With labels smoothed by half of all classes, the best answer to a single class is no certainty."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 2)), torch.rand(40, 6), torch.zeros(40, dtype=torch.int64)
    shown["LabelSmoothing"](smoothing=0.5, lr=0.1).fit(model, (x, y), epochs=200, progress=False)
    assert (model(x).softmax(1)[:, 0] - 0.75).abs().max() < 0.05
