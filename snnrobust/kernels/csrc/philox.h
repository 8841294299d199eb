/* Philox4x32-10 (Salmon et al. 2011), and normal numbers of its words.
 *
 * Several blocks go through the rounds side by side, each 32-bit word in the low half of a 64-bit lane, where one multiplication
 * gives both halves of a product. Words come out in the order of the elements.
 * Floating-point operations are those of snnrobust/kernels/philox.py in the same order, so the bits are the same.
 */
#ifndef SNN_PHILOX_H
#define SNN_PHILOX_H

#include "common.h"

enum {
    ROUNDS = 10,
    TILE = 1024, /* words that are drawn together */
};

#if defined(__AVX512F__)
enum { LANES = 8 };
typedef uint64_t Lanes __attribute__((vector_size(64)));
SNN_INLINE Lanes every(uint64_t v) { return (Lanes)_mm512_set1_epi64((long long)v); }
SNN_INLINE Lanes times(Lanes a, Lanes b) { return (Lanes)_mm512_mul_epu32((__m512i)a, (__m512i)b); }
SNN_INLINE void put(uint32_t *to, Lanes first, Lanes second) {
    _mm512_store_si512((void *)to, _mm512_unpacklo_epi64((__m512i)first, (__m512i)second));
    _mm512_store_si512((void *)(to + 16), _mm512_unpackhi_epi64((__m512i)first, (__m512i)second));
}
/* The block of each lane: put() writes even lanes first. */
SNN_INLINE Lanes count(void) { return (Lanes){0, 4, 1, 5, 2, 6, 3, 7}; }
#elif defined(__AVX2__)
enum { LANES = 4 };
typedef uint64_t Lanes __attribute__((vector_size(32)));
SNN_INLINE Lanes every(uint64_t v) { return (Lanes)_mm256_set1_epi64x((long long)v); }
SNN_INLINE Lanes times(Lanes a, Lanes b) { return (Lanes)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
SNN_INLINE void put(uint32_t *to, Lanes first, Lanes second) {
    _mm256_store_si256((__m256i *)to, _mm256_unpacklo_epi64((__m256i)first, (__m256i)second));
    _mm256_store_si256((__m256i *)(to + 8), _mm256_unpackhi_epi64((__m256i)first, (__m256i)second));
}
SNN_INLINE Lanes count(void) { return (Lanes){0, 2, 1, 3}; }
#elif defined(__SSE2__)
#include <emmintrin.h>
enum { LANES = 2 };
typedef uint64_t Lanes __attribute__((vector_size(16)));
SNN_INLINE Lanes every(uint64_t v) { return (Lanes)_mm_set1_epi64x((long long)v); }
SNN_INLINE Lanes times(Lanes a, Lanes b) { return (Lanes)_mm_mul_epu32((__m128i)a, (__m128i)b); }
SNN_INLINE void put(uint32_t *to, Lanes first, Lanes second) {
    _mm_store_si128((__m128i *)to, _mm_unpacklo_epi64((__m128i)first, (__m128i)second));
    _mm_store_si128((__m128i *)(to + 4), _mm_unpackhi_epi64((__m128i)first, (__m128i)second));
}
SNN_INLINE Lanes count(void) { return (Lanes){0, 1}; }
#else
enum { LANES = 1 };
typedef uint64_t Lanes;
SNN_INLINE Lanes every(uint64_t v) { return v; }
SNN_INLINE Lanes times(Lanes a, Lanes b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
SNN_INLINE void put(uint32_t *to, Lanes first, Lanes second) {
    to[0] = (uint32_t)first;
    to[1] = (uint32_t)(first >> 32);
    to[2] = (uint32_t)second;
    to[3] = (uint32_t)(second >> 32);
}
SNN_INLINE Lanes count(void) { return 0; }
#endif

enum { AT_ONCE = 4 * LANES }; /* words that are made together */

typedef struct {
    uint64_t round[2 * ROUNDS];
} Keys;

SNN_INLINE Keys schedule(uint32_t k0, uint32_t k1) {
    Keys keys;
    for (int r = 0; r < ROUNDS; r++) {
        keys.round[2 * r] = (uint32_t)(k0 + (uint32_t)r * 0x9E3779B9u);
        keys.round[2 * r + 1] = (uint32_t)(k1 + (uint32_t)r * 0xBB67AE85u);
    }
    return keys;
}

/* At least n words of the blocks from c0 on; `to` is aligned and has room for n rounded up to AT_ONCE. */
__attribute__((unused)) static void words(const Keys *keys, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t n, uint32_t *restrict to) {
    const Lanes m0 = every(0xD2511F53u), m1 = every(0xCD9E8D57u), low = every(0xFFFFFFFFu);
    Lanes block = every(c0) + count();
    for (int64_t i = 0; i < n; i += AT_ONCE, block += every(LANES)) {
        Lanes a = block, b = every(c1), c = every(c2), d = every(c3); /* what is above 32 bits is never read */
#pragma GCC unroll 10
        for (int r = 0; r < ROUNDS - 1; r++) {
            const Lanes p0 = times(a, m0), p1 = times(c, m1);
            a = (p1 >> 32) ^ b ^ every(keys->round[2 * r]);
            c = (p0 >> 32) ^ d ^ every(keys->round[2 * r + 1]);
            b = p1;
            d = p0;
        }
        const Lanes p0 = times(a, m0), p1 = times(c, m1);
        a = (p1 >> 32) ^ b ^ every(keys->round[2 * ROUNDS - 2]);
        c = (p0 >> 32) ^ d ^ every(keys->round[2 * ROUNDS - 1]);
        put(to + i, (a & low) | (p1 << 32), (c & low) | (p0 << 32));
    }
}

/* ---- normal numbers -------------------------------------------------------------------------------------------- */

SNN_INLINE uint32_t bits_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}

SNN_INLINE float float_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

/* sqrt(-2 log u), u = (w + 1/2) / 2^32 = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). Above sqrt(1/2), k = 0 and f = u - 1 comes
 * from the complement of w, without rounding 1 + f. log(1 + f) = f - f^2/2 + s (f^2/2 + R(s^2)), s = f / (2 + f). */
SNN_INLINE float radius(uint32_t w) {
    const int near = w >= 0xB504F334u;
    const float x = (float)(near ? ~w : w) + 0.5f;
    const uint32_t shifted = bits_of(x) + (0x3F800000u - 0x3F3504F3u);
    const float mantissa = float_of((shifted & 0x7FFFFFu) + 0x3F3504F3u);
    const float k = near ? 0.0f : (float)((int32_t)(shifted >> 23) - (127 + 32));
    const float f = near ? x * -0x1p-32f : mantissa - 1.0f;
    const float s = f / (f + 2.0f), z = s * s, half = f * f * 0.5f;
    const float tail = ((z * 0x1.32d352p-2f + 0x1.995428p-2f) * z + 0x1.555588p-1f) * z;
    const float log = (((tail + half) * s + k * 0x1.7f7d1cp-20f) - half + f) + k * 0x1.62e4p-1f;
    return sqrtf(log * -2.0f);
}

/* cos and sin of 2 pi w / 2^32 = pi/2 (quarter + x), x in [-1/2, 1/2): cos = 1 + C(x^2), sin = x S(x^2) of pi/2 x, turned. */
SNN_INLINE void turn(uint32_t w, float *cosine, float *sine) {
    const uint32_t quarter = (w + 0x20000000u) >> 30;
    const float x = (float)((int32_t)(w << 2) >> 2) * 0x1p-30f, z = x * x;
    const float s = (((z * -0x1.3351acp-8f + 0x1.4681b6p-4f) * z + -0x1.4abc26p-1f) * z + 0x1.921fb6p+0f) * x;
    const float c = (((z * 0x1.d47ad6p-11f + -0x1.55b142p-6f) * z + 0x1.03c1aep-2f) * z + -0x1.3bd3ccp+0f) * z + 1.0f;
    const uint32_t odd = quarter & 1u, a = bits_of(odd ? s : c), b = bits_of(odd ? c : s);
    *cosine = float_of(a ^ ((quarter + 1u) & 2u) << 30);
    *sine = float_of(b ^ (quarter & 2u) << 30);
}

__attribute__((unused)) static void normals(const uint32_t *restrict w, int64_t pairs, float *restrict z) {
    SNN_SIMD for (int64_t i = 0; i < pairs; i++) {
        const float r = radius(w[2 * i]);
        float c, s;
        turn(w[2 * i + 1], &c, &s);
        z[2 * i] = r * c;
        z[2 * i + 1] = r * s;
    }
}

#endif
