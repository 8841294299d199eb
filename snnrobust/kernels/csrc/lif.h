/* What lif_forward and lif_backward are told. The same fields, in the same order, as snnrobust.kernels.lif.LifStruct. */
#ifndef SNN_LIF_H
#define SNN_LIF_H

#include "common.h"

enum { ATAN, TRIANGLE, FAST_SIGMOID, SIGMOID, RECTANGLE, GAUSSIAN, EXPONENTIAL, STRAIGHT_THROUGH, SPIKE_TIME, GIVEN };

typedef struct {
    int64_t T, M;             /* steps, and elements of one; element i is of channel (i / inner) % C */
    int64_t x_step;           /* elements between two steps of x: M, or 0 where all steps have the same input */
    int64_t C, inner;
    int64_t norm_step;        /* elements between two steps of mean, scale and bias: C or 0 */
    int32_t bf16;             /* x, s, grad and grad_x are bfloat16; all else is float32 */
    int32_t hard, refractory, detach, kind, stream, threads;
    float decay, threshold;
    float a, b;               /* constants of the surrogate */
    const float *decays, *thresholds;       /* [C], or 0: the numbers above */
    const float *mean, *scale, *bias;       /* [T or 1, C]: the neuron hears (x - mean) * scale + bias; or 0 */
    const void *x;
    const float *v0, *quiet0;               /* [M] state before the first step; 0: at rest */
    /* forward writes */
    void *s;
    float *h, *v_last, *quiet_last;         /* [T, M], [M], [M], or 0 */
    /* backward reads */
    const void *grad;
    const float *saved_h, *slope, *grad_v_last;  /* saved_h 0: computed again from x; slope: ds/dh, for kind GIVEN */
    /* backward writes */
    void *grad_x;                           /* [T, M]; [M], summed over time, where x_step is 0 */
    float *grad_v0, *grad_decay, *grad_threshold; /* [M] each, or 0 */
    double *sums;  /* [threads, T or 1, C, 2], zeros: each thread adds its grad_h and grad_h * (x - mean); or 0 */
    int32_t unscaled;                       /* grad_x is grad_h as it is, not times scale */
} Lif;

#endif
