/* What every kernel shares. A kernel is compiled once for each instruction set and named by it: SNN_NAME(f) is f_avx512, say. */
#ifndef SNN_COMMON_H
#define SNN_COMMON_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef SNN_ISA
#define SNN_JOIN2(name, isa) name##_##isa
#define SNN_JOIN(name, isa) SNN_JOIN2(name, isa)
#define SNN_NAME(name) SNN_JOIN(name, SNN_ISA)
#endif

#define SNN_EXPORT __attribute__((visibility("default")))
#define SNN_INLINE static inline __attribute__((always_inline))
#define SNN_SIMD _Pragma("omp simd")

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

/* body(context, begin, end, part) over parts of [0, n) of about `grain` or more, on at most `threads` threads; part < threads. */
typedef void (*snn_body)(void *context, int64_t begin, int64_t end, int part);
void snn_parallel(int64_t n, int64_t grain, int threads, snn_body body, void *context);

SNN_INLINE float snn_from_bf16(uint16_t word) {
    uint32_t bits = (uint32_t)word << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Round to nearest, ties to even; NaN stays NaN. */
SNN_INLINE uint16_t snn_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = 0x7FC0u;
    return (uint16_t)(value != value ? quiet : rounded);
}

#endif
