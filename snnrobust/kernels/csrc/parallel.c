/* Threads: OpenMP, whose pool is the one that torch uses, or else threads made for the call. */
#include "common.h"

#ifdef _OPENMP
#include <omp.h>

void snn_parallel(int64_t n, int64_t grain, int threads, snn_body body, void *context) {
    int64_t most = grain > 0 ? (n + grain - 1) / grain : n;
    if (most < threads) threads = (int)most;
    if (threads <= 1) {
        if (n > 0) body(context, 0, n, 0);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
        int64_t begin = n * part / parts, end = n * (part + 1) / parts;
        if (begin < end) body(context, begin, end, (int)part);
    }
}
#else
#include <pthread.h>

typedef struct {
    snn_body body;
    void *context;
    int64_t begin, end;
    int number;
} Part;

static void *run(void *argument) {
    Part *part = argument;
    part->body(part->context, part->begin, part->end, part->number);
    return 0;
}

void snn_parallel(int64_t n, int64_t grain, int threads, snn_body body, void *context) {
    enum { MOST = 256 };
    pthread_t handles[MOST];
    Part parts[MOST];
    int started[MOST];
    int64_t most = grain > 0 ? (n + grain - 1) / grain : n;
    if (most < threads) threads = (int)most;
    if (threads > MOST) threads = MOST;
    if (threads <= 1) {
        if (n > 0) body(context, 0, n, 0);
        return;
    }
    for (int i = 0; i < threads; i++) {
        parts[i] = (Part){body, context, n * i / threads, n * (i + 1) / threads, i};
        started[i] = i > 0 && pthread_create(&handles[i], 0, run, &parts[i]) == 0;
    }
    for (int i = 0; i < threads; i++)
        if (!started[i]) run(&parts[i]);
    for (int i = 1; i < threads; i++)
        if (started[i]) pthread_join(handles[i], 0);
}
#endif
