/* Calls every kernel on random shapes, each buffer a heap block of exactly its size, so that a sanitizer sees any step outside.
 *
 * driver CALLS THREADS. A new kernel is covered by a function that makes one random call of it, and a line in `kernels`.
 */
#include <stdio.h>

#include "driver.h"
#include "driver_draws.h"
#include "events.h"
#include "lif.h"
#include "pooling.h"

#ifndef SNN_ISA
#error "compile with -DSNN_ISA=portable, avx2 or avx512"
#endif

int SNN_NAME(lif_forward)(const Lif *k);
int SNN_NAME(lif_backward)(const Lif *k);
int SNN_NAME(norm_moments)(const Lif *k);
int SNN_NAME(norm_backward)(const Lif *k);
int SNN_NAME(max_pool_forward)(const Shape *, const void *, void *, uint8_t *, int);
int SNN_NAME(avg_pool_forward)(const Shape *, const void *, void *, int);
int SNN_NAME(pool_backward)(const Shape *, const void *, void *, const uint8_t *, int);
int SNN_NAME(bits_pack)(const void *, uint8_t *, int64_t, int, int);
void SNN_NAME(bits_unpack)(const uint8_t *, void *, int64_t, int, int);
int SNN_NAME(event_product)(Events *);
void SNN_NAME(stream_copy)(const float *, float *, int64_t, int, int);
void SNN_NAME(stream_triad)(const float *, const float *, float *, int64_t, int, int);

/* ---- LIF and normalisation ------------------------------------------------------------------------------------ */

/* A shape: mostly small, at times around a block (512) or a tile (16384). */
static Lif shape(int threads) {
    static const int64_t channels[] = {1, 1, 2, 3, 7, 64, 511, 512, 513, 700}, inners[] = {1, 1, 2, 9, 36, 100, 511, 512, 513};
    static const int64_t batches[] = {1, 1, 2, 3, 5}, steps[] = {1, 1, 2, 3, 5, 20, 200};
    Lif k = {0};
    do {
        k.T = one_of(steps, 7);
        k.C = one_of(channels, 10);
        k.inner = one_of(inners, 9);
        k.M = one_of(batches, 5) * k.C * k.inner;
    } while (k.T * k.M > (chance(20) ? 60000 : 400000));
    k.x_step = chance(3) ? k.M : 0;
    k.bf16 = (int)chance(2);
    k.stream = (int)chance(2);
    k.threads = 1 + (int)chance((uint64_t)threads);
    return k;
}

static int64_t sets(const Lif *k) { return k->norm_step ? k->T : 1; }
static int64_t inputs(const Lif *k) { return k->x_step ? k->T * k->M : k->M; }

static void statistics(Lif *k, int biased) {
    k->norm_step = chance(2) && k->T > 1 ? k->C : 0;
    k->mean = reals(sets(k) * k->C, -1, 1);
    k->scale = reals(sets(k) * k->C, 0.2f, 2);
    if (biased) k->bias = reals(sets(k) * k->C, -1, 1);
}

static void room_for_sums(Lif *k) {
    const size_t n = (size_t)(k->threads * sets(k) * k->C * 2);
    k->sums = block(n * sizeof(double));
    memset(k->sums, 0, n * sizeof(double));
}

static Lif neurons(int threads) {
    Lif k = shape(threads);
    k.decay = real(0, 1);
    k.threshold = real(0.3f, 1.5f);
    k.hard = (int)chance(2);
    k.detach = (int)chance(2);
    k.refractory = chance(2) ? 0 : (int)chance(4);
    k.x = values(inputs(&k), k.bf16, -0.5f, 1.5f);
    if (chance(2)) k.decays = reals(k.C, 0, 1);
    if (chance(2)) k.thresholds = reals(k.C, 0.3f, 1.5f);
    if (chance(2)) k.v0 = reals(k.M, -1, 1);
    if (chance(3) == 0) k.quiet0 = reals(k.M, 1, 9);
    if (chance(2)) statistics(&k, (int)chance(2));
    return k;
}

static int lif_forward_once(int threads) {
    Lif k = neurons(threads);
    k.s = room(k.T * k.M, k.bf16);
    if (chance(2)) k.h = room(k.T * k.M, 0);
    if (chance(2)) k.v_last = room(k.M, 0);
    if ((k.refractory || k.quiet0) && chance(2)) k.quiet_last = room(k.M, 0);
    return SNN_NAME(lif_forward)(&k);
}

static int lif_backward_once(int threads) {
    static const float as[] = {1, 0.5f, 3, 3, 0.6f, -1.4f, 0.9f, 0, 0.8f, 0}, bs[] = {3, 0.4f, 0, 0, 0.8f, 0.7f, 1.1f, 0, 0.4f, 0};
    Lif k = neurons(threads);
    k.kind = (int)chance(GIVEN + 1);
    k.a = as[k.kind];
    k.b = bs[k.kind];
    k.grad = values(k.T * k.M, k.bf16, -1, 1);
    if (k.kind == GIVEN) k.slope = reals(k.T * k.M, 0, 1);
    if (chance(2)) k.saved_h = reals(k.T * k.M, -1, 2);
    if (chance(2)) k.grad_v_last = reals(k.M, -1, 1);
    if (chance(2)) k.grad_v0 = room(k.M, 0);
    if (chance(2)) k.grad_decay = room(k.M, 0);
    if (chance(2)) k.grad_threshold = room(k.M, 0);
    if (k.mean && chance(2)) room_for_sums(&k);
    k.unscaled = k.mean && chance(2);
    k.grad_x = room(k.x_step || k.unscaled ? k.T * k.M : k.M, k.bf16);
    return SNN_NAME(lif_backward)(&k);
}

static int norm_moments_once(int threads) {
    Lif k = shape(threads);
    k.x_step = k.M;
    k.x = values(inputs(&k), k.bf16, -2, 2);
    statistics(&k, 0);
    room_for_sums(&k);
    return SNN_NAME(norm_moments)(&k);
}

static int norm_backward_once(int threads) {
    Lif k = shape(threads);
    k.x = values(inputs(&k), k.bf16, -2, 2);
    statistics(&k, 1);
    k.slope = reals(sets(&k) * k.C, -1, 1);
    k.grad = values(k.T * k.M, k.bf16, -1, 1);
    k.grad_x = k.x_step && chance(2) ? (void *)k.grad : room(inputs(&k), k.bf16); /* in place, too */
    return SNN_NAME(norm_backward)(&k);
}

/* ---- pooling -------------------------------------------------------------------------------------------------- */

/* As in pooling.py: in ceil mode the last window may be cut, but starts in the input or the padding before it. */
static int64_t windows(int64_t n, int64_t k, int64_t s, int64_t p, int ceil_mode) {
    const int64_t left = n + 2 * p - k + (ceil_mode ? s - 1 : 0);
    if (left < 0) return 0;
    const int64_t count = left / s + 1;
    return ceil_mode && (count - 1) * s >= n + p ? count - 1 : count;
}

static Shape pool(void) {
    static const int64_t sides[] = {1, 2, 3, 4, 5, 7, 8, 9, 16, 28, 33, 127, 128, 130}, kernels[] = {1, 2, 2, 2, 3, 3, 4, 5, 15};
    static const int64_t channels[] = {1, 2, 3, 16, 17, 64, 2047, 2048, 2500};
    Shape s;
    int64_t size;
    do {
        const int square = (int)chance(2), tiling = (int)chance(2), ceil_mode = (int)chance(2);
        s = (Shape){.planes = (int64_t)chance(5), .H = one_of(sides, 14), .W = chance(30) ? one_of(sides, 14) : 2100 + (int64_t)chance(3000)};
        s.inner = chance(2) ? one_of(channels, 9) : 1;
        if (!chance(10)) s.planes = 20 + (int64_t)chance(50);
        s.kh = one_of(kernels, 9);
        s.kw = square ? s.kh : one_of(kernels, 9);
        s.sh = tiling ? s.kh : 1 + (int64_t)chance(5);
        s.sw = tiling ? s.kw : 1 + (int64_t)chance(5);
        s.ph = chance(2) ? 0 : (int64_t)chance((uint64_t)s.kh / 2 + 1);
        s.pw = chance(2) ? 0 : (int64_t)chance((uint64_t)s.kw / 2 + 1);
        s.OH = windows(s.H, s.kh, s.sh, s.ph, ceil_mode);
        s.OW = windows(s.W, s.kw, s.sw, s.pw, ceil_mode);
        size = s.planes * s.H * s.W * s.inner;
    } while (s.OH < 1 || s.OW < 1 || size > (chance(4) ? 30000 : 400000));
    s.include_pad = (int64_t)chance(2);
    s.bf16 = (int64_t)chance(2);
    return s;
}

static int64_t pool_inputs(const Shape *s) { return s->planes * s->H * s->W * s->inner; }
static int64_t pool_outputs(const Shape *s) { return s->planes * s->OH * s->OW * s->inner; }

static int max_pool_forward_once(int threads) {
    const Shape s = pool();
    const void *x = values(pool_inputs(&s), (int)s.bf16, -1, 1);
    void *y = placed(pool_outputs(&s), s.bf16 ? 2 : 4);
    return SNN_NAME(max_pool_forward)(&s, x, y, block((size_t)pool_outputs(&s)), some(threads));
}

static int avg_pool_forward_once(int threads) {
    const Shape s = pool();
    const void *x = values(pool_inputs(&s), (int)s.bf16, -1, 1);
    return SNN_NAME(avg_pool_forward)(&s, x, placed(pool_outputs(&s), s.bf16 ? 2 : 4), some(threads));
}

static int pool_backward_once(int threads) {
    const Shape s = pool();
    const int64_t outputs = pool_outputs(&s);
    uint8_t *codes = chance(2) ? block((size_t)outputs) : 0;
    if (codes) { /* those of a forward pass: they are addresses */
        const void *x = values(pool_inputs(&s), (int)s.bf16, -1, 1);
        if (SNN_NAME(max_pool_forward)(&s, x, room(outputs, (int)s.bf16), codes, 1)) return 1;
    }
    const void *grad = values(outputs, (int)s.bf16, -1, 1);
    return SNN_NAME(pool_backward)(&s, grad, placed(pool_inputs(&s), s.bf16 ? 2 : 4), codes, some(threads));
}

/* ---- spikes as bits ------------------------------------------------------------------------------------------- */

/* n spikes, at a random rate. */
static void *spikes(int64_t n, int bf16) {
    const uint64_t rarity = 1 + chance(20);
    void *made = placed(n, bf16 ? 2 : 4);
    for (int64_t i = 0; i < n; i++) put(made, i, chance(rarity) ? 0 : 1, bf16);
    return made;
}

static int bits_pack_once(int threads) {
    const int64_t n = length();
    const int bf16 = (int)chance(2), other = n && !chance(4);
    void *x = spikes(n, bf16);
    if (other) put(x, (int64_t)chance((uint64_t)n), chance(2) ? -0.0f : 0.5f, bf16);
    return SNN_NAME(bits_pack)(x, block((size_t)(n + 7) / 8), n, bf16, some(threads)) == other;
}

static int bits_unpack_once(int threads) {
    const int64_t n = length();
    const int bf16 = (int)chance(2);
    const size_t size = (size_t)n * (bf16 ? 2 : 4);
    const void *x = spikes(n, bf16);
    uint8_t *bits = block((size_t)(n + 7) / 8);
    void *back = placed(n, bf16 ? 2 : 4);
    if (!SNN_NAME(bits_pack)(x, bits, n, bf16, 1)) return 1;
    SNN_NAME(bits_unpack)(bits, back, n, bf16, some(threads));
    return memcmp(x, back, size) != 0;
}

/* ---- events --------------------------------------------------------------------------------------------------- */

static void *copied(const float *from, int64_t n, int bf16) {
    void *made = placed(n, bf16 ? 2 : 4);
    for (int64_t i = 0; i < n; i++) put(made, i, from[i], bf16);
    return made;
}

static Events layer(void) {
    static const int64_t channels[] = {1, 2, 3, 15, 16, 17, 63, 64, 65, 100, 130, 700}, sides[] = {1, 1, 2, 3, 7, 15, 16, 17, 33, 65};
    static const int64_t outputs[] = {1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64, 127, 129, 200}, kernels[] = {1, 1, 2, 3, 3, 5};
    Events k = {0};
    double work;
    do {
        const int linear = !chance(3);
        k.N = 1 + (int64_t)chance(chance(5) ? 3 : 70);
        k.Ci = one_of(channels, 12), k.Co = one_of(outputs, 14);
        k.H = linear ? 1 : one_of(sides, 10), k.W = linear ? 1 : one_of(sides, 10);
        k.kh = linear ? 1 : one_of(kernels, 6), k.kw = linear ? 1 : one_of(kernels, 6);
        k.stride_h = 1 + (int64_t)(!chance(3) * chance(4)), k.stride_w = 1 + (int64_t)(!chance(3) * chance(4));
        k.dilation_h = 1 + (int64_t)(!chance(4) * chance(3)), k.dilation_w = 1 + (int64_t)(!chance(4) * chance(3));
        k.pad_h = linear ? 0 : (int64_t)chance(4), k.pad_w = linear ? 0 : (int64_t)chance(4);
        const int64_t high = k.H + 2 * k.pad_h - k.dilation_h * (k.kh - 1), wide = k.W + 2 * k.pad_w - k.dilation_w * (k.kw - 1);
        k.Ho = high < 1 ? 0 : (high - 1) / k.stride_h + 1;
        k.Wo = wide < 1 ? 0 : (wide - 1) / k.stride_w + 1;
        work = (double)(k.N * k.Ho * k.Wo * k.Co) * (double)(k.Ci * k.kh * k.kw);
    } while (!k.Ho || !k.Wo || work > (chance(4) ? 1e6 : 2e7) || k.N * k.Ci * k.H * k.W > 600000);
    return k;
}

static int event_product_once(int threads) {
    Events k = layer();
    const int64_t taps = k.kh * k.kw, weights = k.Co * k.Ci * taps, gap = chance(4) ? 0 : (int64_t)chance(5);
    k.bf16 = (int32_t)chance(2);
    k.nchw = (int32_t)chance(2);
    k.threads = some(threads);
    if (chance(2)) k.x_w = 1, k.x_h = k.W + gap, k.x_c = k.H * k.x_h, k.x_n = k.Ci * k.x_c;
    else k.x_c = 1, k.x_w = k.Ci + gap, k.x_h = k.W * k.x_w, k.x_n = k.H * k.x_h;
    if (k.Ci == 1) k.x_c = 0;
    if (!chance(8)) k.x_n = 0; /* an expanded batch */
    if (chance(2)) k.w_c = taps, k.w_tap = 1;
    else k.w_c = 1, k.w_tap = k.Ci;
    k.w_o = k.Ci * taps;
    const int64_t inputs = 1 + (k.N - 1) * k.x_n + (k.Ci - 1) * k.x_c + (k.H - 1) * k.x_h + (k.W - 1) * k.x_w;
    k.most = k.N * k.Ci * k.H * k.W;
    if (!chance(6)) k.most /= 4;
    k.x = chance(2) ? spikes(inputs, k.bf16) : values(inputs, k.bf16, -1, 1);
    float *w = reals(weights, -1, 1);
    const int endless = !chance(10);
    if (endless) w[chance((uint64_t)weights)] = chance(2) ? INFINITY : NAN;
    k.w = copied(w, weights, k.bf16);
    if (chance(2)) k.bias = copied(reals(k.Co, -1, 1), k.Co, k.bf16);
    k.y = placed(k.N * k.Co * k.Ho * k.Wo, k.bf16 ? 2 : 4);
    const int result = SNN_NAME(event_product)(&k);
    return result == NO_MEMORY || (endless && result == DONE) || (!endless && result == NOT_FINITE);
}

/* ---- the limit ------------------------------------------------------------------------------------------------ */

static int stream_copy_once(int threads) {
    const int64_t n = length();
    const float *x = copied(reals(n, -1, 1), n, 0);
    float *to = placed(n, 4);
    SNN_NAME(stream_copy)(x, to, n, (int)chance(2), some(threads));
    return memcmp(x, to, (size_t)n * 4) != 0;
}

static int stream_triad_once(int threads) {
    const int64_t n = length();
    const float *x = copied(reals(n, -1, 1), n, 0), *y = reals(n, -1, 1);
    SNN_NAME(stream_triad)(x, y, placed(n, 4), n, (int)chance(2), some(threads));
    return 0;
}

/* ---- all of them ---------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*once)(int threads); /* one random call; not 0 where it failed */
} kernels[] = {
    {"lif_forward", lif_forward_once},
    {"lif_backward", lif_backward_once},
    {"norm_moments", norm_moments_once},
    {"norm_backward", norm_backward_once},
    {"philox_uniform", philox_uniform_once},
    {"philox_normal", philox_normal_once},
    {"philox_bernoulli", philox_bernoulli_once},
    {"philox_words", philox_words_once},
    {"philox_box_muller", philox_box_muller_once},
    {"gaussian_noise", gaussian_noise_once},
    {"bit_errors", bit_errors_once},
    {"max_pool_forward", max_pool_forward_once},
    {"avg_pool_forward", avg_pool_forward_once},
    {"pool_backward", pool_backward_once},
    {"bits_pack", bits_pack_once},
    {"bits_unpack", bits_unpack_once},
    {"event_product", event_product_once},
    {"stream_copy", stream_copy_once},
    {"stream_triad", stream_triad_once},
};

int main(int count, char **words) {
    const int calls = count > 1 ? atoi(words[1]) : 100, threads = count > 2 ? atoi(words[2]) : 2;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        for (int call = 0; call < calls; call++) {
            const uint64_t before = state;
            if (kernels[i].once(threads)) {
                fprintf(stderr, "%s failed at call %d, state %llu\n", kernels[i].name, call, (unsigned long long)before);
                return 1;
            }
            give_back();
        }
        printf("%s: %d calls\n", kernels[i].name, calls);
    }
    return 0;
}
