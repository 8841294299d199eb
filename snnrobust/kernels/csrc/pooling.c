/* Pooling, forward. */
#include "pooling.h"

/* ---- max pooling ------------------------------------------------------------------------------------ */

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

ROWS(max_rows, max_chunk)

/* ---- average pooling -------------------------------------------------------------------------------- */

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

ROWS(average_rows, average_chunk)

/* ---- short rows ---------------------------------------------------------------------------------------------- */

SNN_INLINE void short_rows(const Job *job, int64_t begin, int64_t end, int bf16) {
    const Shape *s = job->s;
    const int64_t OW = s->OW, W = s->W, step = BLOCK / OW;
    const size_t line = (size_t)W * (bf16 ? 2 : 4);
    float values[BLOCK];
    int32_t codes[BLOCK];
    Lines upper, lower;
    for (int64_t r = begin; r < end; r += step) {
        const int64_t m = smaller(step, end - r), n = m * OW, at = r * OW;
        const char *from = (const char *)job->in + (size_t)(2 * r) * line;
        for (int64_t i = 0; i < m; i++) {
            memcpy(upper.bytes + (size_t)i * line, from + (size_t)(2 * i) * line, line);
            memcpy(lower.bytes + (size_t)i * line, from + (size_t)(2 * i + 1) * line, line);
        }
        if (job->codes) {
            uint8_t *restrict to = job->codes + at;
            two_by_two(&upper, &lower, 0, 0, 2, 1, n, values, codes, bf16);
            SNN_SIMD for (int64_t i = 0; i < n; i++) put_exact(job->out, at + i, values[i], bf16);
            SNN_SIMD for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)codes[i];
        } else {
            sum_two_by_two(&upper, &lower, 0, 0, 2, 1, n, values, bf16);
            SNN_SIMD for (int64_t i = 0; i < n; i++) put(job->out, at + i, values[i] * 0.25f, bf16);
        }
    }
}

BY_TYPE(forward_short, short_rows)

/* ---- what is called ------------------------------------------------------------------------------------------ */

/* Both return 0, or 1 if there is no memory. */
SNN_EXPORT int SNN_NAME(max_pool_forward)(const Shape *s, const void *x, void *y, uint8_t *codes, int threads) {
    int failed = 0;
    Job job = {s, x, y, codes, &failed};
    rows(is_short(s) ? forward_short : max_rows, &job, threads);
    return failed;
}

SNN_EXPORT int SNN_NAME(avg_pool_forward)(const Shape *s, const void *x, void *y, int threads) {
    int failed = 0;
    Job job = {s, x, y, 0, &failed};
    rows(is_short(s) ? forward_short : average_rows, &job, threads);
    return failed;
}
