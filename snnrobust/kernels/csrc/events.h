/* What event_product is told. The same fields, in the same order, as snnrobust.kernels.events._Events. */
#ifndef SNN_EVENTS_H
#define SNN_EVENTS_H

#include "common.h"

typedef struct {
    int64_t N, Ci, H, W, Co, Ho, Wo;          /* a linear layer has H = W = Ho = Wo = 1 */
    int64_t kh, kw, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t x_n, x_c, x_h, x_w;               /* elements between neighbours in x; x_c or x_w is 1 */
    int64_t w_o, w_c, w_tap;                  /* and in w, where the Ci * kh * kw weights of an output are consecutive */
    int64_t most;                             /* nonzero inputs above which nothing is computed */
    int32_t nchw;                             /* y is [N, Co, Ho, Wo]; else [N, Ho, Wo, Co] */
    int32_t bf16;                             /* x, w, bias and y are bfloat16, sums float32 */
    int32_t threads;
    const void *x, *w, *bias;                 /* bias [Co], or 0 */
    void *y;
    int64_t nonzero;                          /* is set to the number of nonzero inputs */
} Events;

enum { DONE, NO_MEMORY, TOO_MANY, NOT_FINITE };

#endif
