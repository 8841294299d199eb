/* Pooling, backward. */
#include "pooling.h"

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

SNN_INLINE void scatter_planes(const Job *job, int64_t begin, int64_t end, int bf16) {
    for (int64_t i = begin; i < end; i++) scatter(job, i, bf16);
}

BY_TYPE(scattered, scatter_planes)

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
        char *to = (char *)job->out + (size_t)(2 * r) * line;
        const char *below = lower.bytes;
        if (job->codes) {
            const uint8_t *restrict bytes = job->codes + at;
            SNN_SIMD for (int64_t i = 0; i < n; i++) codes[i] = bytes[i];
            SNN_SIMD for (int64_t i = 0; i < n; i++) values[i] = get(job->in, at + i, bf16);
            pairs(&upper, 0, n, values, codes, 0, 1, bf16);
            pairs(&lower, 0, n, values, codes, 2, 1, bf16);
        } else {
            SNN_SIMD for (int64_t i = 0; i < n; i++) values[i] = get(job->in, at + i, bf16) * 0.25f + 0.0f;
            pairs(&upper, 0, n, values, codes, 0, 0, bf16);
            below = upper.bytes;
        }
        for (int64_t i = 0; i < m; i++) {
            memcpy(to + (size_t)(2 * i) * line, upper.bytes + (size_t)i * line, line);
            memcpy(to + (size_t)(2 * i + 1) * line, below + (size_t)i * line, line);
        }
    }
}

BY_TYPE(back_short, short_rows)

/* ---- what is called ------------------------------------------------------------------------------------------ */

/* Of max pooling, or with codes = 0 of average pooling. Returns 0, or 1 if there is no memory. */
SNN_EXPORT int SNN_NAME(pool_backward)(const Shape *s, const void *grad, void *grad_x, const uint8_t *codes, int threads) {
    int failed = 0;
    Job job = {s, grad, grad_x, (uint8_t *)codes, &failed};
    const int64_t plane = s->H * s->W * s->inner;
    if (tiles(s)) rows(is_short(s) ? back_short : tile_rows, &job, threads);
    else snn_parallel(s->planes, WORTH / (plane ? plane : 1) + 1, threads, scattered, &job);
    return failed;
}
