"""docs/neurons.md: its examples run, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import snntorch
import torch
from spikingjelly.activation_based import neuron, surrogate

from snnrobust.neurons import IF, LIF, NEURONS, PLIF, CuBaLIF, Recurrent
from snnrobust.neurons.surrogate import SURROGATES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "neurons.md").read_text()


def _rows(heading):
    """The first cells of the first table under a heading."""
    table = re.search(r"((?:^\|.*\n)+)", PAGE.split(f"\n## {heading}\n", 1)[1], re.MULTILINE)
    return [line.split("|")[1].strip().strip("`") for line in table.group(1).splitlines()[2:]]


def test_the_examples():
    before, names = dict(SURROGATES), {}
    try:
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(block, names)
        assert names["gradient"].abs().sum() > 0
        u = names["torch"].linspace(-2, 2, 4001)
        assert names["torch"].trapezoid(names["Cosine"]().derivative(u), u).item() == pytest.approx(1.0, abs=1e-4)
    finally:
        SURROGATES.clear()
        SURROGATES.update(before)


def test_the_tables_are_complete():
    assert set(_rows("Neurons")) == {*NEURONS, "Recurrent"}
    assert _rows("Surrogates") == list(SURROGATES)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_defaults_of_the_table(name):
    cells = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")).replace(r"\|", "").split("|")
    shown = [float(value) for value in re.findall(r"= ([\d.]+)", cells[3])]
    assert shown == list(vars(SURROGATES[name]()).values())


def _torch(node, states):
    def forward(x):
        state, spikes = [torch.zeros_like(x[0])] * states, []
        for x_t in x:
            s, *state = node(x_t, *state)
            state = state if len(state) == states else [s.double(), *state]  # RLeaky is given its last spikes
            spikes.append(s)
        return torch.stack(spikes).double()

    return forward


def _same_weights():
    theirs = snntorch.RLeaky(0.75, linear_features=3, reset_delay=False).double()
    ours = Recurrent(3, LIF(0.75, detach_reset=False)).double()
    with torch.no_grad():
        theirs.recurrent.bias.zero_()
        theirs.recurrent.weight.copy_(ours.recurrent.weight)
    return _torch(theirs, 2), ours


Node, ParametricNode, jelly_atan = neuron.LIFNode, neuron.ParametricLIFNode, surrogate.ATan(2.0)
TRANSLATIONS = {
    "`LIFNode(tau, decay_input=False, v_reset=None, detach_reset=True)`": lambda: (
        Node(4.0, False, 1.0, None, jelly_atan, True, "m"),
        LIF(1 - 1 / 4),
    ),
    "`LIFNode(tau)`": lambda: (
        Node(4.0, surrogate_function=jelly_atan, step_mode="m"),
        lambda x: LIF(1 - 1 / 4, reset="hard", detach_reset=False)(x / 4),
    ),
    "`ParametricLIFNode(tau)`": lambda: (
        ParametricNode(4.0, surrogate_function=jelly_atan, step_mode="m").double(),
        PLIF(1 - 1 / 4, decay_input=True, reset="hard", detach_reset=False).double(),
    ),
    "`Leaky(beta, reset_delay=False)`": lambda: (
        _torch(snntorch.Leaky(0.75, reset_delay=False), 1),
        LIF(0.75, detach_reset=False),
    ),
    "`Leaky(1.0)`": lambda: (_torch(snntorch.Leaky(1.0), 1), IF()),
    '`Leaky(beta, reset_mechanism="zero")`': lambda: (
        _torch(snntorch.Leaky(0.75, reset_mechanism="zero"), 1),
        LIF(0.75, reset="hard"),
    ),
    "`Synaptic(alpha, beta, reset_delay=False)`": lambda: (
        _torch(snntorch.Synaptic(0.5, 0.75, reset_delay=False), 2),
        CuBaLIF(0.5, 0.75, detach_reset=False),
    ),
    "`RLeaky(beta, linear_features=F, reset_delay=False)`": _same_weights,
}


@pytest.mark.parametrize("row", TRANSLATIONS)
def test_the_translations(row):
    assert row in PAGE
    torch.manual_seed(0)
    theirs, ours = TRANSLATIONS[row]()
    x = torch.empty(20, 4, 3, dtype=torch.float64).uniform_(-0.2, 0.6)
    x = 4 * x if "tau)" in row else x  # scaled by 1 / tau
    weights = torch.randn(20, 4, 3, dtype=torch.float64)
    spikes, gradients = zip(*(_spikes_and_gradient(model, x, weights) for model in (ours, theirs)), strict=True)
    assert 0.03 < spikes[0].mean() < 0.9
    assert torch.equal(*spikes)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def _spikes_and_gradient(model, x, weights):
    x = x.clone().requires_grad_()
    spikes = model(x)
    return spikes, torch.autograd.grad((spikes * weights).sum(), x)[0]


def test_no_translation_is_left_out():
    rows = re.findall(r"^\| .*\|$", PAGE.split("| theirs | ours |\n", 1)[1].split("\n\n")[0], re.MULTILINE)
    assert len(rows) == len(TRANSLATIONS) + 1  # Leaky(beta) has none


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / target).exists(), target
