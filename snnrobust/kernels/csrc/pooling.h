/* Max and average pooling in 2d, of [N, C, H, W] stored as planes (inner = 1) or with channels last (inner = C).
 *
 * Max pooling keeps one byte for each output: which value of its window won, in scan order. As in torch the first of equal values
 * wins, and a NaN wins over what came before it. Sums are taken in scan order too, so that averages have torch's bits.
 * Where windows tile the input (stride = kernel, no padding), the backward pass writes each input once.
 */
#ifndef SNN_POOLING_H
#define SNN_POOLING_H

#include "common.h"

enum { CHUNK = 2048 };

typedef struct {
    int64_t planes, inner, H, W, OH, OW, kh, kw, sh, sw, ph, pw, include_pad, bf16;
} Shape;

typedef struct {
    const Shape *s;
    const void *in;
    void *out;
    uint8_t *codes;
    int *failed;
} Job;

SNN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SNN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

SNN_INLINE float get(const void *from, int64_t i, int bf16) {
    return bf16 ? snn_from_bf16(((const uint16_t *)from)[i]) : ((const float *)from)[i];
}

SNN_INLINE void put(void *to, int64_t i, float value, int bf16) {
    if (bf16) ((uint16_t *)to)[i] = snn_to_bf16(value);
    else ((float *)to)[i] = value;
}

/* A value that came from bfloat16 needs no rounding on its way back. */
SNN_INLINE void put_exact(void *to, int64_t i, float value, int bf16) {
    if (!bf16) {
        ((float *)to)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t *)to)[i] = (uint16_t)(bits >> 16);
}

/* Windows along one axis that have value `offset` inside of the input: lo to hi. */
SNN_INLINE void inside(int64_t size, int64_t count, int64_t stride, int64_t offset, int64_t *lo, int64_t *hi) {
    *lo = offset < 0 ? (-offset + stride - 1) / stride : 0;
    *hi = size - 1 - offset < 0 ? 0 : smaller(count, (size - 1 - offset) / stride + 1);
}

SNN_INLINE int tiles(const Shape *s) { return s->kh == s->sh && s->kw == s->sw && s->ph == 0 && s->pw == 0; }

/* What the sum of window (oh, ow) is divided by. */
SNN_INLINE float divisor(const Shape *s, int64_t oh, int64_t ow) {
    int64_t h0 = oh * s->sh - s->ph, w0 = ow * s->sw - s->pw;
    int64_t h1 = smaller(h0 + s->kh, s->H + s->ph), w1 = smaller(w0 + s->kw, s->W + s->pw);
    if (s->include_pad) return (float)((h1 - h0) * (w1 - w0));
    return (float)((smaller(h1, s->H) - larger(h0, 0)) * (smaller(w1, s->W) - larger(w0, 0)));
}

/* Division by a power of two is a multiplication. */
SNN_INLINE int is_power(float d) { return ((int64_t)d & ((int64_t)d - 1)) == 0; }

/* Whether all windows have kh * kw values in bounds or counted. */
SNN_INLINE int even(const Shape *s) {
    return (s->include_pad || (s->ph == 0 && s->pw == 0)) && (s->OH - 1) * s->sh + s->kh <= s->H + 2 * s->ph &&
           (s->OW - 1) * s->sw + s->kw <= s->W + 2 * s->pw;
}

/* 2 x 2 windows that tile planes of short rows: the rows are copied behind one another, upper ones of windows apart from lower
 * ones, so that the loops over them are long enough for vectors. */
enum { SHORT = 128, BLOCK = 1024 };

SNN_INLINE int is_short(const Shape *s) {
    return tiles(s) && s->kh == 2 && s->kw == 2 && s->inner == 1 && s->H == 2 * s->OH && s->W == 2 * s->OW && s->W <= SHORT;
}

typedef union {
    float floats[2 * BLOCK];
    uint16_t words[2 * BLOCK];
    char bytes[2 * BLOCK * sizeof(float)];
} Lines;

/* Room for a chunk of a row of outputs: CHUNK values, or all channels of one. */
SNN_INLINE int64_t chunk_of(const Shape *s) { return larger(1, CHUNK / s->inner); }

typedef struct {
    float *values;
    int32_t *codes;
} Room;

SNN_INLINE int make_room(Room *r, const Shape *s) {
    const size_t n = (size_t)(chunk_of(s) * s->inner);
    r->values = malloc(n * 8);
    r->codes = (int32_t *)(r->values + n);
    return r->values != 0;
}

#define ROWS(NAME, CALL)                                                                                       \
    static void NAME(void *context, int64_t begin, int64_t end, int part) {                                     \
        const Job *job = context;                                                                               \
        const Shape *s = job->s;                                                                                \
        (void)part;                                                                                             \
        Room room;                                                                                              \
        if (!make_room(&room, s)) {                                                                             \
            *job->failed = 1;                                                                                   \
            return;                                                                                             \
        }                                                                                                       \
        for (int64_t i = begin; i < end; i++)                                                                   \
            for (int64_t w0 = 0, step = chunk_of(s); w0 < s->OW; w0 += step) {                                  \
                const int64_t plane = i / s->OH, oh = i % s->OH, w1 = smaller(s->OW, w0 + step);                \
                if (s->bf16) CALL(job, plane, oh, w0, w1, room.values, room.codes, 1);                          \
                else CALL(job, plane, oh, w0, w1, room.values, room.codes, 0);                                  \
            }                                                                                                   \
        free(room.values);                                                                                      \
    }

#define BY_TYPE(NAME, CALL)                                                       \
    static void NAME(void *context, int64_t begin, int64_t end, int part) {        \
        const Job *job = context;                                                  \
        (void)part;                                                                \
        if (job->s->bf16) CALL(job, begin, end, 1);                                \
        else CALL(job, begin, end, 0);                                             \
    }

/* Elements a thread is worth starting for. */
enum { WORTH = 32768 };

SNN_INLINE void rows(snn_body body, Job *job, int threads) {
    const Shape *s = job->s;
    const int64_t row = s->OW * s->inner * s->kh * s->kw;
    snn_parallel(s->planes * s->OH, row ? WORTH / row + 1 : 1, threads, body, job);
}

#endif
