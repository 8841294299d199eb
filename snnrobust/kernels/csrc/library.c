/* What the library says of itself. */
#include "common.h"

#ifndef SNN_DIGEST
#define SNN_DIGEST ""
#endif

SNN_EXPORT const char *snn_digest(void) { return SNN_DIGEST; }

/* The best instruction set that this processor and its system support: 0 portable, 1 AVX2, 2 AVX-512. */
SNN_EXPORT int snn_level(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 2;
    if (__builtin_cpu_supports("avx2")) return 1;
#endif
    return 0;
}

SNN_EXPORT const char *snn_threads(void) {
#ifdef _OPENMP
    return "OpenMP";
#else
    return "pthreads";
#endif
}
