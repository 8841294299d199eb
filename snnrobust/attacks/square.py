"""The Square attack."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snnrobust import checks
from snnrobust.attacks.attack import Attack
from snnrobust.attacks.goal import Goal
from snnrobust.attacks.l1 import L1
from snnrobust.attacks.l2 import L2
from snnrobust.attacks.projection import norm, room, settle, slack, stretch
from snnrobust.attacks.random_search import Budget, search
from snnrobust.attacks.threat import Linf, ThreatModel, uniform_like
from snnrobust.draws import Stream

__all__ = ["Square", "share"]

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
_WINDOW = 4  # draws that place a window: row, column, and where there are frames, one or all and which


def share(p_init: float, spent: float) -> float:
    """The share of an image that a square covers when ``spent`` of the queries are: halved at the published moments."""
    return p_init / 2.0 ** sum(int(10_000 * spent) > moment for moment in _HALVED_AFTER)


@dataclass(frozen=True)
class Square(Attack):
    r"""Random search with squares that shrink; asks for logits only, never for a gradient.

    .. math:: x_{i+1} = x' \text{ if } m(x') \ge m(x_i), \text{ else } x_i

    with m the margin of the goal. In Linf :math:`x'` is :math:`x_i` with a random square moved to :math:`x \pm \epsilon`, one
    sign a channel. In L2 and L1 a random window gives its share of the budget to another, which gets a pattern of two opposite
    bumps. Frames ``[B, T, C, H, W]``: the square changes at one random step or, as often, at all. Inputs of rank 2 are images of
    one row, of rank 3 images without channels.

    Args:
        threat: ``Linf``, ``L2`` or ``L1``.
        queries: Forward passes per sample, the first point included.
        p_init: Share of the image that the first squares cover.
        draws: Forward passes that a margin is averaged over, where the model has randomness. Held and proposed input are both
            measured each time, so there are ``queries / (2 * draws)`` proposals.
        early_stop: Samples that have reached the goal stop, as published; a model with randomness is asked again, beyond
            ``queries``, and has to be wrong ``selection_draws`` times. None: only for models without randomness.
        selection_draws: See above.

    Whether the model is random is tried with two passes of at most eight samples, beyond ``queries``.

    Source: Andriushchenko, Croce, Flammarion and Hein 2020, "Square Attack: a query-efficient black-box adversarial attack via
    random search". Ours: equal margins are accepted, a square that would change nothing takes the other signs, what the box cuts
    off goes to elements that are free, and L1.
    """

    threat: ThreatModel
    queries: int = 5000
    p_init: float = 0.8
    draws: int = 1
    early_stop: bool | None = None
    selection_draws: int = 32

    def __post_init__(self) -> None:
        self._budget()
        checks.number("p_init", self.p_init, 0.0, 1.0, exclusive_low=True)
        if isinstance(self.threat, ThreatModel) and not isinstance(self.threat, Linf | L2 | L1):
            raise ValueError(f"Square works in Linf, L2 and L1, got a threat in {self.threat.name}")

    def _budget(self) -> Budget:
        return Budget(self.queries, self.draws, self.early_stop, self.selection_draws)

    def perturb(self, model: nn.Module, x: Tensor, goal: Goal, stream: Stream) -> Tensor:
        start = self._stripes(x, stream) if isinstance(self.threat, Linf) else self._tiles(x, stream)
        return self.search(model, x, start, goal, stream)

    def search(self, model: nn.Module, x: Tensor, start: Tensor, goal: Goal, stream: Stream) -> Tensor:
        """The search alone, from legal inputs ``start`` on."""
        channels = _images(x).shape[2]
        about: tuple[Tensor, ...]
        if isinstance(self.threat, Linf):
            about, propose, numbers = self.threat.box(x), self._square, _WINDOW + channels
        else:
            eps = torch.as_tensor(self._ball.budget(x), dtype=torch.float64, device=x.device)
            about = x, eps.expand(len(x), *[1] * (x.dim() - 1))
            propose, numbers = self._bumps, 2 * _WINDOW + 1 + channels
        return search(model, start, goal, stream, self._budget(), propose, numbers, about)

    # --- Linf -------------------------------------------------------------------------------------------------

    def _stripes(self, x: Tensor, stream: Stream) -> Tensor:
        """Vertical stripes of random sign, one a column and channel, the same in all frames."""
        assert isinstance(self.threat, Linf)
        images = _images(x)
        up = uniform_like(images[:, :1, :, :1], stream.fork("start")) < 0.5
        low, high = (_images(edge) for edge in self.threat.box(x))
        return torch.where(up, high, low).view_as(x)

    def _square(self, about: tuple[Tensor, ...], held: Tensor, u: Tensor, spent: float) -> Tensor:
        low, high = (_images(edge) for edge in about)
        here = _images(held)
        window = _window(u[:, :_WINDOW], here, share(self.p_init, spent), 1).mask(here)
        up = (u[:, _WINDOW:] < 0.5)[:, None, :, None, None]
        proposed = torch.where(window, torch.where(up, high, low), here)
        idle = (proposed == here).flatten(1).all(1).view(-1, 1, 1, 1, 1)
        other = torch.where(window, torch.where(up, low, high), here)
        return torch.where(idle, other, proposed).view_as(held)

    # --- L2 and L1 --------------------------------------------------------------------------------------------

    def _tiles(self, x: Tensor, stream: Stream) -> Tensor:
        """A grid of patterns with random signs, five a side where there is room."""
        images = _images(x)
        height, width = images.shape[-2:]
        h, w = max(height // 5, 1), max(width // 5, 1)
        rows, columns = height // h, width // w
        signs = torch.where(
            uniform_like(images[:, 0, :, :rows, :columns].double(), stream.fork("start")) < 0.5, -1.0, 1.0
        )
        tiles = signs.repeat_interleave(h, -2).repeat_interleave(w, -1) * pattern(h, w, self._p).to(x.device).tile(
            rows, columns
        )
        top, left = (height - rows * h) // 2, (width - columns * w) // 2
        change = torch.zeros(images.shape, dtype=torch.float64, device=x.device)
        change[..., top : top + rows * h, left : left + columns * w] = tiles[:, None]
        return self._spend(x, change.view_as(x), self._ball.budget(x.flatten(1)))

    def _bumps(self, about: tuple[Tensor, ...], held: Tensor, u: Tensor, spent: float) -> Tensor:
        x, eps = about
        p = self._p
        images = _images(held)
        change = (images.double() - _images(x).double()).flatten(1, 2)  # [B, N, H, W]
        size = share(self.p_init, spent)
        place = _window(u[:, :_WINDOW], images, size, 3, odd=True)
        giver = _window(u[:, _WINDOW : 2 * _WINDOW], images, size, 3, odd=True)
        frames = place.frames(images.shape[1])
        chosen = frames[:, :, None].expand(*images.shape[:3]).flatten(1)[:, :, None, None]
        signs = torch.where(u[:, 2 * _WINDOW + 1 :] < 0.5, -1.0, 1.0)[:, None].expand(*images.shape[:3]).flatten(1)
        bump = pattern(place.height, place.width, p).to(x.device)
        if place.height == place.width:
            bump = torch.where((u[:, 2 * _WINDOW] < 0.5)[:, None, None], bump, bump.T)
        else:
            bump = bump.expand(len(x), -1, -1)
        both = chosen & (place.area(images) | giver.area(images))
        mass = _power(torch.where(both, change, 0.0), p)  # [B, N, 1, 1]
        unused = (eps.view(-1, 1, 1, 1) ** p - _power(change, p).sum(1, keepdim=True)).clamp(min=0)
        mass = (mass + unused / chosen.sum(1, keepdim=True)) ** (1 / p)
        at = place.index(change)
        old = change[at]
        new = _unit(signs[:, :, None, None] * bump[:, None] + _unit(old, p), p) * mass
        moved = torch.where(chosen & giver.area(images), 0.0, change)
        moved[at] = torch.where(chosen, new, old)
        return self._spend(x, moved.view_as(x), eps.flatten(1))

    def _spend(self, x: Tensor, change: Tensor, eps: Tensor | float) -> Tensor:
        """As far along ``change`` as the budget reaches: what meets the box stops, the rest goes on."""
        flat, exact = change.flatten(1), x.double().flatten(1)
        size = stretch(
            flat.abs(), room(flat, exact, self.threat.bounds), eps * (1 - 2 * slack(exact.shape[1])), self._p
        )
        return settle(x, x, torch.copysign(size, flat).view_as(x), self.threat.bounds)

    @property
    def _ball(self) -> L2 | L1:
        assert isinstance(self.threat, L2 | L1)
        return self.threat

    @property
    def _p(self) -> int:
        return 2 if isinstance(self.threat, L2) else 1


def pattern(height: int, width: int, p: int) -> Tensor:
    r"""Two bumps of opposite sign, side by side, float64 ``[height, width]`` of p-norm 1: :math:`\eta` of the paper.

    A bump falls with the Chebyshev distance k from its centre as :math:`\sum_{j \ge k} (j + 1)^{-2}`. A single row is split
    along its length, a single element is a bump.
    """
    if height == 1:
        parts = [_bump(1, width // 2), -_bump(1, width - width // 2)] if width > 1 else [_bump(1, 1)]
        both = torch.cat(parts, 1)
    else:
        both = torch.cat([_bump(height // 2, width), -_bump(height - height // 2, width)], 0)
    return both / norm(both.view(1, -1), p)


def _bump(height: int, width: int) -> Tensor:
    rows, columns = (torch.arange(n) - n // 2 for n in (height, width))
    distance = torch.maximum(rows.abs()[:, None], columns.abs())
    rings = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64).pow(-2)
    bump = rings.flip(0).cumsum(0).flip(0)[distance]
    return bump / norm(bump.view(1, -1), 2)


def _power(change: Tensor, p: int) -> Tensor:
    return change.abs().pow(p).sum((-2, -1), keepdim=True)


def _unit(window: Tensor, p: int) -> Tensor:
    length = _power(window, p) ** (1 / p)
    return window / torch.where(length > 0, length, 1.0)


def _images(x: Tensor) -> Tensor:
    """``[B, T, C, H, W]``."""
    if x.dim() < 4:
        return x.reshape(len(x), 1, 1, *([1] if x.dim() == 2 else []), *x.shape[1:])
    return x.reshape(len(x), -1, *x.shape[-3:])


@dataclass(frozen=True)
class _Window:
    top: Tensor  # int64 [B]
    left: Tensor
    height: int
    width: int
    frame: Tensor  # int64 [B], -1 for all

    def area(self, images: Tensor) -> Tensor:
        """bool ``[B, 1, H, W]``."""
        rows, columns = (torch.arange(n, device=images.device) for n in images.shape[-2:])
        inside = (rows >= self.top[:, None]) & (rows < self.top[:, None] + self.height)
        across = (columns >= self.left[:, None]) & (columns < self.left[:, None] + self.width)
        return (inside[:, :, None] & across[:, None])[:, None]

    def frames(self, count: int) -> Tensor:
        """bool ``[B, T]``."""
        return (self.frame[:, None] < 0) | (torch.arange(count, device=self.frame.device) == self.frame[:, None])

    def mask(self, images: Tensor) -> Tensor:
        """bool ``[B, T, 1, H, W]``."""
        return self.frames(images.shape[1])[:, :, None, None, None] & self.area(images)[:, None]

    def index(self, change: Tensor) -> tuple[Tensor, ...]:
        """Of the window in ``[B, N, H, W]``."""
        batch, channels = (torch.arange(n, device=change.device) for n in change.shape[:2])
        rows = self.top[:, None] + torch.arange(self.height, device=change.device)
        columns = self.left[:, None] + torch.arange(self.width, device=change.device)
        return batch[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None, :]


def _window(u: Tensor, images: Tensor, share: float, least: int, odd: bool = False) -> _Window:
    """A square of ``share`` of the image at a random place; a rectangle where a side of the image is shorter."""
    frames, (height, width) = images.shape[1], images.shape[-2:]
    side = max(round(math.sqrt(share * height * width)), least)
    side += odd and side % 2 == 0
    h, w = min(side, height), min(side, width)
    if h < side:
        w = min(max(round(share * height * width / h), least, w), width)
    elif w < side:
        h = min(max(round(share * height * width / w), least, h), height)
    top, left = (u[:, 0] * (height - h + 1)).long(), (u[:, 1] * (width - w + 1)).long()
    frame = torch.where(u[:, 2] < 0.5, -1, (u[:, 3] * frames).long())
    return _Window(top, left, h, w, frame)
