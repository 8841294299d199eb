/* Random calls of what draws. */
#ifndef DRIVER_DRAWS_H
#define DRIVER_DRAWS_H

#include "driver.h"

void SNN_NAME(philox_uniform)(const int64_t *, const int64_t *, int64_t, int64_t, int64_t, int64_t, float *, int);
void SNN_NAME(philox_normal)(const int64_t *, const int64_t *, int64_t, int64_t, int64_t, int64_t, float *, int);
void SNN_NAME(philox_bernoulli)(
    const int64_t *, const int64_t *, int64_t, int64_t, int64_t, int64_t, const void *, void *, int, int, int);
void SNN_NAME(philox_words)(const uint32_t *, const uint32_t *, int64_t, uint32_t *);
void SNN_NAME(philox_box_muller)(const uint32_t *, int64_t, float *);
void SNN_NAME(gaussian_noise)(
    const int64_t *, const int64_t *, int64_t, int64_t, int64_t, int64_t, int64_t, const float *, float *, float, float, int, int,
    int, int);
void SNN_NAME(bit_errors)(const int64_t *, int64_t, const double *, int, const uint8_t *, uint8_t *, int64_t, int);

typedef struct {
    int64_t *key, *ids, T, B, elements, start;
} Draw;

static Draw draw(void) {
    Draw d = {block(16), 0, (int64_t)chance(4), (int64_t)chance(4), length(), (int64_t)chance(UINT64_C(1) << 32)};
    if (!chance(30)) d.T = 3, d.elements = (1 << 19) + 64 * (int64_t)chance(9); /* past the cache */
    d.ids = block((size_t)d.B * 8);
    for (int64_t i = 0; i < d.B; i++) d.ids[i] = (int64_t)(chance(UINT64_C(1) << 53) << 11);
    for (int i = 0; i < 2; i++) d.key[i] = (int64_t)chance(UINT64_C(1) << 32);
    return d;
}

static int philox_uniform_once(int threads) {
    const Draw d = draw();
    float *out = placed(d.T * d.B * d.elements, 4);
    SNN_NAME(philox_uniform)(d.key, d.ids, d.T, d.B, d.elements, d.start, out, some(threads));
    return 0;
}

static int philox_normal_once(int threads) {
    const Draw d = draw();
    float *out = placed(d.T * d.B * d.elements, 4);
    SNN_NAME(philox_normal)(d.key, d.ids, d.T, d.B, d.elements, d.start, out, some(threads));
    return 0;
}

static int philox_bernoulli_once(int threads) {
    const Draw d = draw();
    const int bf16 = (int)chance(2);
    const void *p = values(d.B * d.elements, bf16, -1, 1);
    void *out = placed(d.T * d.B * d.elements, bf16 ? 2 : 4);
    SNN_NAME(philox_bernoulli)(d.key, d.ids, d.T, d.B, d.elements, d.start, p, out, bf16, (int)chance(2), some(threads));
    return 0;
}

static uint32_t *random_words(int64_t n) {
    uint32_t *made = block((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) made[i] = chance(50) ? (uint32_t)chance(UINT64_C(1) << 32) : chance(2) ? 0 : UINT32_MAX;
    return made;
}

static int philox_words_once(int threads) {
    const int64_t n = (int64_t)chance(600);
    (void)threads;
    SNN_NAME(philox_words)(random_words(2), random_words(4), n, block((size_t)n * 16));
    return 0;
}

static int philox_box_muller_once(int threads) {
    const int64_t pairs = (int64_t)chance(600);
    (void)threads;
    SNN_NAME(philox_box_muller)(random_words(2 * pairs), pairs, placed(2 * pairs, 4));
    return 0;
}

static int gaussian_noise_once(int threads) {
    const Draw d = draw();
    const int64_t times = (int64_t)chance(4), n = times * d.T * d.B * d.elements;
    const float *y = values(n, 0, -2, 2);
    float *out = placed(n, 4);
    const int both = (int)chance(2), scales = (int)chance(2);
    SNN_NAME(gaussian_noise)(
        d.key, d.ids, times, d.T, d.B, d.elements, d.start, y, out, real(0, 1), real(0, 1), both, scales, !scales || both,
        some(threads));
    return 0;
}

static int bit_errors_once(int threads) {
    const Draw d = draw();
    const int bits = (int)chance(9);
    double *inverse = block((size_t)bits * sizeof(double));
    for (int i = 0; i < bits; i++) {
        static const double rates[] = {0.5, 0.1, 0.01, 1e-3, 1e-5, 1e-12};
        inverse[i] = !chance(4) ? 1 : !chance(6) ? -0.0 : !chance(6) ? -1e300 : 1 / log1p(-rates[chance(6)]);
    }
    uint8_t *words = block((size_t)d.elements);
    for (int64_t i = 0; i < d.elements; i++) words[i] = (uint8_t)chance(256);
    const int64_t id = (int64_t)(chance(UINT64_C(1) << 53) << 10);
    SNN_NAME(bit_errors)(
        d.key, id, inverse, bits, chance(3) ? words : 0, block((size_t)d.elements), d.elements, some(threads));
    return 0;
}

#endif
