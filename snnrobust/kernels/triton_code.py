# Triton compiles this source: mypy does not know its types, nor ruff what of Python it lacks.
# mypy: ignore-errors
# ruff: noqa: RUF005, SIM108
"""Triton programs for a GPU: LIF over a whole sequence, and Philox. Import it only where Triton is installed.

One program takes a block of elements through all steps, with their state in registers. For the spikes of the CPU multiply and add
have to stay apart: launch with ``enable_fp_fusion=False``. Offsets are 64 bits wide.
"""

import triton
import triton.language as tl


@triton.jit
def charge_fire(x, v, quiet, decay, threshold, refractory, HARD: tl.constexpr, REFRACTORY: tl.constexpr):
    """Charge, fire, reset: h, s, v and the steps since the last spike."""
    if REFRACTORY:
        active = (quiet > refractory).to(tl.float32)
        h = v * decay + x * active
        s = (h >= threshold).to(tl.float32) * active
    else:
        h = v * decay + x
        s = (h >= threshold).to(tl.float32)
    quiet = tl.where(s > 0.0, 1.0, quiet + 1.0)
    if HARD:
        v = h * (1.0 - s)
    else:
        v = h - s * threshold
    return h, s, v, quiet


@triton.jit
def slope_of(u, a, b, KIND: tl.constexpr):
    """The surrogate's derivative at u: numbers and constants as in csrc/lif.h and ``derivative`` of csrc/lif.c."""
    size = tl.abs(u)
    if KIND == 0:
        e = u * b
        slope = a / (e * e + 1.0)
    elif KIND == 1:
        e = a - size * b
        slope = tl.where(e < 0.0, 0.0, e)
    elif KIND == 2:
        e = size * a + 1.0
        slope = 1.0 / (e * e)
    elif KIND == 3:
        e = tl.exp(-a * size)
        slope = a * e / ((1.0 + e) * (1.0 + e))
    elif KIND == 4:
        slope = tl.where(size <= a, b, 0.0)
    elif KIND == 5:
        slope = tl.exp(u * u * a) * b
    elif KIND == 6:
        slope = tl.exp(-b * size) * a
    elif KIND == 7:
        slope = tl.where(size >= 0.0, 1.0, 1.0)
    else:
        slope = tl.exp(-b * u) * a
    return slope


@triton.jit
def one_back(
    grad, h, quiet, slope, carried, ahead, of_decay, of_threshold, decay, threshold, refractory,
    HARD: tl.constexpr, DETACH: tl.constexpr, REFRACTORY: tl.constexpr,
):  # fmt: skip
    """One step back. ``carried`` is what reaches v of this step, ``ahead`` the gradient of h one step later."""
    s = (h >= threshold).to(tl.float32)
    active = 1.0
    if REFRACTORY:
        active = (quiet > refractory).to(tl.float32)
        s = s * active
        slope = slope * active
    if HARD:
        v = h * (1.0 - s)
        feedback = h
    else:
        v = h - s * threshold
        feedback = threshold
    if DETACH:
        through = grad * slope
    else:
        through = (grad - carried * feedback) * slope
    if HARD:
        grad_h = through + carried * (1.0 - s)
        of_threshold = of_threshold - through
    else:
        grad_h = through + carried
        of_threshold = of_threshold - (through + carried * s)
    of_decay = of_decay + ahead * v
    return grad_h * active, grad_h * decay, grad_h, of_decay, of_threshold


@triton.jit
def constant(number, values, channel, inside):
    """A number, or the value of each element's channel."""
    if values is None:
        result = number
    else:
        result = tl.load(values + channel, mask=inside, other=0.0)
    return result


@triton.jit
def start(pointer, offsets, inside, rest):
    """What is there, or ``rest`` for each element."""
    if pointer is None:
        result = tl.where(inside, rest, rest)
    else:
        result = tl.load(pointer + offsets, mask=inside, other=0.0)
    return result


@triton.jit
def keep(pointer, offsets, inside, value):
    if pointer is not None:
        tl.store(pointer + offsets, value, mask=inside)


@triton.jit
def lif_forward(
    x, s, h, quiets, v0, quiet0, v_last, quiet_last, decays, thresholds, decay, threshold, refractory,
    T, M, x_step, C, inner, HARD: tl.constexpr, REFRACTORY: tl.constexpr, SHOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outputs that are None are not written; ``quiets`` takes the steps since the last spike before each step."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < M
    decay = constant(decay, decays, offsets // inner % C, inside)
    threshold = constant(threshold, thresholds, offsets // inner % C, inside)
    v = start(v0, offsets, inside, 0.0)
    quiet = start(quiet0, offsets, inside, 1000.0)
    x_next = tl.load(x + offsets, mask=inside, other=0.0)
    for t in range(T):
        x_t = x_next.to(tl.float32)
        if not SHOWN:  # asked for before this step's stores, so that the memory is never idle
            x_next = tl.load(x + (t + 1) * tl.cast(x_step, tl.int64) + offsets, mask=inside & (t + 1 < T), other=0.0)
        at = t * tl.cast(M, tl.int64) + offsets
        keep(quiets, at, inside, quiet)
        h_t, s_t, v, quiet = charge_fire(x_t, v, quiet, decay, threshold, refractory, HARD, REFRACTORY)
        keep(h, at, inside, h_t)
        if s is not None:
            s_t = tl.where(
                (t == T - 1) & (h_t != h_t), float("nan"), s_t
            )  # NaN never fires, but stays: the last step tells
            tl.store(s + at, s_t, mask=inside)
    keep(v_last, offsets, inside, v)
    keep(quiet_last, offsets, inside, quiet)


@triton.jit
def lif_backward(
    grad, h, quiets, slope, grad_v, v0, grad_x, grad_v0, grad_decay, grad_threshold, decays, thresholds,
    decay, threshold, refractory, a, b, T, M, C, inner,
    HARD: tl.constexpr, DETACH: tl.constexpr, REFRACTORY: tl.constexpr, KIND: tl.constexpr, SHOWN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """From potentials, for any T."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < M
    decay = constant(decay, decays, offsets // inner % C, inside)
    threshold = constant(threshold, thresholds, offsets // inner % C, inside)
    carried = start(grad_v, offsets, inside, 0.0)
    ahead = start(None, offsets, inside, 0.0)
    total, of_decay, of_threshold, quiet = ahead, ahead, ahead, ahead
    last = (T - 1) * tl.cast(M, tl.int64) + offsets
    grad_next = tl.load(grad + last, mask=inside, other=0.0)
    h_next = tl.load(h + last, mask=inside, other=0.0)
    for i in range(T):
        t = T - 1 - i
        at = t * tl.cast(M, tl.int64) + offsets
        grad_t, h_t = grad_next.to(tl.float32), h_next
        more = inside & (t > 0)
        grad_next = tl.load(grad + (at - M), mask=more, other=0.0)
        h_next = tl.load(h + (at - M), mask=more, other=0.0)
        if quiets is not None:
            quiet = tl.load(quiets + at, mask=inside, other=0.0)
        if KIND == 9:
            slope_t = tl.load(slope + at, mask=inside, other=0.0)
        elif KIND == 8:
            slope_t = slope_of(quiet, a, b, KIND)
        else:
            slope_t = slope_of(h_t - threshold, a, b, KIND)
        out, carried, ahead, of_decay, of_threshold = one_back(
            grad_t, h_t, quiet, slope_t, carried, ahead, of_decay, of_threshold, decay, threshold, refractory,
            HARD, DETACH, REFRACTORY,
        )  # fmt: skip
        if SHOWN:
            total += out
        else:
            tl.store(grad_x + at, out, mask=inside)
    if SHOWN:
        tl.store(grad_x + offsets, total, mask=inside)
    keep(grad_v0, offsets, inside, carried)
    keep(grad_decay, offsets, inside, of_decay + ahead * start(v0, offsets, inside, 0.0))
    keep(grad_threshold, offsets, inside, of_threshold)


@triton.jit
def lif_backward_again(
    grad, x, v0, quiet0, grad_v, grad_x, grad_v0, grad_decay, grad_threshold, decays, thresholds,
    decay, threshold, refractory, a, b, M, x_step, C, inner,
    T: tl.constexpr, HARD: tl.constexpr, DETACH: tl.constexpr, REFRACTORY: tl.constexpr, KIND: tl.constexpr,
    SHOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From the input: potentials are computed again and stay in registers, so T is short and unrolled."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < M
    decay = constant(decay, decays, offsets // inner % C, inside)
    threshold = constant(threshold, thresholds, offsets // inner % C, inside)
    v = start(v0, offsets, inside, 0.0)
    quiet = start(quiet0, offsets, inside, 1000.0)
    potentials, silences = (), ()
    for t in tl.static_range(T):
        x_t = tl.load(x + t * tl.cast(x_step, tl.int64) + offsets, mask=inside, other=0.0).to(tl.float32)
        silences = silences + (quiet,)
        h_t, _, v, quiet = charge_fire(x_t, v, quiet, decay, threshold, refractory, HARD, REFRACTORY)
        potentials = potentials + (h_t,)
    carried = start(grad_v, offsets, inside, 0.0)
    ahead = start(None, offsets, inside, 0.0)
    total, of_decay, of_threshold = ahead, ahead, ahead
    for i in tl.static_range(T):
        at = (T - 1 - i) * tl.cast(M, tl.int64) + offsets
        grad_t = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
        h_t = potentials[T - 1 - i]
        quiet = silences[T - 1 - i]
        if KIND == 8:
            slope_t = slope_of(quiet, a, b, KIND)
        else:
            slope_t = slope_of(h_t - threshold, a, b, KIND)
        out, carried, ahead, of_decay, of_threshold = one_back(
            grad_t, h_t, quiet, slope_t, carried, ahead, of_decay, of_threshold, decay, threshold, refractory,
            HARD, DETACH, REFRACTORY,
        )  # fmt: skip
        if SHOWN:
            total += out
        else:
            tl.store(grad_x + at, out, mask=inside)
    if SHOWN:
        tl.store(grad_x + offsets, total, mask=inside)
    keep(grad_v0, offsets, inside, carried)
    keep(grad_decay, offsets, inside, of_decay + ahead * start(v0, offsets, inside, 0.0))
    keep(grad_threshold, offsets, inside, of_threshold)


@triton.jit
def draw(key, ids, x, out, B, elements, first, BLOCK: tl.constexpr):
    """Row (t, b) of uniforms in [0, 1), or, where ``x`` is given, of spikes u < x. Four elements have one counter."""
    row = tl.program_id(0)
    t, b = row // B, row % B
    block = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.load(ids + b)
    c0 = block.to(tl.uint32)
    c1 = c0 * 0 + (first + t).to(tl.uint32)
    c2 = c0 * 0 + (sample & 0xFFFFFFFF).to(tl.uint32)
    c3 = c0 * 0 + ((sample >> 32) & 0xFFFFFFFF).to(tl.uint32)
    k0, k1 = tl.load(key).to(tl.uint32), tl.load(key + 1).to(tl.uint32)
    for _ in tl.static_range(10):
        before0, before2 = c0, c2
        c0 = tl.umulhi(before2, 0xCD9E8D57) ^ c1 ^ k0
        c2 = tl.umulhi(before0, 0xD2511F53) ^ c3 ^ k1
        c1, c3 = before2 * 0xCD9E8D57, before0 * 0xD2511F53
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    words = tl.reshape(tl.join(tl.join(c0, c2), tl.join(c1, c3)), (BLOCK, 4))  # c0 c1 c2 c3 of each block, in order
    u = (words >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2**-24
    element = block.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]
    inside = element < elements
    if x is not None:
        value = tl.load(x + tl.cast(b, tl.int64) * elements + element, mask=inside, other=0.0)
        u = (u < value).to(tl.float32)
    tl.store(out + tl.cast(row, tl.int64) * elements + element, u, mask=inside)
