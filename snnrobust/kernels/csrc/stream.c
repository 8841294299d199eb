/* The limit that kernels are measured against: memory moved and nothing else. With `around`, stores go around the caches where the
 * instruction set has such stores and `to` is aligned to 64 bytes. */
#include "common.h"

typedef struct {
    const float *x, *y;
    float *to;
    int around;
} Stream;

#if defined(__AVX512F__)
enum { LANES = 16 };
SNN_INLINE void put(float *to, const float *x, const float *y) {
    const __m512 a = _mm512_loadu_ps(x);
    _mm512_stream_ps(to, y ? _mm512_add_ps(_mm512_loadu_ps(y), _mm512_mul_ps(a, _mm512_set1_ps(0.5f))) : a);
}
#elif defined(__AVX2__)
enum { LANES = 8 };
SNN_INLINE void put(float *to, const float *x, const float *y) {
    const __m256 a = _mm256_loadu_ps(x);
    _mm256_stream_ps(to, y ? _mm256_add_ps(_mm256_loadu_ps(y), _mm256_mul_ps(a, _mm256_set1_ps(0.5f))) : a);
}
#endif

/* Elements written around the caches. */
static int64_t write_around(const float *x, const float *y, float *to, int64_t n) {
#if defined(__AVX512F__) || defined(__AVX2__)
    if ((uintptr_t)to % 64 == 0) {
        const int64_t whole = n / LANES * LANES;
        if (y)
            for (int64_t i = 0; i < whole; i += LANES) put(to + i, x + i, y + i);
        else
            for (int64_t i = 0; i < whole; i += LANES) put(to + i, x + i, 0);
        _mm_sfence();
        return whole;
    }
#endif
    (void)x, (void)y, (void)to, (void)n;
    return 0;
}

static void move_part(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    const Stream *s = context;
    const int64_t at = begin * 16, n = end * 16 - at;
    const float *restrict x = s->x + at, *restrict y = s->y ? s->y + at : 0;
    float *restrict to = s->to + at;
    const int64_t done = s->around ? write_around(x, y, to, n) : 0;
    if (y) {
        SNN_SIMD for (int64_t i = done; i < n; i++) to[i] = y[i] + x[i] * 0.5f;
    } else {
        SNN_SIMD for (int64_t i = done; i < n; i++) to[i] = x[i];
    }
}

static void move(Stream s, int64_t n, int threads) {
    snn_parallel(n / 16, 4096, threads, move_part, &s);
    for (int64_t i = n / 16 * 16; i < n; i++) s.to[i] = s.y ? s.y[i] + s.x[i] * 0.5f : s.x[i];
}

/* to = x */
SNN_EXPORT void SNN_NAME(stream_copy)(const float *x, float *to, int64_t n, int around, int threads) {
    move((Stream){x, 0, to, around}, n, threads);
}

/* to = y + x / 2 */
SNN_EXPORT void SNN_NAME(stream_triad)(const float *x, const float *y, float *to, int64_t n, int around, int threads) {
    move((Stream){x, y, to, around}, n, threads);
}
