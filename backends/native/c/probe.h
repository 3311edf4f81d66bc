/* Threads that measure a processor: all start at one gate, and a rate is all their work over the time from the first start
   to the last end. Results are handed back with it, so that no work can be left out, and so is the share of that time in
   which the threads had their cores: what is missing went to other processes. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))

enum { NO_THREAD = -1, NO_TILES = -2 };

typedef struct {
    const char *base;
    long bytes, first, count, streams, ahead, level; /* of reading */
    double seconds; /* for how long to repeat */
    atomic_long next;
    atomic_int arrived, threads;
} probe_task;

typedef struct {
    probe_task *task;
    int thread;
    double begin, end, work, cpu;
    uint64_t sum;
} __attribute__((aligned(128))) probe_share; /* no line of a cache is of two threads */

/* What one thread does: bytes or operations, NO_TILES where it may not. The including file has it. */
static double probe_work(probe_task *task, int thread, double begin, uint64_t *sum);

typedef struct {
    double work, busy;
    uint64_t sum;
} probe_result;

static double read_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(void) { return read_clock(CLOCK_MONOTONIC); }

static void *run_share(void *argument) {
    probe_share *share = argument;
    probe_task *task = share->task;
    atomic_fetch_add(&task->arrived, 1);
    for (long i = 0; atomic_load(&task->arrived) < atomic_load(&task->threads); i++)
        if (i % 1000 == 999) sched_yield();
    share->begin = now();
    const double cpu = read_clock(CLOCK_THREAD_CPUTIME_ID);
    share->work = probe_work(task, share->thread, share->begin, &share->sum);
    share->cpu = read_clock(CLOCK_THREAD_CPUTIME_ID) - cpu;
    share->end = now();
    return 0;
}

/* Work a second on `threads` threads, or an error below zero. */
static double run_task(probe_task *task, int threads, probe_result *result) {
    probe_share shares[threads];
    pthread_t ids[threads];
    int started = 1;
    memset(shares, 0, sizeof shares);
    atomic_store(&task->threads, threads);
    for (int t = 0; t < threads; t++) shares[t] = (probe_share){.task = task, .thread = t};
    while (started < threads && !pthread_create(&ids[started], 0, run_share, &shares[started])) started++;
    atomic_store(&task->threads, started);
    run_share(&shares[0]);
    double begin = shares[0].begin, end = shares[0].end, cpu = shares[0].cpu;
    *result = (probe_result){.work = shares[0].work, .sum = shares[0].sum};
    for (int t = 1; t < started; t++) {
        pthread_join(ids[t], 0);
        begin = shares[t].begin < begin ? shares[t].begin : begin;
        end = shares[t].end > end ? shares[t].end : end;
        cpu += shares[t].cpu;
        result->work += shares[t].work;
        result->sum += shares[t].sum;
    }
    if (started < threads) return NO_THREAD;
    if (result->work < 0) return NO_TILES;
    result->busy = cpu / (end - begin) / threads;
    return result->work / (end - begin);
}
