/* Calls every kernel on random shapes, each buffer a heap block of exactly its size, so that a sanitizer sees any step outside.
 *
 * driver CALLS THREADS. A new kernel is covered by a function that makes one random call of it, and a line in `kernels`.
 */
#include <stdio.h>

#include "lif.h"

#ifndef SNN_ISA
#error "compile with -DSNN_ISA=portable, avx2 or avx512"
#endif

int SNN_NAME(lif_forward)(const Lif *k);
int SNN_NAME(lif_backward)(const Lif *k);
int SNN_NAME(norm_moments)(const Lif *k);
int SNN_NAME(norm_backward)(const Lif *k);

/* ---- chance, and memory that is given back together ----------------------------------------------------------- */

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

/* ---- LIF and normalisation ------------------------------------------------------------------------------------ */

/* A shape: mostly small, at times around a block (512) or a tile (16384). */
static Lif shape(int threads) {
    static const int64_t channels[] = {1, 1, 2, 3, 7, 64, 511, 512, 513, 700}, inners[] = {1, 1, 2, 9, 36, 100, 511, 512, 513};
    static const int64_t batches[] = {1, 1, 2, 3, 5}, steps[] = {1, 1, 2, 3, 5, 20, 200};
    Lif k = {0};
    do {
        k.T = one_of(steps, 7);
        k.C = one_of(channels, 10);
        k.inner = one_of(inners, 9);
        k.M = one_of(batches, 5) * k.C * k.inner;
    } while (k.T * k.M > (chance(20) ? 60000 : 400000));
    k.x_step = chance(3) ? k.M : 0;
    k.bf16 = (int)chance(2);
    k.stream = (int)chance(2);
    k.threads = 1 + (int)chance((uint64_t)threads);
    return k;
}

static int64_t rows(const Lif *k) { return k->norm_step ? k->T : 1; }
static int64_t inputs(const Lif *k) { return k->x_step ? k->T * k->M : k->M; }

static void statistics(Lif *k, int biased) {
    k->norm_step = chance(2) && k->T > 1 ? k->C : 0;
    k->mean = reals(rows(k) * k->C, -1, 1);
    k->scale = reals(rows(k) * k->C, 0.2f, 2);
    if (biased) k->bias = reals(rows(k) * k->C, -1, 1);
}

static void room_for_sums(Lif *k) {
    const size_t n = (size_t)(k->threads * rows(k) * k->C * 2);
    k->sums = block(n * sizeof(double));
    memset(k->sums, 0, n * sizeof(double));
}

static Lif neurons(int threads) {
    Lif k = shape(threads);
    k.decay = real(0, 1);
    k.threshold = real(0.3f, 1.5f);
    k.hard = (int)chance(2);
    k.detach = (int)chance(2);
    k.refractory = chance(2) ? 0 : (int)chance(4);
    k.x = values(inputs(&k), k.bf16, -0.5f, 1.5f);
    if (chance(2)) k.decays = reals(k.C, 0, 1);
    if (chance(2)) k.thresholds = reals(k.C, 0.3f, 1.5f);
    if (chance(2)) k.v0 = reals(k.M, -1, 1);
    if (chance(3) == 0) k.quiet0 = reals(k.M, 1, 9);
    if (chance(2)) statistics(&k, (int)chance(2));
    return k;
}

static int lif_forward_once(int threads) {
    Lif k = neurons(threads);
    k.s = room(k.T * k.M, k.bf16);
    if (chance(2)) k.h = room(k.T * k.M, 0);
    if (chance(2)) k.v_last = room(k.M, 0);
    if ((k.refractory || k.quiet0) && chance(2)) k.quiet_last = room(k.M, 0);
    return SNN_NAME(lif_forward)(&k);
}

static int lif_backward_once(int threads) {
    static const float as[] = {1, 0.5f, 3, 3, 0.6f, -1.4f, 0.9f, 0, 0.8f, 0}, bs[] = {3, 0.4f, 0, 0, 0.8f, 0.7f, 1.1f, 0, 0.4f, 0};
    Lif k = neurons(threads);
    k.kind = (int)chance(GIVEN + 1);
    k.a = as[k.kind];
    k.b = bs[k.kind];
    k.grad = values(k.T * k.M, k.bf16, -1, 1);
    if (k.kind == GIVEN) k.slope = reals(k.T * k.M, 0, 1);
    if (chance(2)) k.saved_h = reals(k.T * k.M, -1, 2);
    if (chance(2)) k.grad_v_last = reals(k.M, -1, 1);
    if (chance(2)) k.grad_v0 = room(k.M, 0);
    if (chance(2)) k.grad_decay = room(k.M, 0);
    if (chance(2)) k.grad_threshold = room(k.M, 0);
    if (k.mean && chance(2)) room_for_sums(&k);
    k.unscaled = k.mean && chance(2);
    k.grad_x = room(k.x_step || k.unscaled ? k.T * k.M : k.M, k.bf16);
    return SNN_NAME(lif_backward)(&k);
}

static int norm_moments_once(int threads) {
    Lif k = shape(threads);
    k.x_step = k.M;
    k.x = values(inputs(&k), k.bf16, -2, 2);
    statistics(&k, 0);
    room_for_sums(&k);
    return SNN_NAME(norm_moments)(&k);
}

static int norm_backward_once(int threads) {
    Lif k = shape(threads);
    k.x = values(inputs(&k), k.bf16, -2, 2);
    statistics(&k, 1);
    k.slope = reals(rows(&k) * k.C, -1, 1);
    k.grad = values(k.T * k.M, k.bf16, -1, 1);
    k.grad_x = k.x_step && chance(2) ? (void *)k.grad : room(inputs(&k), k.bf16); /* in place, too */
    return SNN_NAME(norm_backward)(&k);
}

/* ---- all of them ---------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*once)(int threads); /* one random call; not 0 where it failed */
} kernels[] = {
    {"lif_forward", lif_forward_once},
    {"lif_backward", lif_backward_once},
    {"norm_moments", norm_moments_once},
    {"norm_backward", norm_backward_once},
};

int main(int count, char **words) {
    const int calls = count > 1 ? atoi(words[1]) : 100, threads = count > 2 ? atoi(words[2]) : 2;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        for (int call = 0; call < calls; call++) {
            const uint64_t before = state;
            if (kernels[i].once(threads)) {
                fprintf(stderr, "%s failed at call %d, state %llu\n", kernels[i].name, call, (unsigned long long)before);
                return 1;
            }
            give_back();
        }
        printf("%s: %d calls\n", kernels[i].name, calls);
    }
    return 0;
}
