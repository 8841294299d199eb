/* Chance, and heap blocks that are given back together. */
#ifndef DRIVER_H
#define DRIVER_H

#include "common.h"

static uint64_t state = 88172645463325252ull;

static uint64_t chance(uint64_t n) { /* 0 .. n - 1 */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (state >> 11) % n;
}

static float real(float low, float high) { return low + (high - low) * (float)chance(1 << 20) / (float)(1 << 20); }

enum { MOST = 64 };
static void *blocks[MOST];
static int taken;

static void *block(size_t bytes) {
    void *made = malloc(bytes ? bytes : 1);
    if (!made || taken == MOST) abort();
    return blocks[taken++] = made;
}

/* n elements that end where the block does, at a multiple of 64 bytes or, as views do, some elements past one. */
static void *placed(int64_t n, int64_t size) {
    const int64_t past = chance(2) ? 0 : 1 + (int64_t)chance(17);
    void *made;
    if (taken == MOST || posix_memalign(&made, 64, (size_t)(n + past ? (n + past) * size : 1))) abort();
    blocks[taken++] = made;
    return (char *)made + past * size;
}

static void give_back(void) {
    while (taken) free(blocks[--taken]);
}

static float *reals(int64_t n, float low, float high) {
    float *made = block((size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) made[i] = real(low, high);
    return made;
}

/* n values of x's type; sometimes some that are no numbers. */
static void *values(int64_t n, int bf16, float low, float high) {
    float *made = reals(n, low, high);
    if (n && !chance(5)) {
        made[chance((uint64_t)n)] = NAN;
        made[chance((uint64_t)n)] = -INFINITY;
        made[chance((uint64_t)n)] = INFINITY;
    }
    if (!bf16) return made;
    uint16_t *words = block((size_t)n * sizeof(uint16_t));
    for (int64_t i = 0; i < n; i++) words[i] = snn_to_bf16(made[i]);
    return words;
}

static void *room(int64_t n, int bf16) { return block((size_t)n * (bf16 ? 2 : 4)); }

static int64_t one_of(const int64_t *sizes, size_t count) { return sizes[chance(count)]; }

static int some(int threads) { return 1 + (int)chance((uint64_t)threads); }

/* Around a vector, a tile (1024) and, rarely, what is enough for several threads and for stores past the cache. */
static int64_t length(void) {
    static const int64_t sizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 1023, 1024, 1025, 4095, 4097};
    return chance(8) ? one_of(sizes, 24) : chance(4) ? (int64_t)chance(5000) : 65500 + (int64_t)chance(400000);
}

#endif
