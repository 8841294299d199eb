/* Uniform and normal numbers and Bernoulli spikes.
 *
 * Rows are (step, sample), a block is four elements of a row; its counter is (block, step, low and high word of the sample's
 * identity). A tile of a row is drawn at a time.
 */
#include "philox.h"

enum {
    STREAM = 1 << 20, /* spikes that do not stay in the cache anyway */
    WORTH = 32768,    /* elements a thread is worth starting for */
};

/* ---- draws --------------------------------------------------------------------------------------------------- */

SNN_INLINE float unit(uint32_t word) { return (float)(int32_t)(word >> 8) * 0x1p-24f; }

static void uniforms(const uint32_t *restrict w, int64_t n, float *restrict u) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) u[i] = unit(w[i]);
}

/* s = [u < p], or sign(p) [u < |p|] */
static void spikes(const uint32_t *restrict w, const float *restrict p, int64_t n, float *restrict s) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) s[i] = unit(w[i]) < p[i] ? 1.0f : 0.0f;
}

static void signed_spikes(const uint32_t *restrict w, const float *restrict p, int64_t n, float *restrict s) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) s[i] = unit(w[i]) < fabsf(p[i]) ? copysignf(1.0f, p[i]) : 0.0f;
}

#if defined(__AVX512F__)
/* The same for whole vectors, past the cache; how many were made. */
static int64_t stream_spikes(const uint32_t *w, const float *p, int64_t n, float *s, int with_sign) {
    const __m512 one = _mm512_set1_ps(1.0f), scale = _mm512_set1_ps(0x1p-24f);
    const __m512 sign = _mm512_set1_ps(with_sign ? -0.0f : 0.0f);
    int64_t i = 0;
    if ((uintptr_t)s & 63) return 0;
    for (; i + 16 <= n; i += 16) {
        const __m512 u = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_loadu_si512(w + i), 8)), scale);
        const __m512 rate = _mm512_loadu_ps(p + i);
        const __mmask16 fires = _mm512_cmp_ps_mask(u, _mm512_andnot_ps(sign, rate), _CMP_LT_OQ);
        _mm512_stream_ps(s + i, _mm512_maskz_or_ps(fires, one, _mm512_and_ps(sign, rate)));
    }
    return i;
}
#endif

enum { ONE = 0x3F80, SIGN = 0x8000 }; /* of bfloat16 */

static void spikes_bf16(const uint32_t *restrict w, const uint16_t *restrict p, int64_t n, uint16_t *restrict s) {
    SNN_SIMD for (int64_t i = 0; i < n; i++) s[i] = unit(w[i]) < snn_from_bf16(p[i]) ? ONE : 0;
}

static void signed_spikes_bf16(const uint32_t *restrict w, const uint16_t *restrict p, int64_t n, uint16_t *restrict s) {
    SNN_SIMD for (int64_t i = 0; i < n; i++)
        s[i] = unit(w[i]) < fabsf(snn_from_bf16(p[i])) ? (uint16_t)(ONE | (p[i] & SIGN)) : 0;
}

/* ---- rows ---------------------------------------------------------------------------------------------------- */

enum { UNIFORM, NORMAL, BERNOULLI };

typedef struct {
    Keys keys;
    const int64_t *ids;
    int64_t B, elements, start, tiles; /* tiles of a row */
    const void *p;                     /* [B, elements] */
    void *out;                         /* [T, B, elements] */
    int kind, bf16, with_sign, stream;
} Job;

static void one_tile(const Job *job, const uint32_t *w, int64_t from, int64_t to, int64_t n, void *room) {
    const int64_t size = job->bf16 ? sizeof(uint16_t) : sizeof(float);
    /* Normal numbers of all the words there are: whole vectors, and no rest. */
    const int64_t pairs = (n + AT_ONCE - 1) / AT_ONCE * AT_ONCE / 2;
    const int direct = job->kind != NORMAL || 2 * pairs == n;
    char *out = (char *)job->out + to * size;
    void *made = direct ? (void *)out : room;
    switch (job->kind) {
    case UNIFORM: uniforms(w, n, made); break;
    case NORMAL: normals(w, pairs, made); break;
    default:
#if defined(__AVX512F__)
        if (job->stream) {
            const int64_t done = stream_spikes(w, (const float *)job->p + from, n, made, job->with_sign);
            w += done, from += done, n -= done;
            made = (float *)made + done;
        }
#endif
        if (job->bf16 && job->with_sign) signed_spikes_bf16(w, (const uint16_t *)job->p + from, n, made);
        else if (job->bf16) spikes_bf16(w, (const uint16_t *)job->p + from, n, made);
        else if (job->with_sign) signed_spikes(w, (const float *)job->p + from, n, made);
        else spikes(w, (const float *)job->p + from, n, made);
    }
    if (!direct) memcpy(out, room, (size_t)(n * size));
}

static void part_of(void *context, int64_t begin, int64_t end, int part) {
    const Job *job = context;
    uint32_t w[TILE] __attribute__((aligned(64)));
    float room[TILE] __attribute__((aligned(64)));
    int64_t row = begin / job->tiles, tile = begin % job->tiles, b = row % job->B;
    uint32_t step = (uint32_t)(job->start + row / job->B);
    (void)part;
    for (int64_t i = begin; i < end; i++) {
        const int64_t at = tile * TILE, left = job->elements - at, n = left < TILE ? left : TILE;
        const uint64_t id = (uint64_t)job->ids[b];
        words(&job->keys, (uint32_t)(at / 4), step, (uint32_t)id, (uint32_t)(id >> 32), n, w);
        one_tile(job, w, b * job->elements + at, row * job->elements + at, n, room);
        if (++tile == job->tiles) {
            tile = 0;
            row++;
            if (++b == job->B) b = 0, step++;
        }
    }
#if defined(__AVX512F__)
    if (job->stream) _mm_sfence();
#endif
}

static void run(const int64_t *key, Job *job, int64_t T, int threads) {
    if (T <= 0 || job->B <= 0 || job->elements <= 0) return;
    job->keys = schedule((uint32_t)key[0], (uint32_t)key[1]);
    job->stream = job->kind == BERNOULLI && !job->bf16 && T * job->B * job->elements >= STREAM;
    job->tiles = (job->elements + TILE - 1) / TILE;
    const int64_t each = job->elements < TILE ? job->elements : TILE;
    snn_parallel(T * job->B * job->tiles, (WORTH + each - 1) / each, threads, part_of, job);
}

/* ---- what is called ------------------------------------------------------------------------------------------ */

/* key [2], ids [B]; out [T, B, elements] for the steps start, start + 1, ... */
SNN_EXPORT void SNN_NAME(philox_uniform)(
    const int64_t *key, const int64_t *ids, int64_t T, int64_t B, int64_t elements, int64_t start, float *out, int threads) {
    Job job = {.ids = ids, .B = B, .elements = elements, .start = start, .out = out, .kind = UNIFORM};
    run(key, &job, T, threads);
}

SNN_EXPORT void SNN_NAME(philox_normal)(
    const int64_t *key, const int64_t *ids, int64_t T, int64_t B, int64_t elements, int64_t start, float *out, int threads) {
    Job job = {.ids = ids, .B = B, .elements = elements, .start = start, .out = out, .kind = NORMAL};
    run(key, &job, T, threads);
}

/* p [B, elements] and out are float32, or bfloat16 where bf16 is not 0. */
SNN_EXPORT void SNN_NAME(philox_bernoulli)(
    const int64_t *key, const int64_t *ids, int64_t T, int64_t B, int64_t elements, int64_t start, const void *p, void *out,
    int bf16, int with_sign, int threads) {
    Job job = {.ids = ids, .B = B, .elements = elements, .start = start, .p = p, .out = out, .kind = BERNOULLI};
    job.bf16 = bf16;
    job.with_sign = with_sign;
    run(key, &job, T, threads);
}

/* For tests: the words of n blocks from a counter on, and the normal numbers of given words. */
SNN_EXPORT void SNN_NAME(philox_words)(const uint32_t *key, const uint32_t *counter, int64_t n, uint32_t *out) {
    uint32_t w[TILE] __attribute__((aligned(64)));
    const Keys keys = schedule(key[0], key[1]);
    for (int64_t i = 0; i < n; i += TILE / 4) {
        const int64_t m = n - i < TILE / 4 ? n - i : TILE / 4;
        words(&keys, counter[0] + (uint32_t)i, counter[1], counter[2], counter[3], 4 * m, w);
        memcpy(out + 4 * i, w, (size_t)(4 * m) * sizeof(uint32_t));
    }
}

SNN_EXPORT void SNN_NAME(philox_box_muller)(const uint32_t *words, int64_t pairs, float *out) { normals(words, pairs, out); }
