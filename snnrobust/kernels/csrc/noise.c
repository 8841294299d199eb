/* Gaussian noise on products: y (1 + m xi) + a xi', drawn and applied in one pass.
 *
 * The draws are those of philox_normal. Noise of one kind takes a draw an element, of both kinds two that lie side by side. What
 * is drawn once for several products (for all steps of an inference, for all inputs of a chip) is applied to each of them while
 * it is in the cache. Floating-point operations are those of snnrobust/kernels/noise.py in the same order.
 */
#include "philox.h"

enum { WORTH = 32768 }; /* elements a thread is worth starting for */

typedef struct {
    Keys keys;
    const int64_t *ids;
    int64_t B, elements, start, tiles, size; /* tiles of a row, elements of a tile */
    int64_t times, stride;                   /* how often a row is applied, and how far apart */
    const float *y;
    float *out;
    float m, a;
    int both, scales, adds;
} Noise;

static void apply(const Noise *k, const float *restrict z, const float *restrict y, float *restrict out, int64_t n) {
    const float m = k->m, a = k->a;
    if (k->both) {
        if (k->scales && k->adds) {
            SNN_SIMD for (int64_t i = 0; i < n; i++) out[i] = y[i] * (1.0f + m * z[2 * i]) + a * z[2 * i + 1];
        } else {
            SNN_SIMD for (int64_t i = 0; i < n; i++) out[i] = y[i] * (1.0f + m * z[2 * i]);
        }
    } else if (k->scales) {
        SNN_SIMD for (int64_t i = 0; i < n; i++) out[i] = y[i] * (1.0f + m * z[i]);
    } else {
        SNN_SIMD for (int64_t i = 0; i < n; i++) out[i] = y[i] + a * z[i];
    }
}

static void part_of(void *context, int64_t begin, int64_t end, int part) {
    const Noise *k = context;
    uint32_t w[TILE] __attribute__((aligned(64)));
    float z[TILE] __attribute__((aligned(64)));
    const int kinds = 1 + k->both;
    (void)part;
    for (int64_t i = begin; i < end; i++) {
        const int64_t row = i / k->tiles, at = i % k->tiles * k->size, b = row % k->B;
        const int64_t left = k->elements - at, n = left < k->size ? left : k->size;
        const int64_t drawn = (kinds * n + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
        const uint64_t id = (uint64_t)k->ids[b];
        words(&k->keys, (uint32_t)(kinds * at / 4), (uint32_t)(k->start + row / k->B), (uint32_t)id, (uint32_t)(id >> 32), drawn, w);
        normals(w, drawn / 2, z);
        for (int64_t r = 0; r < k->times; r++) {
            const int64_t to = row * k->elements + at + r * k->stride;
            apply(k, z, k->y + to, k->out + to, n);
        }
    }
}

/* key [2], ids [B]; y and out [times, T, B, elements], where all of the first axis meet the same noise. `both`: draws are of both
 * kinds, whichever are applied. */
SNN_EXPORT void SNN_NAME(gaussian_noise)(
    const int64_t *key, const int64_t *ids, int64_t times, int64_t T, int64_t B, int64_t elements, int64_t start, const float *y,
    float *out, float m, float a, int both, int scales, int adds, int threads) {
    if (times <= 0 || T <= 0 || B <= 0 || elements <= 0) return;
    Noise k = {.ids = ids, .B = B, .elements = elements, .start = start, .times = times, .stride = T * B * elements};
    k.keys = schedule((uint32_t)key[0], (uint32_t)key[1]);
    k.y = y, k.out = out, k.m = m, k.a = a, k.both = both, k.scales = scales, k.adds = adds;
    k.size = both ? TILE / 2 : TILE;
    k.tiles = (elements + k.size - 1) / k.size;
    const int64_t each = (elements < k.size ? elements : k.size) * times;
    snn_parallel(T * B * k.tiles, (WORTH + each - 1) / each, threads, part_of, &k);
}
