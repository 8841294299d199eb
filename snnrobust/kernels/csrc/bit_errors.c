/* Independent bit errors at given rates: the gaps between them are drawn, and not a number for each bit.
 *
 * Bit b of words goes wrong with probability p_b. From one error to the next there are floor(log u / log(1 - p)) good bits (the
 * geometric distribution, by inversion, u of 52 bits). It has no memory, so each run of words begins anew, with draws of its own:
 * element of step 8 * run + b. Floating-point operations are those of snnrobust/kernels/bit_errors.py in the same order.
 */
#include "philox.h"

enum {
    RUN = 1 << 14, /* words that share a stream of draws */
    GAPS = 128,    /* that are drawn together at most */
    LOG_TERMS = 8,
};

SNN_INLINE double double_of(uint64_t bits) {
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

/* log x = k log 2 + log m, m in [sqrt(1/2), sqrt(2)); log m = 2 atanh s, s = (m - 1) / (m + 1), by its series. */
SNN_INLINE double logarithm(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    const uint64_t shifted = bits + (0x3FF0000000000000u - 0x3FE6A09E667F3BCDu);
    const double m = double_of((shifted & 0xFFFFFFFFFFFFFu) + 0x3FE6A09E667F3BCDu);
    /* the exponent as a double without a conversion of 64-bit integers, which AVX2 lacks */
    const double k = double_of((shifted >> 52) | 0x4330000000000000u) - (0x1p52 + 1023.0);
    const double f = m - 1.0, s = f / (f + 2.0), z = s * s;
    double r = 1.0 / 17.0;
    r = r * z + 1.0 / 15.0;
    r = r * z + 1.0 / 13.0;
    r = r * z + 1.0 / 11.0;
    r = r * z + 1.0 / 9.0;
    r = r * z + 1.0 / 7.0;
    r = r * z + 1.0 / 5.0;
    r = r * z + 1.0 / 3.0;
    r = r * z + 1.0;
    return k * 0x1.62e42fefa39efp-1 + 2.0 * s * r;
}

/* Good bits before each error, at most RUN. u = (v + 1/2) / 2^52, v of the upper 52 bits of two words. */
static void gaps(const uint32_t *restrict w, int64_t n, double inverse, int32_t *restrict gap) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) {
        const uint64_t v = ((uint64_t)w[2 * i] << 20) | (w[2 * i + 1] >> 12);
        const double u = (double_of(v | 0x4330000000000000u) - 0x1p52 + 0.5) * 0x1p-52;
        const double length = logarithm(u) * inverse;
        gap[i] = (int32_t)(length < RUN ? length : RUN);
    }
}

typedef struct {
    Keys keys;
    uint64_t id;
    const double *inverse; /* [bits] 1 / log(1 - p); above 0 where p = 0 */
    const uint8_t *words;
    uint8_t *out;
    int64_t n;
    int bits;
} Errors;

static void part_of(void *context, int64_t begin, int64_t end, int part) {
    const Errors *k = context;
    uint32_t w[2 * GAPS] __attribute__((aligned(64)));
    int32_t gap[GAPS] __attribute__((aligned(64)));
    (void)part;
    for (int64_t run = begin; run < end; run++) {
        const int64_t at = run * RUN, left = k->n - at, n = left < RUN ? left : RUN;
        uint8_t *out = k->out + at;
        if (k->words) memcpy(out, k->words + at, (size_t)n);
        else memset(out, 0, (size_t)n);
        for (int b = 0; b < k->bits; b++) {
            if (k->inverse[b] > 0) continue;
            /* about as many as there will be errors, and whole vectors of words */
            const double expected = (double)n * -1.0 / (k->inverse[b] - 0.5);
            const int64_t size = expected > GAPS / 2 ? GAPS : expected > GAPS / 8 ? GAPS / 2 : AT_ONCE / 2 > 16 ? AT_ONCE / 2 : 16;
            const uint8_t flip = (uint8_t)(1u << b);
            int64_t place = -1;
            for (uint32_t first = 0; place < n; first += (uint32_t)size) {
                words(&k->keys, first / 2, (uint32_t)(8 * run + b), (uint32_t)k->id, (uint32_t)(k->id >> 32), 2 * size, w);
                gaps(w, size, k->inverse[b], gap);
                for (int64_t i = 0; i < size; i++) {
                    place += gap[i] + 1;
                    if (place >= n) break;
                    out[place] ^= flip;
                }
            }
        }
    }
}

/* words [n] or 0 for zeros; out [n]. key [2]; id tells apart what is drawn from one key. */
SNN_EXPORT void SNN_NAME(bit_errors)(
    const int64_t *key, int64_t id, const double *inverse, int bits, const uint8_t *words, uint8_t *out, int64_t n, int threads) {
    if (n <= 0) return;
    Errors k = {.id = (uint64_t)id, .inverse = inverse, .words = words, .out = out, .n = n, .bits = bits};
    k.keys = schedule((uint32_t)key[0], (uint32_t)key[1]);
    snn_parallel((n + RUN - 1) / RUN, 16, threads, part_of, &k);
}
