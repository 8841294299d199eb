/* Transposition of a matrix in memory. */
#ifndef SNN_TRANSPOSE_H
#define SNN_TRANSPOSE_H

#include "common.h"

SNN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* to[j, i] = from[i, j] for i < m and j < n */
static void transpose(const float *from, int64_t from_step, float *to, int64_t to_step, int64_t m, int64_t n) {
    int64_t whole = 0;
#if defined(__AVX2__)
    whole = m & ~7;
    for (int64_t j = 0; j + 8 <= n; j += 8)
        for (int64_t i = 0; i < whole; i += 8) {
            __m256 r[8], s[8];
            for (int q = 0; q < 4; q++) { /* halves of rows q and q + 4 side by side */
                const float *a = from + (i + q) * from_step + j, *b = a + 4 * from_step;
                r[q] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
                r[q + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a + 4)), _mm_loadu_ps(b + 4), 1);
            }
            for (int q = 0; q < 8; q += 4) {
                s[q] = _mm256_unpacklo_ps(r[q], r[q + 1]);
                s[q + 1] = _mm256_unpackhi_ps(r[q], r[q + 1]);
                s[q + 2] = _mm256_unpacklo_ps(r[q + 2], r[q + 3]);
                s[q + 3] = _mm256_unpackhi_ps(r[q + 2], r[q + 3]);
            }
            for (int q = 0; q < 8; q += 4) {
                float *t = to + (j + q) * to_step + i;
                _mm256_storeu_ps(t, _mm256_shuffle_ps(s[q], s[q + 2], 0x44));
                _mm256_storeu_ps(t + to_step, _mm256_shuffle_ps(s[q], s[q + 2], 0xEE));
                _mm256_storeu_ps(t + 2 * to_step, _mm256_shuffle_ps(s[q + 1], s[q + 3], 0x44));
                _mm256_storeu_ps(t + 3 * to_step, _mm256_shuffle_ps(s[q + 1], s[q + 3], 0xEE));
            }
        }
    for (int64_t j = n & ~7; j < n; j++)
        for (int64_t i = 0; i < whole; i++) to[j * to_step + i] = from[i * from_step + j];
#endif
    for (int64_t j0 = 0; j0 < n; j0 += 16) /* a cache line of each row at a time */
        for (int64_t i = whole; i < m; i++)
            for (int64_t j = j0; j < smaller(n, j0 + 16); j++) to[j * to_step + i] = from[i * from_step + j];
}

#endif
