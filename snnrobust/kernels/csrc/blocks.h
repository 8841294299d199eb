/* Blocks of a few kilobytes: how they are read, written, and told the constants of their channels. */
#ifndef SNN_BLOCKS_H
#define SNN_BLOCKS_H

#include "lif.h"

/* Elements of a block, and of what is asked for ahead of its use. */
enum { BLOCK = 512, AHEAD = 4096 };

/* Elements a thread is worth starting for; elements that the nearer caches do not hold. */
enum { WORTH = 32768, FAR = 1 << 18 };

SNN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- moving blocks ------------------------------------------------------------------------------------------- */

/* Block of x as float32: in place where it is that already. */
SNN_INLINE const float *load(const void *from, int64_t at, int64_t n, int bf16, float *restrict room) {
    if (!bf16) return (const float *)from + at;
    const uint16_t *restrict words = (const uint16_t *)from + at;
    SNN_SIMD for (int64_t i = 0; i < n; i++) room[i] = snn_from_bf16(words[i]);
    return room;
}

/* Have a block that is needed soon brought to the second-level cache: the processor's own prefetching stops at every page. */
SNN_INLINE void expect(const void *from, int64_t at, int64_t n, int bf16) {
    const int64_t size = bf16 ? 2 : 4;
    const char *bytes = (const char *)from + at * size;
    for (int64_t i = 0; i < n * size; i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

/* Write a block that the cache need not keep. */
SNN_INLINE void flow(float *restrict to, const float *restrict from, int64_t n) {
    int64_t i = 0;
#if defined(__AVX512F__)
    if (((uintptr_t)to & 63) == 0)
        for (; i + 16 <= n; i += 16) _mm512_stream_ps(to + i, _mm512_loadu_ps(from + i));
#elif defined(__AVX2__)
    if (((uintptr_t)to & 31) == 0)
        for (; i + 8 <= n; i += 8) _mm256_stream_ps(to + i, _mm256_loadu_ps(from + i));
#endif
    if (i < n) memcpy(to + i, from + i, (size_t)(n - i) * sizeof(float));
}

/* Where a block that ends up in `to` is made: there, or in `room` on its way. */
SNN_INLINE float *place(void *to, int64_t at, int bf16, int stream, float *room) {
    return bf16 || stream ? room : (float *)to + at;
}

SNN_INLINE void store(void *to, int64_t at, const float *restrict from, int64_t n, int bf16, int stream) {
    if (bf16) {
        uint16_t *restrict words = (uint16_t *)to + at;
        SNN_SIMD for (int64_t i = 0; i < n; i++) words[i] = snn_to_bf16(from[i]);
    } else if (stream) {
        flow((float *)to + at, from, n);
    }
}

/* ---- constants along channels -------------------------------------------------------------------------------- */

/* Elements from `at` on come in rows: of one channel (inner > 1), or of consecutive channels (inner = 1). A division for each row
 * would take longer than a short row itself, so a walk divides once. */
typedef struct {
    int64_t channel, left; /* of the row at hand */
} Walk;

SNN_INLINE Walk walk(const Lif *k, int64_t at) {
    if (k->inner == 1) {
        const int64_t c = at % k->C;
        return (Walk){c, k->C - c};
    }
    const int64_t row = at / k->inner;
    return (Walk){row % k->C, k->inner - (at - row * k->inner)};
}

/* Go on to the next row, if the one at hand is done. */
SNN_INLINE void next_row(const Lif *k, Walk *w, int64_t part) {
    w->left -= part;
    if (w->left) return;
    if (k->inner == 1) {
        *w = (Walk){0, k->C};
    } else {
        w->channel = w->channel + 1 == k->C ? 0 : w->channel + 1;
        w->left = k->inner;
    }
}

static inline void spread(const Lif *k, const float *values, int64_t at, int64_t n, float *restrict to) {
    Walk w = walk(k, at);
    for (int64_t i = 0, part; i < n; i += part, next_row(k, &w, part)) {
        part = smaller(n - i, w.left);
        if (k->inner == 1)
            memcpy(to + i, values + w.channel, (size_t)part * sizeof(float));
        else
            for (int64_t j = 0; j < part; j++) to[i + j] = values[w.channel];
    }
}

/* y = (x - mean) * scale + bias */
static inline void normalise(const Lif *k, int64_t t, const float *x, int64_t at, int64_t n, float *y) {
    const float *mean = k->mean + t * k->norm_step, *scale = k->scale + t * k->norm_step;
    const float *bias = k->bias ? k->bias + t * k->norm_step : 0;
    Walk w = walk(k, at);
    for (int64_t i = 0, part; i < n; i += part, next_row(k, &w, part)) {
        part = smaller(n - i, w.left);
        const int64_t c = w.channel;
        const float *xi = x + i;
        float *yi = y + i;
        if (k->inner == 1) {
            const float *restrict m = mean + c, *restrict s = scale + c;
            SNN_SIMD for (int64_t j = 0; j < part; j++) yi[j] = (xi[j] - m[j]) * s[j];
            if (bias) {
                const float *restrict b = bias + c;
                SNN_SIMD for (int64_t j = 0; j < part; j++) yi[j] += b[j];
            }
        } else {
            const float m = mean[c], s = scale[c];
            SNN_SIMD for (int64_t j = 0; j < part; j++) yi[j] = (xi[j] - m) * s;
            if (bias) {
                const float b = bias[c];
                SNN_SIMD for (int64_t j = 0; j < part; j++) yi[j] += b;
            }
        }
    }
}

/* grad *= scale, of a block. */
static inline void rescale(const Lif *k, int64_t t, float *restrict grad, int64_t at, int64_t n) {
    const float *scale = k->scale + t * k->norm_step;
    Walk w = walk(k, at);
    for (int64_t i = 0, part; i < n; i += part, next_row(k, &w, part)) {
        part = smaller(n - i, w.left);
        const int64_t c = w.channel;
        if (k->inner == 1) {
            SNN_SIMD for (int64_t j = 0; j < part; j++) grad[i + j] *= scale[c + j];
        } else {
            const float s = scale[c];
            SNN_SIMD for (int64_t j = 0; j < part; j++) grad[i + j] *= s;
        }
    }
}

/* Add grad and grad * (x - mean) of a block to `part`, [2, C]: single precision will do for some ten thousand elements. */
static inline void accumulate(
    const Lif *k, int64_t t, const float *restrict grad, const float *restrict x, int64_t at, int64_t n, float *restrict part_sums
) {
    const float *mean = k->mean + t * k->norm_step;
    float *restrict first = part_sums, *restrict second = part_sums + k->C;
    Walk w = walk(k, at);
    for (int64_t i = 0, part; i < n; i += part, next_row(k, &w, part)) {
        part = smaller(n - i, w.left);
        const int64_t c = w.channel;
        const float *restrict g = grad + i, *restrict xi = x + i;
        if (k->inner == 1) {
            const float *restrict m = mean + c;
            float *restrict f = first + c, *restrict s = second + c;
            SNN_SIMD for (int64_t j = 0; j < part; j++) {
                f[j] += g[j];
                s[j] += g[j] * (xi[j] - m[j]);
            }
        } else {
            const float m = mean[c];
            float f = 0, s = 0;
            _Pragma("omp simd reduction(+:f, s)") for (int64_t j = 0; j < part; j++) {
                f += g[j];
                s += g[j] * (xi[j] - m);
            }
            first[c] += f;
            second[c] += s;
        }
    }
}

/* Move `part_sums` to the sums in double precision of step t. */
static inline void collect(const Lif *k, int64_t t, double *restrict sums, float *restrict part_sums) {
    double *restrict to = sums + 2 * t * k->norm_step;
    for (int64_t c = 0; c < k->C; c++) {
        to[2 * c] += part_sums[c];
        to[2 * c + 1] += part_sums[k->C + c];
    }
    memset(part_sums, 0, (size_t)(2 * k->C) * sizeof(float));
}

#endif
