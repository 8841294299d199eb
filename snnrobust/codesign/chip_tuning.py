"""Tuning of varied chips in one step: signature, cluster, knobs of each layer. Yield before and after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.codesign.accuracy_predictor import AccuracyPredictor, Kind, Standard, accuracy_predictor, ridge
from snnrobust.codesign.knobs import Second, has_leak, limits, sites, with_knobs
from snnrobust.codesign.signature import Values, signature, signatures
from snnrobust.data import Data, batches, take
from snnrobust.data.disjoint import sample_digests
from snnrobust.draws import derive, device_of, draws, evaluating
from snnrobust.hardware.backend import Backend

__all__ = ["ChipTuner", "chip_accuracy", "fit_knobs", "fit_tuner", "tune"]

Indices = NDArray[np.int64]
Method = Literal["clusters", "regression"]


@dataclass(frozen=True, eq=False)
class ChipTuner:
    """What the factory keeps of the fleet that it learnt from; :func:`tune` needs nothing else.

    Attributes:
        images: The compact test, ``[N, *]``.
        knobs: Of each cluster ``[k, L, 2]``, as :func:`~snnrobust.codesign.with_knobs` takes them.
        centres: Of the clusters, in standardized signatures, ``[k, S]``.
        members: Which cluster each training chip is in, int ``[n]``.
        predictor: Accuracy of an untuned chip from its signature.
        accuracies: Of the training chips, untuned, on the validation samples.
        chips, samples: Digests of what it has learnt from, which may not judge it.
    """

    images: Tensor
    method: Method
    second: Second
    pooled: int
    units: Tensor
    standard: Standard
    centres: Values
    members: Indices
    knobs: Tensor
    slope: Values | None
    predictor: AccuracyPredictor
    accuracies: Values
    chips: frozenset[str]
    samples: frozenset[str]

    def signature(self, chip: nn.Module) -> Values:
        """``[S]``.

        Raises:
            ValueError: a chip of another model.
        """
        row = signature(chip, self.images, pooled=self.pooled)
        if row.shape != self.standard.mean.shape or len(sites(chip)) != self.knobs.shape[1]:
            raise ValueError(
                f"the chip gives a signature of {len(row)} numbers from {len(sites(chip))} layers of neurons, the tuner has "
                f"learnt {len(self.standard.mean)} from {self.knobs.shape[1]}: tune chips of the model that it was made for"
            )
        return row

    def cluster(self, row: Values) -> int:
        """The nearest centre to a signature."""
        return int(((self.standard(row) - self.centres) ** 2).sum(1).argmin())

    def knobs_of(self, row: Values) -> Tensor:
        """``[L, 2]`` for a signature."""
        if self.slope is None:
            return self.knobs[self.cluster(row)]
        shift = torch.from_numpy(self.standard(row) @ self.slope)
        return self.knobs[0] + shift.reshape(self.knobs[0].shape).float()


def tune(chip: nn.Module, tuner: ChipTuner, *, below: float | None = None) -> nn.Module:
    """A tuned copy of ``chip``; the chip stays as it is. One pass of the compact test, no labels, no gradient.

    Args:
        below: Leave chips alone whose predicted accuracy is at least this; default: tune every chip.
    """
    row = tuner.signature(chip)
    knobs = tuner.knobs_of(row)
    if below is not None:
        checks.number("below", below, 0.0, 1.0)
        if float(tuner.predictor.predict(row[None])[0]) >= below:
            knobs = torch.zeros_like(knobs)
    return with_knobs(chip, knobs, tuner.second, tuner.units)


def fit_tuner(
    chips: Iterable[nn.Module],
    images: Tensor,
    train: Data,
    validation: Data,
    *,
    clusters: int = 4,
    method: Method = "clusters",
    second: Second = "leak",
    predictor: Kind = "ridge",
    steps: int = 200,
    lr: float = 0.02,
    batch_size: int = 64,
    pooled: int = 64,
    accuracies: Values | None = None,
    seed: int = 0,
) -> ChipTuner:
    r"""Learn from a fleet how a chip is told from its signature and what to do about it.

    1. k-means on standardized signatures;
    2. for each cluster, :func:`fit_knobs` through the chips of the cluster;
    3. :func:`~snnrobust.codesign.accuracy_predictor` on signatures and accuracies.

    ``method="regression"`` is not in the paper: knobs are fitted to every chip by itself, and a ridge regression tells them from
    the signature; there are no clusters.

    Args:
        chips: Of one model, those that will be judged not among them. All are kept in memory meanwhile.
        images: The compact test ``[N, *]``; see :func:`~snnrobust.codesign.compact_images`.
        train: Labelled samples for back-propagation.
        validation: Labelled samples on which accuracies are measured: none that the model was trained with, or the predictor
            learns accuracies of samples known by heart.
        clusters: Their number is not known from the paper.
        second: Second knob of LIF neurons, ``"leak"`` or ``"offset"``.
        accuracies: Of the chips on ``validation``, where they are known already.
        steps, lr, batch_size: Of Adam for each cluster (``"regression"``: for each chip).

    Raises:
        ValueError: fewer chips than clusters, chips of different models, fewer different signatures than clusters, and what
            :func:`~snnrobust.codesign.accuracy_predictor` raises.

    Source: "Learning assisted post-manufacture testing and tuning of RRAM-based DNNs for yield recovery" (DATE 2024), of which
    only the abstract's account was at hand.
    """
    checks.choice("method", method, get_args(Method))
    checks.count("steps", steps)
    fleet = list(chips)
    if len(fleet) < checks.count("clusters", clusters):
        raise ValueError(f"{len(fleet)} chips cannot fill {clusters} clusters: give more chips, or fewer clusters")
    _same_model(fleet)
    rows = signatures(fleet, images, pooled=pooled)
    data = take(train)
    if accuracies is None:
        accuracies = np.array([chip_accuracy(chip, validation) for chip in fleet])
    elif len(accuracies) != len(fleet):
        raise ValueError(f"accuracies must be one for each chip, {len(fleet)} accuracies, got {len(accuracies)}")
    predicts = accuracy_predictor(rows, accuracies, kind=predictor, seed=seed)
    standard = Standard(rows)
    z, units = standard(rows), _units(fleet[:8], images, second)
    options: Any = {"steps": steps, "lr": lr, "batch_size": batch_size, "second": second, "units": units}
    slope: Values | None = None
    centres, members = _k_means(z, clusters if method == "clusters" else 1, seed)
    if method == "regression":
        each = [fit_knobs([chip], data, seed=derive(seed, "chip", i), **options) for i, chip in enumerate(fleet)]
        slope, intercept, _ = ridge(z, torch.stack(each).flatten(1).double().numpy())
        knobs = torch.from_numpy(intercept).float().reshape(1, -1, 2)
    else:
        knobs = torch.stack(
            [
                fit_knobs(
                    [chip for chip, m in zip(fleet, members, strict=True) if m == c], data,
                    seed=derive(seed, "cluster", c), **options,
                )
                for c in range(clusters)
            ]
        )  # fmt: skip
    seen = {digest for samples in (data[0], take(validation)[0], images) for digest in sample_digests(samples)}
    return ChipTuner(
        images, method, second, pooled, units, standard, centres, members, knobs, slope, predicts, accuracies,
        frozenset(chip_digest(chip) for chip in fleet), frozenset(seen),
    )  # fmt: skip


def fit_knobs(
    chips: Sequence[nn.Module],
    data: tuple[Tensor, Tensor],
    *,
    steps: int = 200,
    lr: float = 0.02,
    batch_size: int = 64,
    second: Second = "leak",
    units: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The knobs ``[L, 2]`` with the lowest mean cross-entropy on ``chips``: Adam, one chip and one batch a step, from zero.

    Nothing of the chips is changed. With a single chip it is the optimum for that chip, an upper bound of what any tuner does.
    """
    x, y = data
    if not chips:
        raise ValueError("chips is empty: give at least one chip")
    knobs = torch.zeros(len(sites(chips[0])), 2, requires_grad=True)
    optimizer = torch.optim.Adam([knobs], lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(derive(seed, "knobs"))
    low, high = limits(chips[0], second)
    copies = [with_knobs(chip, knobs, second, units).eval() for chip in chips]  # they share the weights of the chips
    turns: list[int] = []
    for step in range(steps):
        turns = turns or list(rng.permutation(len(chips)))
        copy = copies[turns.pop()]
        index = torch.from_numpy(rng.integers(len(x), size=min(batch_size, len(x))))
        device = device_of(copy)
        with draws(copy, derive(seed, "step", step)):
            loss = F.cross_entropy(copy(x[index].to(device)), y[index].to(device))
        (knobs.grad,) = torch.autograd.grad(loss, [knobs])
        optimizer.step()
        with torch.no_grad():
            knobs[:, 1].clamp_(low, high)  # beyond, a leak would have no gradient to come back by
        schedule.step()
    return knobs.detach()


def chip_accuracy(chip: nn.Module, data: Data, *, key: int = 0, batch_size: int = 500) -> float:
    """Share of samples that the chip gets right, under one draw of what it draws at inference."""
    right = count = 0
    with torch.no_grad(), evaluating(checks.module("chip", chip)):
        for batch in batches(data, batch_size):
            with draws(chip, key, batch.sample_ids):
                logits = checks.call(chip, batch.x.to(device_of(chip)), batch.y)
            right += int((logits.argmax(1).cpu() == batch.y).sum())
            count += len(batch.y)
    return right / count


def chip_digest(chip: nn.Module) -> str:
    """Of all that is stored on a chip and of the keys of its patterns: two chips of one model have different ones."""
    found = hashlib.blake2b(digest_size=16)
    patterns = {
        name: m.chip_key() for name, m in chip.named_modules() if isinstance(m, Backend) and m._chip is not None
    }
    for name, value in sorted({**patterns, **chip.state_dict()}.items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _same_model(fleet: Sequence[nn.Module]) -> None:
    shapes = [[(name, tuple(value.shape)) for name, value in chip.state_dict().items()] for chip in fleet]
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"chip {index} stores other tensors than chip 0: all chips of a tuner must be deployed from one model"
            )


def _units(chips: Sequence[nn.Module], images: Tensor, second: Second) -> Tensor:
    """Root mean square of what each layer of neurons hears: of that the offsets are multiples. A leak has none."""
    squares: dict[str, list[float]] = {name: [] for name in sites(chips[0])}
    for chip in chips:
        hooks = [
            site.register_forward_pre_hook(
                lambda _, args, name=name: squares[name].append(float(args[0].double().square().mean()))
            )
            for name, site in sites(chip).items()
        ]
        try:
            with torch.no_grad(), evaluating(chip), draws(chip, 0):
                chip(images.to(device_of(chip)))
        finally:
            for hook in hooks:
                hook.remove()
    rms = [float(np.mean(found)) ** 0.5 if found else 0.0 for found in squares.values()]
    leaky = [has_leak(site, second) for site in sites(chips[0]).values()]
    return torch.tensor([1.0 if leak or value == 0.0 else value for leak, value in zip(leaky, rms, strict=True)])


def _k_means(z: Values, clusters: int, seed: int) -> tuple[Values, Indices]:
    from sklearn.cluster import KMeans

    different = len(np.unique(z, axis=0))
    if different < clusters:
        raise ValueError(
            f"{len(z)} chips give only {different} different signatures, too few for {clusters} clusters: let the chips vary "
            "more, or take fewer clusters"
        )
    found = KMeans(clusters, n_init=10, random_state=derive(seed, "k-means") % (1 << 32)).fit(z)
    return np.asarray(found.cluster_centers_, dtype=np.float64), np.asarray(found.labels_, dtype=np.int64)
