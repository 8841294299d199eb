/* Derivatives that stand for ds/du. The order of `kind` is that of snnrobust.neurons.surrogate. */
#ifndef SNN_SURROGATES_H
#define SNN_SURROGATES_H

#include "lif.h"

/* exp for x <= 0 to about one rounding (Cephes): a polynomial of the rest after the nearest power of two. */
SNN_INLINE float exp_of(float given) {
    const float x = given < -87.0f ? -87.0f : given;
    const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
    const float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1.0f;
    uint32_t bits; /* of 2^n: n stands in the low bits of `shifted`; defined for NaN too */
    float power;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127u) << 23;
    memcpy(&power, &bits, 4);
    return given < -87.0f ? 0.0f : p * power; /* 0 at infinity, as in the fallback: what it multiplies may be infinite */
}

SNN_INLINE float derivative(int kind, float a, float b, float u) {
    const float size = u < 0 ? -u : u;
    float e;
    switch (kind) {
    case ATAN: e = u * b; return a / (e * e + 1.0f);
    case TRIANGLE: e = a - size * b; return e > 0 ? e : u != u ? u : 0.0f;
    case FAST_SIGMOID: e = size * a + 1.0f; return 1.0f / (e * e);
    case SIGMOID: e = exp_of(-a * size); return u != u ? u : a * e / ((1.0f + e) * (1.0f + e));
    case RECTANGLE: return size <= a ? b : 0.0f;
    case GAUSSIAN: return u != u ? u : exp_of(u * u * a) * b;
    case EXPONENTIAL: return u != u ? u : exp_of(-b * size) * a;
    case SPIKE_TIME: return exp_of(-b * u) * a;
    default: return 1.0f;
    }
}

#endif
