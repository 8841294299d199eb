/* Convolution and linear layer driven by events: products are made for nonzero inputs only, and sums are exact.
 *
 * 1. look: one bit for each input says whether it is nonzero, so that x is read once, in either layout.
 * 2. list: for each input pixel, where the weights of its events begin.
 * 3. pack: a slab of weights, [Ci * kh * kw, a few vectors of output channels], is made small enough for the L2 cache.
 * 4. gather: the events in the receptive field of an output pixel are brought together in one list, and their weights
 *    are added in registers. (Scattering each event to its outputs would load and store every sum once an event.)
 *
 * The weights of an event are at ci * w_c + tap * w_tap in the slab, counted in rows. Multiply and add stay apart, in the order
 * of taps and channels, so that all instruction sets give the same bits, and none depends on the other samples.
 */
#include "events.h"
#include "transpose.h"

#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX2__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif
enum { MOST_VECTORS = 8, SLAB_BYTES = 640 << 10, SLACK = 16, WORTH = 1 << 18 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    const Events *k;
    int64_t words;        /* of 64 bits, for the channels of a pixel */
    uint64_t *bits;       /* [N, H, W, words] */
    int64_t *starts;      /* [N * H * W + 1]: where the list of a pixel begins */
    int32_t *rows;        /* of the slab, before the tap is added */
    float *values;        /* beside them, or 0 where all are one */
    int64_t tilt;         /* rows between neighbouring pixels of a line: see field() */
    float *slab;
    int64_t first, vectors; /* the output channel at which the slab begins, and its width */
    int odd, endless, failed;
} Job;

SNN_INLINE float at(const void *x, int64_t i, int bf16) {
    return bf16 ? snn_from_bf16(((const uint16_t *)x)[i]) : ((const float *)x)[i];
}

/* ---- look ---------------------------------------------------------------------------------------------------- */

/* Which of up to 64 values are not zero (NaN is not); `odd` is set where one is neither zero nor one. */
SNN_INLINE uint64_t nonzero_float(const float *x, int64_t n, int *odd) {
    uint64_t found = 0, other = 0;
    int64_t i = 0;
#if defined(__AVX512F__)
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    for (; i < n; i += 16) {
        const __mmask16 here = n - i >= 16 ? 0xFFFF : (__mmask16)((1u << (n - i)) - 1);
        const __m512 v = _mm512_maskz_loadu_ps(here, x + i);
        const __mmask16 m = _mm512_cmp_ps_mask(v, zero, _CMP_NEQ_UQ);
        found |= (uint64_t)m << i;
        other |= _mm512_mask_cmp_ps_mask(m, v, one, _CMP_NEQ_UQ);
    }
#elif defined(__AVX2__)
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
    for (; i + 8 <= n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i), m = _mm256_cmp_ps(v, zero, _CMP_NEQ_UQ);
        found |= (uint64_t)_mm256_movemask_ps(m) << i;
        other |= (uint64_t)_mm256_movemask_ps(_mm256_and_ps(m, _mm256_cmp_ps(v, one, _CMP_NEQ_UQ)));
    }
#endif
    for (; i < n; i++) {
        found |= (uint64_t)(x[i] != 0.0f) << i;
        other |= (uint64_t)(x[i] != 0.0f && x[i] != 1.0f);
    }
    *odd |= other != 0;
    return found;
}

SNN_INLINE uint64_t nonzero_bf16(const uint16_t *x, int64_t n, int *odd) {
    uint64_t found = 0;
    int other = 0;
#if defined(__AVX512BW__)
    for (int64_t i = 0; i < n; i += 32) {
        const __mmask32 here = n - i >= 32 ? 0xFFFFFFFFu : (1u << (n - i)) - 1;
        const __m512i v = _mm512_maskz_loadu_epi16(here, x + i);
        const __mmask32 m = _mm512_test_epi16_mask(v, _mm512_set1_epi16(0x7FFF));
        found |= (uint64_t)m << i;
        other |= _mm512_mask_cmpneq_epi16_mask(m, v, _mm512_set1_epi16(0x3F80)) != 0;
    }
#else
    for (int64_t i = 0; i < n; i++) {
        const int nonzero = (x[i] & 0x7FFF) != 0;
        found |= (uint64_t)nonzero << i;
        other |= nonzero & (x[i] != 0x3F80);
    }
#endif
    *odd |= other;
    return found;
}

SNN_INLINE uint64_t nonzero_of(const Events *k, int64_t i, int64_t n, int *odd) {
    return k->bf16 ? nonzero_bf16((const uint16_t *)k->x + i, n, odd) : nonzero_float((const float *)k->x + i, n, odd);
}

/* Where channels are not consecutive: bits [W, words] of a line of pixels. */
static void look_across(const Job *job, int64_t from, uint64_t *bits, int *odd) {
    const Events *k = job->k;
    int64_t w = 0;
#if defined(__AVX512BW__)
    for (; w < k->W; w += 16) { /* 64 channels of 16 pixels are turned at a time */
        const int64_t pixels = smaller(16, k->W - w);
        for (int64_t c = 0; c < k->Ci; c += 64) {
            uint16_t of_channel[64] = {0};
            for (int64_t i = 0; i < smaller(64, k->Ci - c); i++)
                of_channel[i] = (uint16_t)nonzero_of(k, from + (c + i) * k->x_c + w, pixels, odd);
            const __m512i low = _mm512_loadu_si512(of_channel), high = _mm512_loadu_si512(of_channel + 32);
            for (int64_t p = 0; p < pixels; p++) {
                const __m512i one = _mm512_set1_epi16((int16_t)(1u << p));
                bits[(w + p) * job->words + (c >> 6)] =
                    (uint64_t)_mm512_test_epi16_mask(high, one) << 32 | _mm512_test_epi16_mask(low, one);
            }
        }
    }
#else
    memset(bits, 0, (size_t)(k->W * job->words) * sizeof(uint64_t));
    for (; w < k->W; w += 64)
        for (int64_t c = 0; c < k->Ci; c++)
            for (uint64_t found = nonzero_of(k, from + c * k->x_c + w, smaller(64, k->W - w), odd); found; found &= found - 1)
                bits[(w + __builtin_ctzll(found)) * job->words + (c >> 6)] |= UINT64_C(1) << (c & 63);
#endif
}

/* Lines (n, h) of x. */
static void look(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    Job *job = context;
    const Events *k = job->k;
    int odd = 0;
    for (int64_t line = begin; line < end; line++) {
        const int64_t from = line / k->H * k->x_n + line % k->H * k->x_h;
        uint64_t *bits = job->bits + line * k->W * job->words;
        if (k->x_c != 1) {
            look_across(job, from, bits, &odd);
            continue;
        }
        for (int64_t w = 0; w < k->W; w++)
            for (int64_t c = 0; c < k->Ci; c += 64)
                *bits++ = nonzero_of(k, from + w * k->x_w + c, smaller(64, k->Ci - c), &odd);
    }
    if (odd) __atomic_store_n(&job->odd, 1, __ATOMIC_RELAXED);
}

/* ---- list ---------------------------------------------------------------------------------------------------- */

static void list(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    const Job *job = context;
    const Events *k = job->k;
    for (int64_t row = begin; row < end; row++) {
        const int64_t from = row / k->H * k->x_n + row % k->H * k->x_h;
        for (int64_t w = 0; w < k->W; w++) {
            const uint64_t *bits = job->bits + (row * k->W + w) * job->words;
            int64_t j = job->starts[row * k->W + w];
            for (int64_t word = 0; word < job->words; word++)
                for (uint64_t left = bits[word]; left; left &= left - 1) {
                    const int64_t c = word * 64 + __builtin_ctzll(left);
                    if (job->values) job->values[j] = at(k->x, from + w * k->x_w + c * k->x_c, k->bf16);
                    job->rows[j++] = (int32_t)(c * k->w_c + w * job->tilt);
                }
        }
    }
}

/* ---- pack ---------------------------------------------------------------------------------------------------- */

/* Weights begin to end of each output of the slab. */
static void pack(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    enum { STRIP = 128 };
    Job *job = context;
    const Events *k = job->k;
    const int64_t width = job->vectors * LANES, m = smaller(width, k->Co - job->first);
    float room[8 * STRIP];
    for (int64_t j = begin; j < end; j += STRIP) {
        const int64_t n = smaller(STRIP, end - j);
        uint32_t endless = 0;
        for (int64_t i = 0; i < m; i += 8) {
            const int64_t some = smaller(8, m - i);
            const float *from = room;
            int64_t step = STRIP;
            if (k->bf16) {
                for (int64_t q = 0; q < some; q++) {
                    const uint16_t *words = (const uint16_t *)k->w + (job->first + i + q) * k->w_o + j;
                    for (int64_t p = 0; p < n; p++) room[q * STRIP + p] = snn_from_bf16(words[p]);
                }
            } else {
                from = (const float *)k->w + (job->first + i) * k->w_o + j;
                step = k->w_o;
            }
            for (int64_t q = 0; q < some; q++)
                for (int64_t p = 0; p < n; p++) {
                    uint32_t word;
                    memcpy(&word, from + q * step + p, 4);
                    endless |= (word & 0x7F800000u) == 0x7F800000u;
                }
            transpose(from, step, job->slab + j * width + i, width, some, n);
        }
        if (endless) __atomic_store_n(&job->endless, 1, __ATOMIC_RELAXED);
        for (int64_t i = m; i < width; i++)
            for (int64_t q = j; q < j + n; q++) job->slab[q * width + i] = 0;
    }
}

/* ---- gather -------------------------------------------------------------------------------------------------- */

/* out = bias + the sum of the rows of the slab, times the values of their events unless these are all one. */
SNN_INLINE void add_rows(
    const float *restrict slab, const int32_t *restrict rows, const float *restrict values, int64_t n, const float *bias,
    float *out, int vectors
) {
    vec sum[MOST_VECTORS];
    for (int q = 0; q < vectors; q++) sum[q] = *(const vec *)(bias + q * LANES);
    for (int64_t j = 0; j < n; j++) {
        const float *w = slab + (int64_t)rows[j] * (vectors * LANES);
        if (values)
            for (int q = 0; q < vectors; q++) sum[q] += *(const vec *)(w + q * LANES) * values[j];
        else
            for (int q = 0; q < vectors; q++) sum[q] += *(const vec *)(w + q * LANES);
    }
    for (int q = 0; q < vectors; q++) *(vec *)(out + q * LANES) = sum[q];
}

#define WIDTH(V)                                                       \
    case V:                                                            \
        if (values) add_rows(slab, rows, values, n, bias, out, V);     \
        else add_rows(slab, rows, 0, n, bias, out, V);                 \
        break;

static void add_events(
    const float *slab, const int32_t *rows, const float *values, int64_t n, const float *bias, float *out, int64_t vectors
) {
    switch (vectors) { WIDTH(1) WIDTH(2) WIDTH(3) WIDTH(4) WIDTH(5) WIDTH(6) WIDTH(7) WIDTH(8) }
}

/* The events of pixels begin to end of an input line, whose rows are moved; may write SLACK - 1 past their end. */
SNN_INLINE int64_t join(const Job *job, int64_t begin, int64_t end, int64_t moved, int32_t *rows, float *values) {
    const int64_t from = job->starts[begin], events = job->starts[end] - from;
    const int32_t *next = job->rows + from;
    const ivec by = (ivec){0} + (int32_t)moved;
    *(ivec *)rows = *(const ivec *)next + by; /* mostly all of them, so that no branch has to be foretold */
    for (int64_t e = LANES; e < events; e += LANES) *(ivec *)(rows + e) = *(const ivec *)(next + e) + by;
    if (values) memcpy(values, job->values + from, (size_t)events * sizeof(float));
    return events;
}

/* The events in the receptive field of an output. In an input line, the weights of an event at pixel w are those of tap
 * w - left: with w already in the list, all taps of a line are moved by the same number. */
static int64_t field(const Job *job, int64_t n, int64_t ho, int64_t wo, int32_t *rows, float *values) {
    const Events *k = job->k;
    const int64_t top = ho * k->stride_h - k->pad_h, left = wo * k->stride_w - k->pad_w;
    const int64_t begin = left < 0 ? 0 : smaller(left, k->W), end = left + k->kw < 0 ? 0 : smaller(left + k->kw, k->W);
    int64_t found = 0;
    for (int64_t i = 0; i < k->kh; i++) {
        const int64_t h = top + i * k->dilation_h, line = (n * k->H + h) * k->W, tap = i * k->kw * k->w_tap;
        if (h < 0 || h >= k->H) continue;
        if (k->dilation_w == 1) {
            found += join(job, line + begin, line + end, tap - left * job->tilt, rows + found, values ? values + found : 0);
            continue;
        }
        for (int64_t j = 0; j < k->kw; j++) {
            const int64_t w = left + j * k->dilation_w;
            if (w < 0 || w >= k->W) continue;
            const int64_t moved = tap + j * k->w_tap - w * job->tilt;
            found += join(job, line + w, line + w + 1, moved, rows + found, values ? values + found : 0);
        }
    }
    return found;
}

/* A row of outputs [Wo, width] goes where it belongs. */
static void put(const Job *job, int64_t n, int64_t ho, const float *row, int64_t width) {
    const Events *k = job->k;
    const int64_t m = smaller(width, k->Co - job->first), step = k->nchw ? k->Ho * k->Wo : 1;
    const int64_t begin = k->nchw ? (n * k->Co + job->first) * k->Ho * k->Wo + ho * k->Wo : (n * k->Ho + ho) * k->Wo * k->Co + job->first;
    const int64_t next = k->nchw ? 1 : k->Co;
    if (k->bf16) {
        uint16_t *y = (uint16_t *)k->y + begin;
        for (int64_t w = 0; w < k->Wo; w++)
            for (int64_t c = 0; c < m; c++) y[w * next + c * step] = snn_to_bf16(row[w * width + c]);
    } else if (k->nchw) {
        transpose(row, width, (float *)k->y + begin, step, k->Wo, m);
    } else {
        for (int64_t w = 0; w < k->Wo; w++) memcpy((float *)k->y + begin + w * next, row + w * width, (size_t)m * sizeof(float));
    }
}

/* Rows (n, ho) of y. */
static void gather(void *context, int64_t begin, int64_t end, int part) {
    (void)part;
    Job *job = context;
    const Events *k = job->k;
    const int64_t width = job->vectors * LANES, most = k->kh * k->kw * k->Ci + SLACK;
    const int single = k->kh * k->kw == 1 && k->stride_h == 1 && k->stride_w == 1 && !k->pad_h && !k->pad_w;
    const int direct = !k->bf16 && !k->nchw && job->first + width <= k->Co;
    float bias[MOST_VECTORS * LANES] = {0};
    int32_t *rows = malloc((size_t)most * (sizeof(int32_t) + sizeof(float)));
    float *room = malloc((size_t)(k->Wo * width) * sizeof(float));
    if (!rows || !room) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        free(rows);
        free(room);
        return;
    }
    float *values = job->values ? (float *)(rows + most) : 0;
    if (k->bias)
        for (int64_t c = 0; c < width && job->first + c < k->Co; c++) bias[c] = at(k->bias, job->first + c, k->bf16);
    for (int64_t row = begin; row < end; row++) {
        const int64_t n = row / k->Ho, ho = row % k->Ho;
        for (int64_t wo = 0; wo < k->Wo; wo++) {
            float *out = direct ? (float *)k->y + (row * k->Wo + wo) * k->Co + job->first : room + wo * width;
            if (single) {
                const int64_t *starts = job->starts + row * k->W + wo;
                const float *of = job->values ? job->values + starts[0] : 0;
                add_events(job->slab, job->rows + starts[0], of, starts[1] - starts[0], bias, out, job->vectors);
            } else {
                const int64_t found = field(job, n, ho, wo, rows, values);
                add_events(job->slab, rows, values, found, bias, out, job->vectors);
            }
        }
        if (!direct) put(job, n, ho, room, width);
    }
    free(rows);
    free(room);
}

/* ---- what is called ------------------------------------------------------------------------------------------ */

static int64_t count(Job *job, int64_t pixels) {
    int64_t sum = 0;
    for (int64_t p = 0; p < pixels; p++) {
        job->starts[p] = sum;
        for (int64_t word = 0; word < job->words; word++) sum += __builtin_popcountll(job->bits[p * job->words + word]);
    }
    return job->starts[pixels] = sum;
}

static int product(Job *job, const Events *k) {
    const int64_t K = k->Ci * k->kh * k->kw, vectors = (k->Co + LANES - 1) / LANES;
    int64_t most = SLAB_BYTES / (K * LANES * (int64_t)sizeof(float));
    most = most < 1 ? 1 : smaller(most, MOST_VECTORS);
    const int64_t slabs = (vectors + most - 1) / most, each = (vectors + slabs - 1) / slabs;
    job->slab = malloc((size_t)(K * each * LANES) * sizeof(float));
    if (!job->slab) return NO_MEMORY;
    const int64_t outputs = k->N * k->Ho, work = k->nonzero * k->kh * k->kw / (outputs ? outputs : 1) * each * LANES + 1;
    for (int64_t slab = 0; slab < slabs; slab++) {
        job->first = slab * each * LANES;
        job->vectors = smaller(each, vectors - slab * each);
        if (job->vectors <= 0) break;
        snn_parallel(K, WORTH / (each * LANES), k->threads, pack, job);
        if (job->endless) return NOT_FINITE;
        snn_parallel(outputs, (WORTH + work - 1) / work, k->threads, gather, job);
        if (job->failed) return NO_MEMORY;
    }
    return DONE;
}

static int run(Job *job, Events *k) {
    const int64_t pixels = k->N * k->H * k->W;
    job->words = (k->Ci + 63) / 64;
    job->tilt = k->kw > 1 ? k->w_tap : 0;
    job->bits = malloc((size_t)(pixels * job->words + 1) * sizeof(uint64_t));
    job->starts = malloc((size_t)(pixels + 1) * sizeof(int64_t));
    if (!job->bits || !job->starts) return NO_MEMORY;
    snn_parallel(k->N * k->H, WORTH / (k->W * k->Ci + 1) + 1, k->threads, look, job);
    k->nonzero = count(job, pixels);
    if (k->nonzero > k->most) return TOO_MANY;
    job->rows = malloc((size_t)(k->nonzero + SLACK) * sizeof(int32_t));
    if (job->odd) job->values = malloc((size_t)(k->nonzero + SLACK) * sizeof(float));
    if (!job->rows || (job->odd && !job->values)) return NO_MEMORY;
    memset(job->rows + k->nonzero, 0, SLACK * sizeof(int32_t)); /* read past the last list */
    snn_parallel(k->N * k->H, WORTH / (k->W * k->Ci + 1) + 1, k->threads, list, job);
    return product(job, k);
}

/* DONE; TOO_MANY nonzero inputs, or a weight that is NOT_FINITE: then y is not the product, which is left to the caller. */
SNN_EXPORT int SNN_NAME(event_product)(Events *k) {
    Job job = {.k = k};
    const int result = run(&job, k);
    free(job.bits);
    free(job.starts);
    free(job.rows);
    free(job.values);
    free(job.slab);
    return result;
}
