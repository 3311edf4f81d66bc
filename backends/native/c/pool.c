/* Threads that wait for work: `qcc_launch(task, data, count, chunk, threads)` runs task(data, first, last, thread) over
   [0, count) in chunks, and returns when all is done. Idle threads spin for a short while, then sleep. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

typedef void (*task_fn)(void *data, long first, long last, int thread);

enum { MOST = 256, SPINS = 20000, MOST_CHUNKS = (1 << 20) - 1 };

/* A call in one word, so that no thread mixes two: its number, the threads that take part, chunks, and the next of them.
   A chunk is taken by counting the last up. Whoever finds none left has nothing to do with the call: its caller waits
   for chunks, not for threads, and one that the system does not run holds up nobody. */
enum { NEXT_BITS = 20, CHUNK_BITS = 20, THREAD_BITS = 9 };
#define FIELD(word, from, bits) ((word) >> (from) & ((1ull << (bits)) - 1))
#define NEXT(word) FIELD(word, 0, NEXT_BITS)
#define CHUNKS(word) FIELD(word, NEXT_BITS, CHUNK_BITS)
#define THREADS(word) FIELD(word, NEXT_BITS + CHUNK_BITS, THREAD_BITS)
#define CALL(word) ((word) >> (NEXT_BITS + CHUNK_BITS + THREAD_BITS))

static struct {
    pthread_mutex_t lock, callers;
    pthread_cond_t more;
    int started;
    atomic_int sleeping;
    atomic_ulong word, done; /* chunks of the call that are computed */
    long count, chunk;
    task_fn task;
    void *data;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .callers = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER};

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/* Takes chunks until there are none left; gives the number of the call that had none. */
static unsigned long work(unsigned thread) {
    unsigned long word = atomic_load_explicit(&pool.word, memory_order_acquire);
    while (thread < THREADS(word) && NEXT(word) < CHUNKS(word)) {
        if (!atomic_compare_exchange_weak_explicit(&pool.word, &word, word + 1, memory_order_acquire, memory_order_acquire))
            continue;
        const long first = (long)NEXT(word) * pool.chunk, last = first + pool.chunk;
        pool.task(pool.data, first, last < pool.count ? last : pool.count, (int)thread);
        atomic_fetch_add_explicit(&pool.done, 1, memory_order_release);
        word = atomic_load_explicit(&pool.word, memory_order_acquire);
    }
    return CALL(word);
}

static void *wait_for_work(void *argument) {
    const unsigned thread = (unsigned)(uintptr_t)argument;
    unsigned long seen = 0;
    for (;;) {
        int i = 0;
        while (CALL(atomic_load_explicit(&pool.word, memory_order_acquire)) == seen && i++ < SPINS) pause_briefly();
        if (i > SPINS) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while (CALL(atomic_load(&pool.word)) == seen) pthread_cond_wait(&pool.more, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = work(thread);
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
    atomic_store(&pool.word, 0); /* else new threads would take part in the last call of the parent */
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
    while ((count + chunk - 1) / chunk > MOST_CHUNKS) chunk *= 2;
    const unsigned long chunks = (unsigned long)((count + chunk - 1) / chunk);
    pool.task = task;
    pool.data = data;
    pool.count = count;
    pool.chunk = chunk;
    atomic_store(&pool.done, 0);
    const unsigned long call = CALL(atomic_load(&pool.word)) + 1;
    atomic_store(&pool.word, ((call << THREAD_BITS | (unsigned long)threads) << CHUNK_BITS | chunks) << NEXT_BITS);
    if (atomic_load(&pool.sleeping)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.more);
        pthread_mutex_unlock(&pool.lock);
    }
    work(0);
    for (long i = 0; atomic_load_explicit(&pool.done, memory_order_acquire) < chunks; i++)
        i < SPINS ? pause_briefly() : (void)sched_yield();
    pthread_mutex_unlock(&pool.callers);
}
