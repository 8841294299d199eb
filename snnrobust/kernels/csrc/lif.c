/* Leaky integrate-and-fire over a whole sequence, forward and backward, each in one pass over memory.
 *
 * Elements are independent, so a tile of them goes through all steps while its state stays in the cache. Within a tile
 * the work of a step is done in blocks of a few kilobytes, by loops that each do one thing: the compiler makes vectors of them.
 * Multiply and add stay apart (-ffp-contract=off), so that the torch fallback rounds alike.
 */
#include "blocks.h"
#include "surrogates.h"

/* Elements of a tile at most, and of what a tile keeps for all steps. */
enum { LONGEST = 16384, HOLD = 131072 };

/* ---- the neuron ---------------------------------------------------------------------------------------------- */

/* Charge, fire, reset of a block. Constants are numbers, or one for each element (`each`). */
SNN_INLINE void charge_fire(
    const float *restrict x, float *restrict v, float *restrict s, float *restrict h, int64_t n, float decay, float threshold,
    const float *restrict decays, const float *restrict thresholds, int each, int hard, int keep
) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float d = each ? decays[i] : decay, th = each ? thresholds[i] : threshold;
        const float hi = v[i] * d + x[i];
        const float si = hi >= th ? 1.0f : 0.0f;
        if (keep) h[i] = hi;
        s[i] = si;
        v[i] = hard ? hi * (1.0f - si) : hi - si * th;
    }
}

/* The same with a refractory period; `quiet` counts the steps since the last spike. */
static void charge_fire_refractory(
    const float *restrict x, float *restrict v, float *restrict quiet, float *restrict s, float *restrict h, int64_t n,
    const float *restrict decays, const float *restrict thresholds, int hard, float refractory
) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float active = quiet[i] > refractory ? 1.0f : 0.0f;
        const float hi = v[i] * decays[i] + x[i] * active;
        const float si = (hi >= thresholds[i] ? 1.0f : 0.0f) * active;
        h[i] = hi;
        s[i] = si;
        quiet[i] = si > 0.0f ? 1.0f : quiet[i] + 1.0f;
        v[i] = hard ? hi * (1.0f - si) : hi - si * thresholds[i];
    }
}

/* Scratch of one thread. */
typedef struct {
    float *v, *quiet, *decays, *thresholds, *carried, *next, *sum, *of_decay, *of_threshold;  /* a tile each */
    float *h, *q;                                                                             /* T tiles each */
    float *in, *spikes, *potential, *slope, *grad, *out;                                      /* a block each */
    float *part_sums;
    void *memory;
} Room;

static int64_t tile_of(const Lif *k, int copies) {
    int64_t n = copies * k->T > 0 ? (int64_t)HOLD / (copies * k->T) : LONGEST;
    n = n / BLOCK * BLOCK;
    n = n < BLOCK ? BLOCK : n > LONGEST ? LONGEST : n;
    return smaller(n, (k->M + 63) / 64 * 64);
}

static int make_room(Room *r, const Lif *k, int64_t tile, int backward, int timed, int each) {
    const int64_t steps = backward && !k->saved_h ? k->T : 0, counted = backward && timed ? k->T : 0;
    const int64_t count = each ? (backward ? 9 : 6) : 3;
    const int64_t floats = count * tile + (steps + counted) * tile + 6 * BLOCK + 2 * (k->sums ? k->C : 0) + 64;
    float *p = r->memory = malloc((size_t)floats * sizeof(float));
    if (!p) return 0;
    p = (float *)(((uintptr_t)p + 63) / 64 * 64);
    /* the first three are all that numbers as constants and a detached soft reset need */
    float **tiles[] = {&r->v, &r->carried, &r->sum, &r->quiet, &r->decays, &r->thresholds, &r->next, &r->of_decay, &r->of_threshold};
    r->quiet = r->decays = r->thresholds = r->next = r->of_decay = r->of_threshold = p;
    for (int64_t i = 0; i < count; i++, p += tile) *tiles[i] = p;
    float **blocks[] = {&r->in, &r->spikes, &r->potential, &r->slope, &r->grad, &r->out};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++, p += BLOCK) *blocks[i] = p;
    r->h = p;
    r->q = p += steps * tile;
    r->part_sums = p + counted * tile;
    if (k->sums) memset(r->part_sums, 0, (size_t)(2 * k->C) * sizeof(float));
    return 1;
}

static void fill(float *to, float value, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] = value;
}

/* State before the first step, and constants, of the tile at i0. */
static void begin_tile(const Lif *k, Room *r, int64_t i0, int64_t n, int each, int timed) {
    if (k->v0) memcpy(r->v, k->v0 + i0, (size_t)n * sizeof(float));
    else memset(r->v, 0, (size_t)n * sizeof(float));
    if (timed) {
        if (k->quiet0) memcpy(r->quiet, k->quiet0 + i0, (size_t)n * sizeof(float));
        else fill(r->quiet, 1000.0f, n);
    }
    if (each) {
        if (k->decays) spread(k, k->decays, i0, n, r->decays);
        else fill(r->decays, k->decay, n);
        if (k->thresholds) spread(k, k->thresholds, i0, n, r->thresholds);
        else fill(r->thresholds, k->threshold, n);
    }
}

/* What the neurons hear at step t: the block at i0 + i of x, normalised. */
SNN_INLINE const float *hear(const Lif *k, Room *r, int64_t t, int64_t at, int64_t n) {
    const float *x = load(k->x, t * k->x_step + at, n, k->bf16, r->in);
    if (!k->mean) return x;
    normalise(k, t, x, at, n, r->in);
    return r->in;
}

static __attribute__((noinline)) void one_block(
    const Lif *k, Room *r, const float *x, int64_t i, int64_t n, float *s, float *h, int each, int timed
) {
    float *v = r->v + i;
    const float *d = r->decays + i, *th = r->thresholds + i;
    if (timed)
        charge_fire_refractory(x, v, r->quiet + i, s, h ? h : r->potential, n, d, th, k->hard, (float)k->refractory);
    else if (each && k->hard)
        charge_fire(x, v, s, h ? h : r->potential, n, 0, 0, d, th, 1, 1, 1);
    else if (each)
        charge_fire(x, v, s, h ? h : r->potential, n, 0, 0, d, th, 1, 0, 1);
    else if (k->hard)
        charge_fire(x, v, s, h ? h : r->potential, n, k->decay, k->threshold, 0, 0, 0, 1, 1);
    else if (h)
        charge_fire(x, v, s, h, n, k->decay, k->threshold, 0, 0, 0, 0, 1);
    else
        charge_fire(x, v, s, 0, n, k->decay, k->threshold, 0, 0, 0, 0, 0);
}

/* NaN never fires, but stays: the last step tells. */
static void tell_nan(const float *restrict h, float *restrict s, int64_t n) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) s[i] = h[i] != h[i] ? NAN : s[i];
}

typedef struct {
    const Lif *k;
    int64_t tile;
    int timed, each, far;
    int *failed;
} Job;

/* The block that lies AHEAD of block i of the tile at i0, at this step or the next. */
SNN_INLINE void expect_input(const Lif *k, int64_t t, int64_t i0, int64_t i, int64_t n, int64_t m) {
    if (i + AHEAD < n) expect(k->x, t * k->x_step + i0 + i + AHEAD, m, k->bf16);
    else if (t + 1 < k->T) expect(k->x, (t + 1) * k->x_step + i0 + i + AHEAD - n, m, k->bf16);
}

static void forward_part(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    const Job *job = context;
    const Lif *k = job->k;
    Room room, *r = &room;
    if (!make_room(r, k, job->tile, 0, job->timed, job->each)) {
        *job->failed = 1;
        return;
    }
    for (int64_t number = begin; number < end; number++) {
        const int64_t i0 = number * job->tile, n = smaller(job->tile, k->M - i0);
        begin_tile(k, r, i0, n, job->each, job->timed);
        for (int64_t t = 0; t < k->T; t++)
            for (int64_t i = 0; i < n; i += BLOCK) {
                const int64_t m = smaller(BLOCK, n - i), at = t * k->M + i0 + i;
                float *s = place(k->s, at, k->bf16, k->stream, r->spikes);
                if (job->far) expect_input(k, t, i0, i, n, m);
                float *h = k->h ? k->h + at : 0;
                one_block(k, r, hear(k, r, t, i0 + i, m), i, m, s, h, job->each, job->timed);
                if (t == k->T - 1) tell_nan(h ? h : k->hard ? r->potential : r->v + i, s, m);
                store(k->s, at, s, m, k->bf16, k->stream);
            }
        if (k->v_last) memcpy(k->v_last + i0, r->v, (size_t)n * sizeof(float));
        if (k->quiet_last) memcpy(k->quiet_last + i0, r->quiet, (size_t)n * sizeof(float));
    }
    free(r->memory);
}

#define SLOPES(KIND)                                                                                                      \
    case KIND:                                                                                                            \
        SNN_SIMD for (int64_t i = 0; i < n; i++) to[i] = derivative(KIND, a, b, h[i] - (each ? thresholds[i] : threshold)); \
        break;

SNN_INLINE void slopes_of(
    int kind, float a, float b, const float *restrict h, const float *restrict thresholds, float threshold, int each,
    int64_t n, float *restrict to
) {
    switch (kind) {
        SLOPES(ATAN)
        SLOPES(TRIANGLE)
        SLOPES(FAST_SIGMOID)
        SLOPES(SIGMOID)
        SLOPES(RECTANGLE)
        SLOPES(GAUSSIAN)
        SLOPES(EXPONENTIAL)
        SLOPES(STRAIGHT_THROUGH)
    }
}

/* ---- backward ------------------------------------------------------------------------------------------------ */

/* grad_h = grad * slope + carried, for the detached soft reset and numbers as constants; `carried` goes on to the step before. */
SNN_INLINE void back_plain(
    int kind, float a, float b, const float *restrict h, const float *restrict grad, float *restrict carried, float *restrict out,
    int64_t n, float decay, float threshold
) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float grad_h = grad[i] * derivative(kind, a, b, h[i] - threshold) + carried[i];
        out[i] = grad_h;
        carried[i] = grad_h * decay;
    }
}

/* The same for a slope that is known and any reset and constants. `through` is what goes through the spike. */
SNN_INLINE void back_any(
    const Lif *k, Room *r, const float *restrict h, const float *restrict quiet, const float *restrict slope,
    const float *restrict grad, int64_t at, int64_t n, float *restrict out, int hard, int detach, int last
) {
    const float *restrict d = r->decays + at, *restrict th = r->thresholds + at;
    float *restrict carried = r->carried + at, *restrict next = r->next + at;
    float *restrict of_decay = r->of_decay + at, *restrict of_threshold = r->of_threshold + at;
    const float refractory = (float)k->refractory;
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float active = quiet ? (quiet[i] > refractory ? 1.0f : 0.0f) : 1.0f;
        const float s = (h[i] >= th[i] ? 1.0f : 0.0f) * active, c = carried[i];
        const float v = hard ? h[i] * (1.0f - s) : h[i] - s * th[i];
        const float through = (detach ? grad[i] : grad[i] - c * (hard ? h[i] : th[i])) * (slope[i] * active);
        const float grad_h = through + (hard ? c * (1.0f - s) : c);
        of_decay[i] += last ? 0.0f : next[i] * v; /* nothing follows the last step, not even 0 * infinity */
        of_threshold[i] -= hard ? through : through + c * s;
        next[i] = grad_h;
        carried[i] = grad_h * d[i];
        out[i] = grad_h * active;
    }
}

static void backward_part(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    const Lif *k = job->k;
    const int timed = job->timed, plain = !job->each, constant = k->x_step == 0;
    Room room, *r = &room;
    double *sums = k->sums ? k->sums + part * (2 * k->C * (k->norm_step ? k->T : 1)) : 0;
    if (!make_room(r, k, job->tile, 1, timed, job->each)) {
        *job->failed = 1;
        return;
    }
    for (int64_t number = begin; number < end; number++) {
        const int64_t i0 = number * job->tile, n = smaller(job->tile, k->M - i0);
        begin_tile(k, r, i0, n, job->each, timed);
        if (!k->saved_h || timed)
            for (int64_t t = 0; t < k->T; t++)
                for (int64_t i = 0; i < n; i += BLOCK) {
                    const int64_t m = smaller(BLOCK, n - i);
                    if (job->far) expect_input(k, t, i0, i, n, m);
                    if (timed) memcpy(r->q + t * job->tile + i, r->quiet + i, (size_t)m * sizeof(float));
                    float *h = k->saved_h ? r->potential : r->h + t * job->tile + i;
                    one_block(k, r, hear(k, r, t, i0 + i, m), i, m, r->spikes, h, job->each, timed);
                }
        if (k->grad_v_last) memcpy(r->carried, k->grad_v_last + i0, (size_t)n * sizeof(float));
        else memset(r->carried, 0, (size_t)n * sizeof(float));
        if (!plain) {
            memset(r->next, 0, (size_t)n * sizeof(float));
            memset(r->of_decay, 0, (size_t)n * sizeof(float));
            memset(r->of_threshold, 0, (size_t)n * sizeof(float));
        }
        if (constant) memset(r->sum, 0, (size_t)n * sizeof(float));
        for (int64_t t = k->T - 1; t >= 0; t--)
            for (int64_t i = 0; i < n; i += BLOCK) {
                const int64_t m = smaller(BLOCK, n - i), at = t * k->M + i0 + i;
                const float *h = k->saved_h ? k->saved_h + at : r->h + t * job->tile + i;
                if (job->far && (i + AHEAD < n || t > 0)) {
                    const int64_t ahead = i + AHEAD < n ? at + AHEAD : at + AHEAD - n - k->M;
                    expect(k->grad, ahead, m, k->bf16);
                    if (k->saved_h) expect(k->saved_h, ahead, m, 0);
                }
                const float *grad = load(k->grad, at, m, k->bf16, r->grad);
                const int scaled = k->mean && !k->unscaled;
                float *out = constant || sums || scaled ? r->out : place(k->grad_x, at, k->bf16, k->stream, r->out);
                if (plain) {
                    float *carried = r->carried + i;
                    const float a = k->a, b = k->b, d = k->decay, th = k->threshold;
                    switch (k->kind) {
                    case ATAN: back_plain(ATAN, a, b, h, grad, carried, out, m, d, th); break;
                    case TRIANGLE: back_plain(TRIANGLE, a, b, h, grad, carried, out, m, d, th); break;
                    case FAST_SIGMOID: back_plain(FAST_SIGMOID, a, b, h, grad, carried, out, m, d, th); break;
                    case SIGMOID: back_plain(SIGMOID, a, b, h, grad, carried, out, m, d, th); break;
                    case RECTANGLE: back_plain(RECTANGLE, a, b, h, grad, carried, out, m, d, th); break;
                    case GAUSSIAN: back_plain(GAUSSIAN, a, b, h, grad, carried, out, m, d, th); break;
                    case EXPONENTIAL: back_plain(EXPONENTIAL, a, b, h, grad, carried, out, m, d, th); break;
                    default: back_plain(STRAIGHT_THROUGH, a, b, h, grad, carried, out, m, d, th); break;
                    }
                } else {
                    const float *quiet = timed ? r->q + t * job->tile + i : 0;
                    const float *slope = k->slope ? k->slope + at : r->slope;
                    if (k->kind == SPIKE_TIME) {
                        SNN_SIMD for (int64_t j = 0; j < m; j++) r->slope[j] = derivative(SPIKE_TIME, k->a, k->b, quiet[j]);
                    } else if (k->kind != GIVEN) {
                        slopes_of(k->kind, k->a, k->b, h, r->thresholds + i, 0, 1, m, r->slope);
                    }
                    const int last = t == k->T - 1;
                    if (k->hard && k->detach) back_any(k, r, h, quiet, slope, grad, i, m, out, 1, 1, last);
                    else if (k->hard) back_any(k, r, h, quiet, slope, grad, i, m, out, 1, 0, last);
                    else if (k->detach) back_any(k, r, h, quiet, slope, grad, i, m, out, 0, 1, last);
                    else back_any(k, r, h, quiet, slope, grad, i, m, out, 0, 0, last);
                }
                if (sums) {
                    const float *x = load(k->x, t * k->x_step + i0 + i, m, k->bf16, r->in);
                    accumulate(k, t, out, x, i0 + i, m, r->part_sums);
                    if (i + m == n) collect(k, t, sums, r->part_sums);
                }
                if (scaled) rescale(k, t, out, i0 + i, m);
                if (constant && !k->unscaled) {
                    float *restrict sum = r->sum + i;
                    SNN_SIMD for (int64_t j = 0; j < m; j++) sum[j] += out[j];
                } else if (out == r->out) {
                    if (k->bf16 || k->stream) store(k->grad_x, at, out, m, k->bf16, k->stream);
                    else memcpy((float *)k->grad_x + at, out, (size_t)m * sizeof(float));
                }
            }
        if (constant && !k->unscaled) {
            if (k->bf16) store(k->grad_x, i0, r->sum, n, 1, 0);
            else memcpy((float *)k->grad_x + i0, r->sum, (size_t)n * sizeof(float));
        }
        if (k->grad_v0) memcpy(k->grad_v0 + i0, r->carried, (size_t)n * sizeof(float));
        if (k->grad_decay) {
            if (k->v0)
                for (int64_t i = 0; i < n; i++) r->of_decay[i] += r->next[i] * k->v0[i0 + i];
            memcpy(k->grad_decay + i0, r->of_decay, (size_t)n * sizeof(float));
        }
        if (k->grad_threshold) memcpy(k->grad_threshold + i0, r->of_threshold, (size_t)n * sizeof(float));
    }
    free(r->memory);
}

/* ---- what is called ------------------------------------------------------------------------------------------ */

static int run(const Lif *k, int backward) {
    int failed = 0;
    const int timed = k->refractory > 0 || k->quiet0 || k->quiet_last || (backward && k->kind == SPIKE_TIME);
    const int special = k->hard || !k->detach || k->grad_decay || k->grad_threshold || k->kind == GIVEN;
    const int each = k->decays || k->thresholds || timed || (backward && special);
    const int copies = backward ? !k->saved_h + timed : 0;
    int64_t tile = tile_of(k, copies);
    while (tile > BLOCK && k->threads > 1 && k->M / tile < 2 * k->threads) tile = (tile / 2 + 63) / 64 * 64;
    Job job = {k, tile, timed, each, k->T * k->M > FAR, &failed};
    const int64_t tiles = (k->M + tile - 1) / tile, each_tile = tile * k->T;
    snn_parallel(tiles, (WORTH + each_tile - 1) / each_tile, k->threads, backward ? backward_part : forward_part, &job);
    return failed;
}

/* Both return 0, or 1 if there is no memory. */
SNN_EXPORT int SNN_NAME(lif_forward)(const Lif *k) { return run(k, 0); }
SNN_EXPORT int SNN_NAME(lif_backward)(const Lif *k) { return run(k, 1); }
