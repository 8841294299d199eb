/* Statistics of channels over samples and places, at each step or over all, and the way back through them. */
#include "blocks.h"

typedef struct {
    const Lif *k;
    int64_t blocks;
    int *failed;
} Job;

static void moments_part(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    const Lif *k = job->k;
    float in[BLOCK], centred[BLOCK];
    float *part_sums = malloc((size_t)(2 * k->C) * sizeof(float));
    double *sums = k->sums + part * (2 * k->C * (k->norm_step ? k->T : 1));
    if (!part_sums) {
        *job->failed = 1;
        return;
    }
    for (int64_t number = begin; number < end; number++) {
        const int64_t t = number / job->blocks, i = number % job->blocks * BLOCK, n = smaller(BLOCK, k->M - i);
        const float *x = load(k->x, t * k->x_step + i, n, k->bf16, in);
        normalise(k, t, x, i, n, centred);
        accumulate(k, t, centred, x, i, n, sums, part_sums);
    }
    free(part_sums);
}

/* sums [threads, T or 1, C, 2] += of (x - mean) * scale and of its product with x - mean; `mean` is any value near the mean,
 * `scale` is 1. Returns 1 if there is no memory. */
SNN_EXPORT int SNN_NAME(norm_moments)(const Lif *k) {
    int failed = 0;
    Job job = {k, (k->M + BLOCK - 1) / BLOCK, &failed};
    snn_parallel(k->T * job.blocks, WORTH / BLOCK, k->threads, moments_part, &job);
    return failed;
}

static void backward_part(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    const Job *job = context;
    const Lif *k = job->k;
    const int constant = k->x_step == 0;
    float in[BLOCK], own[BLOCK], through[BLOCK], out[BLOCK], sum[BLOCK], slopes[BLOCK], offsets[BLOCK];
    for (int64_t number = begin; number < end; number++) {
        const int64_t t0 = constant ? 0 : number / job->blocks, t1 = constant ? k->T : t0 + 1;
        const int64_t i = number % job->blocks * BLOCK, n = smaller(BLOCK, k->M - i);
        if (constant) memset(sum, 0, sizeof sum);
        for (int64_t t = t0; t < t1; t++) {
            const int64_t row_of = t * k->norm_step;
            const float *x = load(k->x, t * k->x_step + i, n, k->bf16, in);
            const float *grad = load(k->grad, t * k->M + i, n, k->bf16, own);
            Lif own_scale = *k;
            own_scale.bias = 0;
            normalise(&own_scale, t, x, i, n, through); /* (x - mean) * scale, where scale is the way back through the variance */
            spread(k, k->slope + row_of, i, n, slopes);
            spread(k, k->bias + row_of, i, n, offsets);
            float *to = constant || k->bf16 || k->stream ? out : (float *)k->grad_x + t * k->M + i;
            SNN_SIMD for (int64_t j = 0; j < n; j++) to[j] = grad[j] * slopes[j] + through[j] + offsets[j];
            if (constant) {
                SNN_SIMD for (int64_t j = 0; j < n; j++) sum[j] += out[j];
            } else {
                store(k->grad_x, t * k->M + i, to, n, k->bf16, k->stream);
            }
        }
        if (constant && k->bf16) store(k->grad_x, i, sum, n, 1, 0);
        else if (constant) memcpy((float *)k->grad_x + i, sum, (size_t)n * sizeof(float));
    }
}

/* grad_x = grad * slope + (x - mean) * scale + bias, all three [T or 1, C]; summed over time where x_step is 0. */
SNN_EXPORT int SNN_NAME(norm_backward)(const Lif *k) {
    int failed = 0;
    const int64_t blocks = (k->M + BLOCK - 1) / BLOCK;
    Job job = {k, blocks, &failed};
    snn_parallel(k->x_step ? k->T * blocks : blocks, WORTH / BLOCK, k->threads, backward_part, &job);
    return failed;
}
