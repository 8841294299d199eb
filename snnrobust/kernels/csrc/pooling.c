/* Max and average pooling in 2d, of [N, C, H, W] stored as planes (inner = 1) or with channels last (inner = C).
 *
 * Max pooling keeps one byte for each output: which value of its window won, in scan order. As in torch the first of equal values
 * wins, and a NaN wins over what came before it. Sums are taken in scan order too, so that averages have torch's bits.
 * Where windows tile the input (stride = kernel, no padding), the backward pass writes each input once.
 */
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

/* ---- max pooling, forward ------------------------------------------------------------------------------------ */

/* Selections, which become vectors; branches would not. */
#define CHALLENGE(value, number)            \
    code = value > top ? number : code;      \
    top = value > top ? value : top;         \
    code = value != value ? number : code;   \
    top = value != value ? value : top;

/* One value of each window of a row of planes against the best so far. */
SNN_INLINE void compare_row(
    const void *row, int64_t from, int64_t stride, int64_t n, int32_t number, float *restrict best, int32_t *restrict codes, int bf16
) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float value = get(row, from + i * stride, bf16);
        float top = best[i];
        int32_t code = codes[i];
        CHALLENGE(value, number)
        best[i] = top;
        codes[i] = code;
    }
}

/* 2 x 2 windows that do not overlap; `a` and `b` are the two rows, neighbours lie `inner` apart. */
SNN_INLINE void two_by_two(
    const void *a, const void *b, int64_t at_a, int64_t at_b, int64_t step, int64_t apart, int64_t n, float *restrict best,
    int32_t *restrict codes, int bf16
) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float v0 = get(a, at_a + i * step, bf16), v1 = get(a, at_a + i * step + apart, bf16);
        const float v2 = get(b, at_b + i * step, bf16), v3 = get(b, at_b + i * step + apart, bf16);
        float top = v0;
        int32_t code = 0;
        CHALLENGE(v1, 1)
        CHALLENGE(v2, 2)
        CHALLENGE(v3, 3)
        best[i] = top;
        codes[i] = code;
    }
}

/* Outputs w0 to w1 of row oh. */
SNN_INLINE void max_chunk(
    const Job *job, int64_t plane, int64_t oh, int64_t w0, int64_t w1, float *best, int32_t *codes, int bf16
) {
    const Shape *s = job->s;
    const int64_t C = s->inner, n = w1 - w0, base = plane * s->H * s->W * C;
    const int64_t h0 = oh * s->sh - s->ph, out = ((plane * s->OH + oh) * s->OW + w0) * C;
    if (tiles(s) && s->kh == 2 && s->kw == 2 && h0 + 2 <= s->H && 2 * w1 <= s->W) {
        const int64_t at = base + (h0 * s->W + 2 * w0) * C, below = at + s->W * C;
        if (C == 1) two_by_two(job->in, job->in, at, below, 2, 1, n, best, codes, bf16);
        else
            for (int64_t i = 0; i < n; i++)
                two_by_two(job->in, job->in, at + 2 * i * C, below + 2 * i * C, 1, C, C, best + i * C, codes + i * C, bf16);
    } else {
        for (int64_t i = 0; i < n; i++) {
            const int32_t first = (int32_t)(larger(-h0, 0) * s->kw + larger(-((w0 + i) * s->sw - s->pw), 0));
            for (int64_t c = 0; c < C; c++) best[i * C + c] = -INFINITY, codes[i * C + c] = first;
        }
        for (int64_t r = larger(-h0, 0); r < smaller(s->kh, s->H - h0); r++)
            for (int64_t q = 0; q < s->kw; q++) {
                int64_t lo, hi;
                inside(s->W, s->OW, s->sw, q - s->pw, &lo, &hi);
                lo = larger(lo, w0), hi = smaller(hi, w1);
                const int64_t at = base + ((h0 + r) * s->W + q - s->pw) * C;
                const int32_t code = (int32_t)(r * s->kw + q);
                if (C == 1) {
                    const int64_t from = at + lo * s->sw;
                    if (s->sw == 1) compare_row(job->in, from, 1, hi - lo, code, best + lo - w0, codes + lo - w0, bf16);
                    else if (s->sw == 2) compare_row(job->in, from, 2, hi - lo, code, best + lo - w0, codes + lo - w0, bf16);
                    else compare_row(job->in, from, s->sw, hi - lo, code, best + lo - w0, codes + lo - w0, bf16);
                } else {
                    for (int64_t w = lo; w < hi; w++)
                        compare_row(job->in, at + w * s->sw * C, 1, C, code, best + (w - w0) * C, codes + (w - w0) * C, bf16);
                }
            }
    }
    const int64_t total = n * C;
    SNN_SIMD for (int64_t i = 0; i < total; i++) put_exact(job->out, out + i, best[i], bf16);
    uint8_t *restrict to = job->codes + out;
    SNN_SIMD for (int64_t i = 0; i < total; i++) to[i] = (uint8_t)codes[i];
}

/* Room for a chunk of a row of outputs: CHUNK values, or all channels of one. */
SNN_INLINE int64_t chunk_of(const Shape *s) { return larger(1, CHUNK / s->inner); }

typedef struct {
    float *values;
    int32_t *codes;
} Room;

static int make_room(Room *r, const Shape *s) {
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

ROWS(max_forward_rows, max_chunk)

/* ---- average pooling, forward -------------------------------------------------------------------------------- */

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

SNN_INLINE void add_row(const void *row, int64_t from, int64_t stride, int64_t n, float *restrict sums, int bf16) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) sums[i] += get(row, from + i * stride, bf16);
}

SNN_INLINE void sum_two_by_two(
    const void *a, const void *b, int64_t at_a, int64_t at_b, int64_t step, int64_t apart, int64_t n, float *restrict sums, int bf16
) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const float high = get(a, at_a + i * step, bf16) + 0.0f + get(a, at_a + i * step + apart, bf16);
        sums[i] = high + get(b, at_b + i * step, bf16) + get(b, at_b + i * step + apart, bf16);
    }
}

SNN_INLINE void average_chunk(
    const Job *job, int64_t plane, int64_t oh, int64_t w0, int64_t w1, float *restrict sums, int32_t *unused, int bf16
) {
    const Shape *s = job->s;
    const int64_t C = s->inner, n = w1 - w0, total = n * C, base = plane * s->H * s->W * C;
    const int64_t h0 = oh * s->sh - s->ph, out = ((plane * s->OH + oh) * s->OW + w0) * C;
    (void)unused;
    if (tiles(s) && s->kh == 2 && s->kw == 2 && h0 + 2 <= s->H && 2 * w1 <= s->W) {
        const int64_t at = base + (h0 * s->W + 2 * w0) * C, below = at + s->W * C;
        if (C == 1) sum_two_by_two(job->in, job->in, at, below, 2, 1, n, sums, bf16);
        else
            for (int64_t i = 0; i < n; i++)
                sum_two_by_two(job->in, job->in, at + 2 * i * C, below + 2 * i * C, 1, C, C, sums + i * C, bf16);
    } else {
        memset(sums, 0, (size_t)total * sizeof(float));
        for (int64_t r = larger(-h0, 0); r < smaller(s->kh, s->H - h0); r++)
            for (int64_t q = 0; q < s->kw; q++) {
                int64_t lo, hi;
                inside(s->W, s->OW, s->sw, q - s->pw, &lo, &hi);
                lo = larger(lo, w0), hi = smaller(hi, w1);
                const int64_t at = base + ((h0 + r) * s->W + q - s->pw) * C;
                if (C == 1) {
                    if (s->sw == 1) add_row(job->in, at + lo, 1, hi - lo, sums + lo - w0, bf16);
                    else if (s->sw == 2) add_row(job->in, at + lo * 2, 2, hi - lo, sums + lo - w0, bf16);
                    else add_row(job->in, at + lo * s->sw, s->sw, hi - lo, sums + lo - w0, bf16);
                } else {
                    for (int64_t w = lo; w < hi; w++)
                        add_row(job->in, at + w * s->sw * C, 1, C, sums + (w - w0) * C, bf16);
                }
            }
    }
    if (even(s)) {
        const float d = (float)(s->kh * s->kw);
        if (is_power(d)) {
            const float factor = 1.0f / d;
            SNN_SIMD for (int64_t i = 0; i < total; i++) put(job->out, out + i, sums[i] * factor, bf16);
        } else {
            SNN_SIMD for (int64_t i = 0; i < total; i++) put(job->out, out + i, sums[i] / d, bf16);
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            const float d = divisor(s, oh, w0 + i);
            for (int64_t c = 0; c < C; c++) put(job->out, out + i * C + c, sums[i * C + c] / d, bf16);
        }
    }
}

ROWS(average_forward_rows, average_chunk)

/* ---- backward ------------------------------------------------------------------------------------------------ */

SNN_INLINE void zero(void *to, int64_t at, int64_t n, int bf16) {
    const size_t size = bf16 ? 2 : 4;
    memset((char *)to + (size_t)at * size, 0, (size_t)n * size);
}

/* 0 + g, as torch adds to zeros. */
SNN_INLINE float chosen(float g, int32_t code, int32_t mine) { return (code == mine ? g : 0.0f) + 0.0f; }

/* Gradients of pairs of neighbours. */
SNN_INLINE void pairs(
    void *to, int64_t at, int64_t n, const float *restrict grad, const int32_t *restrict codes, int32_t code, int is_max, int bf16
) {
    if (is_max) {
        SNN_SIMD for (int64_t i = 0; i < n; i++) {
            put_exact(to, at + 2 * i, chosen(grad[i], codes[i], code), bf16);
            put_exact(to, at + 2 * i + 1, chosen(grad[i], codes[i], code + 1), bf16);
        }
    } else {
        SNN_SIMD for (int64_t i = 0; i < n; i++) {
            put(to, at + 2 * i, grad[i], bf16);
            put(to, at + 2 * i + 1, grad[i], bf16);
        }
    }
}

/* Windows that tile the input: outputs w0 to w1 of row oh give all their inputs, and the last ones the rest of the rows. */
SNN_INLINE void tile_chunk(
    const Job *job, int64_t plane, int64_t oh, int64_t w0, int64_t w1, float *restrict grad, int32_t *restrict codes, int bf16
) {
    const Shape *s = job->s;
    const int64_t C = s->inner, n = w1 - w0, total = n * C, from = ((plane * s->OH + oh) * s->OW + w0) * C;
    const int64_t W = s->W, h0 = oh * s->kh, base = plane * s->H * W * C;
    const int64_t whole = smaller(w1, W / s->kw) - w0; /* in ceil mode the last window may be cut */
    for (int64_t i = 0; i < total; i++) grad[i] = get(job->in, from + i, bf16);
    const int is_max = job->codes != 0;
    if (is_max) {
        const uint8_t *restrict bytes = job->codes + from;
        SNN_SIMD for (int64_t i = 0; i < total; i++) codes[i] = bytes[i];
    } else if (even(s) && is_power((float)(s->kh * s->kw))) {
        const float factor = 1.0f / (float)(s->kh * s->kw);
        SNN_SIMD for (int64_t i = 0; i < total; i++) grad[i] = grad[i] * factor + 0.0f;
    } else {
        for (int64_t i = 0; i < n; i++) {
            const float d = divisor(s, oh, w0 + i);
            SNN_SIMD for (int64_t c = 0; c < C; c++) grad[i * C + c] = grad[i * C + c] / d + 0.0f;
        }
    }
    for (int64_t r = 0; r < smaller(s->kh, s->H - h0); r++) {
        const int64_t row = base + (h0 + r) * W * C, at = row + w0 * s->kw * C;
        const int32_t code = (int32_t)(r * s->kw);
        int64_t done = 0; /* windows */
        if (C == 1 && s->kw == 2) {
            done = whole;
            pairs(job->out, at, whole, grad, codes, code, is_max, bf16);
        }
        for (int64_t i = done; i < n; i++)
            for (int64_t q = 0; q < smaller(s->kw, W - (w0 + i) * s->kw); q++) {
                const int64_t to = at + (i * s->kw + q) * C;
                const float *restrict g = grad + i * C;
                const int32_t *restrict k = codes + i * C;
                const int32_t mine = code + (int32_t)q;
                if (is_max) {
                    SNN_SIMD for (int64_t c = 0; c < C; c++) put_exact(job->out, to + c, chosen(g[c], k[c], mine), bf16);
                } else {
                    SNN_SIMD for (int64_t c = 0; c < C; c++) put(job->out, to + c, g[c], bf16);
                }
            }
        if (w1 == s->OW && w1 * s->kw < W) zero(job->out, row + w1 * s->kw * C, (W - w1 * s->kw) * C, bf16);
    }
    if (oh == s->OH - 1 && w1 == s->OW && h0 + s->kh < s->H)
        zero(job->out, base + (h0 + s->kh) * W * C, (s->H - h0 - s->kh) * W * C, bf16);
}

ROWS(tile_rows, tile_chunk)

/* Any windows: added to zeros, in the order of the outputs. */
SNN_INLINE void scatter(const Job *job, int64_t plane, int bf16) {
    const Shape *s = job->s;
    const int64_t C = s->inner, base = plane * s->H * s->W * C;
    zero(job->out, base, s->H * s->W * C, bf16);
    for (int64_t oh = 0; oh < s->OH; oh++)
        for (int64_t ow = 0; ow < s->OW; ow++) {
            const int64_t from = ((plane * s->OH + oh) * s->OW + ow) * C, h0 = oh * s->sh - s->ph, w0 = ow * s->sw - s->pw;
            if (job->codes) {
                for (int64_t c = 0; c < C; c++) {
                    const int64_t code = job->codes[from + c];
                    const int64_t to = base + ((h0 + code / s->kw) * s->W + w0 + code % s->kw) * C + c;
                    put(job->out, to, get(job->out, to, bf16) + get(job->in, from + c, bf16), bf16);
                }
                continue;
            }
            const float d = divisor(s, oh, ow);
            for (int64_t h = larger(h0, 0); h < smaller(h0 + s->kh, s->H); h++)
                for (int64_t w = larger(w0, 0); w < smaller(w0 + s->kw, s->W); w++) {
                    const int64_t to = base + (h * s->W + w) * C;
                    for (int64_t c = 0; c < C; c++) {
                        float share = get(job->in, from + c, bf16) / d;
                        if (bf16) share = snn_from_bf16(snn_to_bf16(share)); /* torch rounds here too */
                        put(job->out, to + c, get(job->out, to + c, bf16) + share, bf16);
                    }
                }
        }
}

static void scatter_planes(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    (void)part;
    for (int64_t i = begin; i < end; i++) {
        if (job->s->bf16) scatter(job, i, 1);
        else scatter(job, i, 0);
    }
}

/* ---- 2 x 2 windows that tile planes of short rows -------------------------------------------------------------- */

/* Rows too short for vectors are copied behind one another, upper rows of windows apart from lower ones. */
enum { SHORT = 128, BLOCK = 1024, MAX = 0, AVERAGE = 1, BACK = 2 };

SNN_INLINE int is_short(const Shape *s) {
    return tiles(s) && s->kh == 2 && s->kw == 2 && s->inner == 1 && s->H == 2 * s->OH && s->W == 2 * s->OW && s->W <= SHORT;
}

SNN_INLINE void short_rows(const Job *job, int64_t begin, int64_t end, int mode, int bf16) {
    const Shape *s = job->s;
    const int64_t OW = s->OW, W = s->W, step = BLOCK / OW;
    const size_t size = bf16 ? 2 : 4, line = (size_t)W * size;
    float values[BLOCK];
    int32_t codes[BLOCK];
    union {
        float floats[2 * BLOCK];
        uint16_t words[2 * BLOCK];
        char bytes[2 * BLOCK * sizeof(float)];
    } up, low;
    char *upper = up.bytes, *lower = low.bytes;
    for (int64_t r = begin; r < end; r += step) {
        const int64_t m = smaller(step, end - r), n = m * OW, at = r * OW;
        if (mode != BACK) {
            const char *from = (const char *)job->in + (size_t)(2 * r) * line;
            for (int64_t i = 0; i < m; i++) {
                memcpy(upper + (size_t)i * line, from + (size_t)(2 * i) * line, line);
                memcpy(lower + (size_t)i * line, from + (size_t)(2 * i + 1) * line, line);
            }
        }
        if (mode == MAX) {
            uint8_t *restrict to = job->codes + at;
            two_by_two(upper, lower, 0, 0, 2, 1, n, values, codes, bf16);
            SNN_SIMD for (int64_t i = 0; i < n; i++) put_exact(job->out, at + i, values[i], bf16);
            SNN_SIMD for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)codes[i];
        } else if (mode == AVERAGE) {
            sum_two_by_two(upper, lower, 0, 0, 2, 1, n, values, bf16);
            SNN_SIMD for (int64_t i = 0; i < n; i++) put(job->out, at + i, values[i] * 0.25f, bf16);
        } else {
            char *to = (char *)job->out + (size_t)(2 * r) * line;
            if (job->codes) {
                const uint8_t *restrict bytes = job->codes + at;
                SNN_SIMD for (int64_t i = 0; i < n; i++) codes[i] = bytes[i];
                SNN_SIMD for (int64_t i = 0; i < n; i++) values[i] = get(job->in, at + i, bf16);
                pairs(upper, 0, n, values, codes, 0, 1, bf16);
                pairs(lower, 0, n, values, codes, 2, 1, bf16);
            } else {
                SNN_SIMD for (int64_t i = 0; i < n; i++) values[i] = get(job->in, at + i, bf16) * 0.25f + 0.0f;
                pairs(upper, 0, n, values, codes, 0, 0, bf16);
            }
            for (int64_t i = 0; i < m; i++) {
                memcpy(to + (size_t)(2 * i) * line, upper + (size_t)i * line, line);
                memcpy(to + (size_t)(2 * i + 1) * line, (job->codes ? lower : upper) + (size_t)i * line, line);
            }
        }
    }
}

#define SHORT_ROWS(NAME, MODE)                                                    \
    static void NAME(void *context, int64_t begin, int64_t end, int part) {        \
        const Job *job = context;                                                  \
        (void)part;                                                                \
        if (job->s->bf16) short_rows(job, begin, end, MODE, 1);                    \
        else short_rows(job, begin, end, MODE, 0);                                 \
    }

SHORT_ROWS(max_short, MAX)
SHORT_ROWS(average_short, AVERAGE)
SHORT_ROWS(back_short, BACK)

/* ---- what is called ------------------------------------------------------------------------------------------ */

/* Elements a thread is worth starting for. */
enum { WORTH = 32768 };

static void rows(snn_body body, Job *job, int threads) {
    const Shape *s = job->s;
    const int64_t row = s->OW * s->inner * s->kh * s->kw;
    snn_parallel(s->planes * s->OH, row ? WORTH / row + 1 : 1, threads, body, job);
}

/* All return 0, or 1 if there is no memory. */
SNN_EXPORT int SNN_NAME(max_pool_forward)(const Shape *s, const void *x, void *y, uint8_t *codes, int threads) {
    int failed = 0;
    Job job = {s, x, y, codes, &failed};
    rows(is_short(s) ? max_short : max_forward_rows, &job, threads);
    return failed;
}

SNN_EXPORT int SNN_NAME(avg_pool_forward)(const Shape *s, const void *x, void *y, int threads) {
    int failed = 0;
    Job job = {s, x, y, 0, &failed};
    rows(is_short(s) ? average_short : average_forward_rows, &job, threads);
    return failed;
}

/* codes = 0 for average pooling. */
SNN_EXPORT int SNN_NAME(pool_backward)(const Shape *s, const void *grad, void *grad_x, const uint8_t *codes, int threads) {
    int failed = 0;
    Job job = {s, grad, grad_x, (uint8_t *)codes, &failed};
    const int64_t plane = s->H * s->W * s->inner;
    if (tiles(s)) rows(is_short(s) ? back_short : tile_rows, &job, threads);
    else snn_parallel(s->planes, WORTH / (plane ? plane : 1) + 1, threads, scatter_planes, &job);
    return failed;
}
