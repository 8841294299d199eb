"""Is the model a function of its input? Only then an attack on it means anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.draws import derive, draws, is_stochastic
from snnrobust.evaluation.diagnosis.check import Check
from snnrobust.statistics import paired_greater

__all__ = ["hygiene", "restored"]

SAMPLES = 32
TOLERATED = 0.1
"""Share of samples whose logits may differ from batch to batch: in float32 sums of another order turn a spike now and then."""
TURNED = 3
"""Samples that may differ in any case, where few are compared."""
ROUNDING = 1e-4
"""Of the spread of the logits: what is less is rounding."""
DRAWS = 24
NOISE_CHANGES = 0.1
"""Relative change of the noise's size, with the rest of the batch, that counts."""
NOISE_LEVEL = 0.01

REPEATS = "the same input gives the same logits"
LEFT = "a forward pass leaves nothing behind"
BATCH = "a sample's logits do not depend on its batch"
_TOPIC = "hygiene"


def hygiene(model: nn.Module, x: Tensor, y: Tensor, seed: int, high: float = 1.0) -> list[Check]:
    """Of ``model`` in eval mode; ``high`` is the upper edge of the inputs' box."""
    x, y = x[:SAMPLES], y[:SAMPLES]
    call = _caller(model, x, y, derive(seed, "hygiene"))
    before, modes, inputs = _state(model, kept=True), {n: m.training for n, m in model.named_modules()}, x.clone()
    repeats = _repeats(model, x, call, high)
    left = _left(model, x, seed, before, modes, inputs)
    if repeats.status == "failed":
        return [repeats, left]  # then nothing can be said about batches
    return [repeats, left, _batch(model, x, y, call, seed, high)]


Call = Callable[..., Tensor]


def _caller(model: nn.Module, x: Tensor, y: Tensor, key: int) -> Call:
    def call(inputs: Tensor, index: Tensor | None = None, fork: object = 0) -> Tensor:
        index = torch.arange(len(inputs)) if index is None else index
        with torch.no_grad(), draws(model, derive(key, fork), index):
            return checks.call(model, inputs, y[index % len(y)]).detach().clone()

    return call


def _differ(a: Tensor, b: Tensor) -> float:
    """Share of samples whose logits differ by more than rounding."""
    spread = float(a.double().std()) if a.numel() > 1 else 0.0
    return float(((a - b).abs().amax(1) > ROUNDING * spread).double().mean())


def _repeats(model: nn.Module, x: Tensor, call: Call, high: float) -> Check:
    meaning = "The model remembers earlier calls: what an attack sees is not what will be judged."
    remedy = "Reset the state at the start of each forward pass, as interop.wrap does; let no module keep a generator of its own."
    before = _state(model)
    first = call(x)  # what is wrong already here is an error: of the inputs, the labels, the dtype, or NaN
    try:
        call(torch.full_like(x, high))  # another batch, which a memory would remember
        again = call(x)
    except ValueError as error:
        return Check(REPEATS, "failed", f"unreset state? {error}", meaning, remedy, evidence="proof", topic=_TOPIC)
    share = _differ(first, again)
    if share == 0.0:
        return Check(
            REPEATS, "passed", f"for all of {len(x)} samples, under the same draws", meaning, remedy, topic=_TOPIC
        )
    generators = [name for name, g in _generators(model).items() if name in before and not torch.equal(g, before[name])]
    holders = [name for name in _changed(before, _state(model)) if name not in generators]
    if generators:
        where = f"{', '.join(generators[:3])}: a random generator of its own, which no key reaches"
    else:
        where = "unreset state" + (f" in {', '.join(holders[:3])}" if holders else "")
    found = f"{where}: a second call under the same draws differs for {share:.0%} of {len(x)} samples"
    return Check(REPEATS, "failed", found, meaning, remedy, evidence="proof", topic=_TOPIC)


def _left(
    model: nn.Module, x: Tensor, seed: int, before: dict[str, Tensor], modes: dict[str, bool], inputs: Tensor
) -> Check:
    """``before``, ``modes`` and ``inputs`` are from before the first call."""
    meaning = (
        "A forward pass changes the model, its modes, its input or torch's generator: each query meets another victim."
    )
    remedy = "Put what is updated (running statistics, thresholds, counters) out of the forward pass in eval mode."
    after_generators = []
    for key in (1, 2):
        with torch.no_grad(), draws(model, derive(seed, key), torch.arange(len(x))):
            try:
                model(x)
            except RuntimeError:
                continue
            after_generators.append(torch.default_generator.get_state())
    changed = _changed(before, _state(model, kept=True))
    parameters = {name for name, _ in model.named_parameters()}
    found = []
    for kind, names in (
        ("mutated parameters", [n for n in changed if n in parameters]),
        ("mutated buffers", [n for n in changed if n not in parameters]),
        ("modes", [n or "the model" for n, m in model.named_modules() if modes.get(n, m.training) != m.training]),
    ):
        if names:
            found.append(f"{kind}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    if not torch.equal(inputs, x):
        found.append("its input, in place")
        x.copy_(inputs)
    if len(after_generators) == 2 and torch.equal(*after_generators):
        found.append("torch's generator, which it reseeds: its noise is the same each time, for the attacker too")
    if found:
        return Check(LEFT, "failed", "; ".join(found), meaning, remedy, evidence="proof", topic=_TOPIC)
    return Check(
        LEFT, "passed", "parameters, buffers, modes, generators and the input stay", meaning, remedy, topic=_TOPIC
    )


def _batch(model: nn.Module, x: Tensor, y: Tensor, call: Call, seed: int, high: float) -> Check:
    meaning = "A sample's logits depend on which others are in its batch: what an attack finds in one batch is not so in another."
    remedy = "No statistics over the batch in eval mode, and draws keyed by sample (draws.Stochastic)."
    index = torch.arange(len(x))
    order = torch.arange(len(x) - 1, -1, -1)
    half = max(len(x) // 2, 1)
    crowd = x.clone()
    crowd[half:] = high
    whole = call(x)
    try:
        shares = {
            "in another order": _differ(whole[order], call(x[order], index[order])),
            "in a smaller batch": _differ(whole[:half], call(x[:half], index[:half])),
            "alone": _differ(whole[:half], torch.cat([call(x[i : i + 1], index[i : i + 1]) for i in range(half)])),
            "beside other inputs": _differ(whole[:half], call(crowd)[:half]),
        }
    except ValueError as error:
        return Check(BATCH, "failed", f"unreset state? {error}", meaning, remedy, evidence="proof", topic=_TOPIC)
    where, worst = max(shares.items(), key=lambda item: item[1])
    if worst <= max(TOLERATED, min(TURNED, half - 1) / half):
        return Check(BATCH, "passed", f"{len(x)} samples in four batches", meaning, remedy, topic=_TOPIC)
    found = f"other logits for {worst:.0%} of samples {where}, under the same draws"
    if not is_stochastic(model, x[:16]):
        return Check(
            BATCH, "failed", f"batch-dependent outputs: {found}", meaning, remedy, evidence="proof", topic=_TOPIC
        )
    change, p = _noise_change(call, x, crowd, half)
    if p < NOISE_LEVEL:
        found = f"batch-dependent noise: beside other inputs its size changes by {change:+.0%} (p = {p:.2g}); {found}"
        return Check(BATCH, "failed", found, meaning, remedy, evidence="proof", topic=_TOPIC)
    twins = call(x[:1].expand(8, *x.shape[1:]).contiguous())
    if _differ(twins, twins[:1].expand_as(twins)) == 0.0:
        found = f"batch-dependent noise: all samples of a batch share one draw; {found}"
        return Check(BATCH, "failed", found, meaning, remedy, topic=_TOPIC)
    return Check(
        BATCH, "passed",
        f"in distribution (p = {p:.2g}); the draws themselves are torch's and not keyed by sample, so results depend on the "
        "batch size by chance",
        meaning, remedy, topic=_TOPIC,
    )  # fmt: skip


def _noise_change(call: Call, x: Tensor, crowd: Tensor, half: int) -> tuple[float, float]:
    """By how much the noise of the first half changes with the second, and the p-value of no change in size or centre."""
    logits = [
        torch.stack([call(inputs, fork=(k, i))[:half].double() for i in range(DRAWS)])
        for k, inputs in enumerate((x, crowd))
    ]
    sizes = [z.std(0).mean(1).clamp(min=1e-12) for z in logits]
    ratio = (sizes[1] / sizes[0]).log().cpu().numpy()
    zero = np.zeros_like(ratio)
    p = [1.0]
    if abs(np.expm1(ratio.mean())) > NOISE_CHANGES:
        p.append(2 * min(paired_greater(ratio, zero), paired_greater(zero, ratio)))
    moved = (logits[0].mean(0) - logits[1].mean(0)).square().sum(1)
    chance = sum(z.var(0) for z in logits).sum(1) / DRAWS  # type: ignore[union-attr]
    p.append(paired_greater(moved.cpu().numpy(), 3 * chance.cpu().numpy()))
    return float(np.expm1(ratio.mean())), min(1.0, len(p) * min(p))


def _state(model: nn.Module, kept: bool = False) -> dict[str, Tensor]:
    """Copies of all tensors that modules hold, and of their generators' states; ``kept``: of parameters and buffers alone."""
    found = {n: p.detach().clone() for n, p in (*model.named_parameters(), *model.named_buffers()) if _is_data(p)}
    if not kept:
        for path, m in model.named_modules():
            for name, value in vars(m).items():
                for i, tensor in enumerate(value if isinstance(value, tuple | list) else (value,)):
                    if isinstance(tensor, Tensor) and not name.startswith("_key") and name != "_sample_ids":
                        found[f"{path}.{name}" + (f"[{i}]" if isinstance(value, tuple | list) else "")] = (
                            tensor.detach().clone()
                        )
        found |= _generators(model)
    return found


def _is_data(p: Tensor) -> bool:
    return not torch.nn.parameter.is_lazy(p)


def _generators(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": value.get_state()
        for path, m in model.named_modules()
        for name, value in vars(m).items()
        if isinstance(value, torch.Generator)
    }


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names that hold another value than before, or that have come or gone."""
    return [
        n.lstrip(".") for n in {**before, **after}
        if n not in before or n not in after or before[n].shape != after[n].shape
        or not torch.equal(before[n].nan_to_num(), after[n].nan_to_num())
    ]  # fmt: skip


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Afterwards parameters and buffers have the values that they had, whatever the model's forward passes did."""
    before = _state(model, kept=True)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in (*model.named_parameters(), *model.named_buffers()):
                if name in before and value.shape == before[name].shape and not torch.equal(value, before[name]):
                    value.copy_(before[name])
