/* Statistics of channels over samples and places, at each step or over all, and the way back through them. */
#include "blocks.h"

typedef struct {
    const Lif *k;
    int64_t blocks;
    int *failed;
} Job;

/* Blocks whose sums single precision holds. */
enum { TOGETHER = 32 };

static void moments_part(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    const Lif *k = job->k;
    float in[BLOCK], centred[BLOCK];
    float *part_sums = calloc((size_t)(2 * k->C), sizeof(float));
    double *sums = k->sums + part * (2 * k->C * (k->norm_step ? k->T : 1));
    if (!part_sums) {
        *job->failed = 1;
        return;
    }
    for (int64_t number = begin; number < end; number++) {
        const int64_t t = number / job->blocks, i = number % job->blocks * BLOCK, n = smaller(BLOCK, k->M - i);
        const float *x = load(k->x, t * k->x_step + i, n, k->bf16, in);
        normalise(k, t, x, i, n, centred);
        accumulate(k, t, centred, x, i, n, part_sums);
        if (number + 1 == end || (number + 1) % job->blocks == 0 || (number + 1) % TOGETHER == 0) collect(k, t, sums, part_sums);
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

/* to = grad * slope + (x - mean) * scale + bias, of a block. */
static void combine(const Lif *k, int64_t t, const float *grad, const float *x, int64_t at, int64_t n, float *to) {
    const int64_t row = t * k->norm_step;
    Walk w = walk(k, at);
    for (int64_t i = 0, part; i < n; i += part, next_row(k, &w, part)) {
        part = smaller(n - i, w.left);
        const int64_t c = row + w.channel;
        const float *g = grad + i, *xi = x + i;
        float *y = to + i;
        if (k->inner == 1) {
            const float *m = k->mean + c, *a = k->slope + c, *b = k->scale + c, *o = k->bias + c;
            SNN_SIMD for (int64_t j = 0; j < part; j++) y[j] = g[j] * a[j] + (xi[j] - m[j]) * b[j] + o[j];
        } else {
            const float m = k->mean[c], a = k->slope[c], b = k->scale[c], o = k->bias[c];
            SNN_SIMD for (int64_t j = 0; j < part; j++) y[j] = g[j] * a + (xi[j] - m) * b + o;
        }
    }
}

static void backward_part(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    const Job *job = context;
    const Lif *k = job->k;
    const int constant = k->x_step == 0;
    float in[BLOCK], own[BLOCK], out[BLOCK], sum[BLOCK];
    for (int64_t number = begin; number < end; number++) {
        const int64_t t0 = constant ? 0 : number / job->blocks, t1 = constant ? k->T : t0 + 1;
        const int64_t i = number % job->blocks * BLOCK, n = smaller(BLOCK, k->M - i);
        if (constant) memset(sum, 0, sizeof sum);
        for (int64_t t = t0; t < t1; t++) {
            const float *x = load(k->x, t * k->x_step + i, n, k->bf16, in);
            const float *grad = load(k->grad, t * k->M + i, n, k->bf16, own);
            float *to = constant || k->bf16 || k->stream ? out : (float *)k->grad_x + t * k->M + i;
            combine(k, t, grad, x, i, n, to);
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
