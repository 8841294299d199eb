/* Spikes at one bit a value. Only the two bit patterns of 0 and 1 are spikes: -0 is not. Value i is bit i % 8 of byte i / 8. */
#include "common.h"

enum { ONE = 0x3F800000, ONE16 = 0x3F80, BLOCK = 4096 };

typedef struct {
    const void *from;
    void *to;
    int64_t n;
    int bf16;
    int *other; /* something else than a spike was met, by any thread */
} Job;

SNN_INLINE uint32_t word(const void *from, int64_t i, int bf16) {
    return bf16 ? ((const uint16_t *)from)[i] : ((const uint32_t *)from)[i];
}

/* Eight values, or the last n; what is neither 0 nor 1 shows in `other`. */
SNN_INLINE uint8_t pack_byte(const void *from, int64_t at, int64_t n, int bf16, uint32_t *other) {
    const uint32_t one = bf16 ? ONE16 : ONE;
    uint32_t byte = 0;
    for (int64_t k = 0; k < n; k++) {
        const uint32_t w = word(from, at + k, bf16), is = w == one;
        byte |= is << k;
        *other |= !is & (w != 0);
    }
    return (uint8_t)byte;
}

/* Values at (a multiple of 8) to end; returns whether all are spikes. */
SNN_INLINE int pack_block(const void *from, int64_t at, int64_t end, uint8_t *to, int bf16) {
    uint32_t other = 0;
    int64_t i = at;
#if defined(__AVX512F__)
    if (bf16) {
        const __m512i one = _mm512_set1_epi16(ONE16);
        for (; i + 32 <= end; i += 32) {
            const __m512i w = _mm512_loadu_si512((const uint16_t *)from + i);
            const uint32_t ones = _mm512_cmpeq_epi16_mask(w, one);
            other |= _mm512_test_epi16_mask(w, w) & ~ones;
            memcpy(to + i / 8, &ones, 4);
        }
    } else {
        const __m512i one = _mm512_set1_epi32(ONE);
        for (; i + 16 <= end; i += 16) {
            const __m512i w = _mm512_loadu_si512((const uint32_t *)from + i);
            const uint16_t ones = _mm512_cmpeq_epi32_mask(w, one);
            other |= (uint32_t)_mm512_test_epi32_mask(w, w) & (uint32_t)~ones;
            memcpy(to + i / 8, &ones, 2);
        }
    }
#elif defined(__AVX2__)
    const __m256i zero = _mm256_setzero_si256();
    if (bf16) {
        const __m256i one = _mm256_set1_epi16(ONE16);
        for (; i + 32 <= end; i += 32) {
            const __m256i w0 = _mm256_loadu_si256((const __m256i *)((const uint16_t *)from + i));
            const __m256i w1 = _mm256_loadu_si256((const __m256i *)((const uint16_t *)from + i + 16));
            const __m256i is0 = _mm256_cmpeq_epi16(w0, one), is1 = _mm256_cmpeq_epi16(w1, one);
            const __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi16(is0, is1), 0xD8);
            const __m256i known0 = _mm256_or_si256(is0, _mm256_cmpeq_epi16(w0, zero));
            const __m256i known1 = _mm256_or_si256(is1, _mm256_cmpeq_epi16(w1, zero));
            const uint32_t ones = (uint32_t)_mm256_movemask_epi8(both);
            other |= ~(uint32_t)_mm256_movemask_epi8(_mm256_and_si256(known0, known1));
            memcpy(to + i / 8, &ones, 4);
        }
    } else {
        const __m256i one = _mm256_set1_epi32(ONE);
        for (; i + 8 <= end; i += 8) {
            const __m256i w = _mm256_loadu_si256((const __m256i *)((const uint32_t *)from + i));
            const __m256i is = _mm256_cmpeq_epi32(w, one), known = _mm256_or_si256(is, _mm256_cmpeq_epi32(w, zero));
            other |= ~(uint32_t)_mm256_movemask_epi8(known);
            to[i / 8] = (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(is));
        }
    }
#endif
    for (; i + 8 <= end; i += 8) to[i / 8] = pack_byte(from, i, 8, bf16, &other);
    if (i < end) to[i / 8] = pack_byte(from, i, end - i, bf16, &other);
    return other == 0;
}

/* Blocks begin to end; stops soon after anyone met something else. */
static void pack_part(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    (void)part;
    for (int64_t b = begin; b < end; b++) {
        if (__atomic_load_n(job->other, __ATOMIC_RELAXED)) return;
        const int64_t at = b * BLOCK, stop = at + BLOCK < job->n ? at + BLOCK : job->n;
        const int good = job->bf16 ? pack_block(job->from, at, stop, job->to, 1) : pack_block(job->from, at, stop, job->to, 0);
        if (!good) __atomic_store_n(job->other, 1, __ATOMIC_RELAXED);
    }
}

SNN_INLINE void unpack_block(const uint8_t *restrict from, int64_t at, int64_t end, void *to, int bf16) {
    int64_t i = at;
#if defined(__AVX512F__)
    if (bf16) {
        const __m512i one = _mm512_set1_epi16(ONE16);
        for (; i + 32 <= end; i += 32) {
            uint32_t ones;
            memcpy(&ones, from + i / 8, 4);
            _mm512_storeu_si512((uint16_t *)to + i, _mm512_maskz_mov_epi16(ones, one));
        }
    } else {
        const __m512i one = _mm512_set1_epi32(ONE);
        for (; i + 16 <= end; i += 16) {
            uint16_t ones;
            memcpy(&ones, from + i / 8, 2);
            _mm512_storeu_si512((uint32_t *)to + i, _mm512_maskz_mov_epi32(ones, one));
        }
    }
#elif defined(__AVX2__)
    if (bf16) {
        const __m256i one = _mm256_set1_epi16(ONE16);
        const __m256i places = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
        for (; i + 16 <= end; i += 16) {
            uint16_t ones;
            memcpy(&ones, from + i / 8, 2);
            const __m256i is = _mm256_and_si256(_mm256_set1_epi16((short)ones), places);
            _mm256_storeu_si256((__m256i *)((uint16_t *)to + i), _mm256_and_si256(_mm256_cmpeq_epi16(is, places), one));
        }
    } else {
        const __m256i one = _mm256_set1_epi32(ONE), places = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        for (; i + 8 <= end; i += 8) {
            const __m256i is = _mm256_and_si256(_mm256_set1_epi32(from[i / 8]), places);
            _mm256_storeu_si256((__m256i *)((uint32_t *)to + i), _mm256_and_si256(_mm256_cmpeq_epi32(is, places), one));
        }
    }
#endif
    for (; i < end; i++) {
        const uint32_t is = from[i / 8] >> (i % 8) & 1u;
        if (bf16) ((uint16_t *)to)[i] = (uint16_t)(is * ONE16);
        else ((uint32_t *)to)[i] = is * ONE;
    }
}

static void unpack_part(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    const int64_t at = begin * BLOCK, stop = end * BLOCK < job->n ? end * BLOCK : job->n;
    (void)part;
    if (job->bf16) unpack_block(job->from, at, stop, job->to, 1);
    else unpack_block(job->from, at, stop, job->to, 0);
}

/* Blocks a thread is worth starting for. */
enum { WORTH = 32 };

/* Whether all n values are spikes; else `to` is not complete. */
SNN_EXPORT int SNN_NAME(bits_pack)(const void *x, uint8_t *to, int64_t n, int bf16, int threads) {
    int other = 0;
    Job job = {x, to, n, bf16, &other};
    if (n > 0 && !(bf16 ? pack_block(x, 0, n < 64 ? n : 64, to, 1) : pack_block(x, 0, n < 64 ? n : 64, to, 0))) return 0;
    snn_parallel((n + BLOCK - 1) / BLOCK, WORTH, threads, pack_part, &job);
    return !other;
}

SNN_EXPORT void SNN_NAME(bits_unpack)(const uint8_t *from, void *to, int64_t n, int bf16, int threads) {
    Job job = {from, to, n, bf16, 0};
    snn_parallel((n + BLOCK - 1) / BLOCK, WORTH, threads, unpack_part, &job);
}
