/* Threads that wait for work: `qcc_launch(task, data, count, chunk, threads)` runs task(data, first, last, thread) over
   [0, count) in chunks, and returns when all is done. Idle threads spin for a short while, then sleep. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

typedef void (*task_fn)(void *data, long first, long last, int thread);

enum { MOST = 256, SPINS = 4000 };

static struct {
    pthread_mutex_t lock, callers;
    pthread_cond_t more;
    int started;
    atomic_int running, sleeping;
    atomic_ulong call; /* number of the call << 16 | threads that take part: one word, so that no thread mixes two calls */
    atomic_long next;
    long count, chunk;
    task_fn task;
    void *data;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .callers = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static void work(int thread) {
    for (;;) {
        long first = atomic_fetch_add_explicit(&pool.next, pool.chunk, memory_order_relaxed);
        if (first >= pool.count) return;
        long last = first + pool.chunk < pool.count ? first + pool.chunk : pool.count;
        pool.task(pool.data, first, last, thread);
    }
}

static void *wait_for_work(void *argument) {
    unsigned long thread = (unsigned long)(uintptr_t)argument, seen = 0;
    for (;;) {
        unsigned long call = atomic_load_explicit(&pool.call, memory_order_acquire);
        for (int i = 0; call == seen && i < SPINS; i++) {
            pause_briefly();
            call = atomic_load_explicit(&pool.call, memory_order_acquire);
        }
        if (call == seen) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while ((call = atomic_load(&pool.call)) == seen) pthread_cond_wait(&pool.more, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = call;
        if (thread < (call & 0xffff)) {
            work((int)thread);
            atomic_fetch_sub_explicit(&pool.running, 1, memory_order_release);
        }
    }
    return 0;
}

/* A child of fork has none of the threads. */
static void forget_threads(void) {
    pthread_mutex_init(&pool.lock, 0);
    pthread_mutex_init(&pool.callers, 0);
    pthread_cond_init(&pool.more, 0);
    pool.started = 1;
    atomic_store(&pool.sleeping, 0);
    atomic_store(&pool.call, 0); /* else new threads would take part in the last call of the parent */
}

/* Threads there can be: those asked for, or as many as could be started. */
static int start_threads(int threads) {
    if (threads > MOST) threads = MOST;
    if (!pool.started) {
        pthread_atfork(0, 0, forget_threads);
        pool.started = 1;
    }
    for (; pool.started < threads; pool.started++) {
        pthread_t id;
        pthread_attr_t detached;
        pthread_attr_init(&detached);
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        int failed = pthread_create(&id, &detached, wait_for_work, (void *)(uintptr_t)pool.started);
        pthread_attr_destroy(&detached);
        if (failed) break;
    }
    return threads < pool.started ? threads : pool.started;
}

void qcc_launch(task_fn task, void *data, long count, long chunk, int threads) {
    if (threads <= 1 || count <= chunk) {
        if (count > 0) task(data, 0, count, 0);
        return;
    }
    pthread_mutex_lock(&pool.callers);
    threads = start_threads(threads);
    pool.task = task;
    pool.data = data;
    pool.count = count;
    pool.chunk = chunk;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.running, threads - 1);
    atomic_store(&pool.call, ((atomic_load(&pool.call) >> 16) + 1) << 16 | (unsigned long)threads);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.more);
        pthread_mutex_unlock(&pool.lock);
    }
    work(0);
    for (long i = 0; atomic_load_explicit(&pool.running, memory_order_acquire); i++)
        i < SPINS ? pause_briefly() : (void)sched_yield();
    pthread_mutex_unlock(&pool.callers);
}
