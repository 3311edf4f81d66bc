/* How fast memory and caches are read; `sum` is the sum of all 64-bit words that were read. */
#if defined(__AVX512F__)
enum { WIDTH = 64 };
#elif defined(__AVX__)
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif
enum { LINE = 64, CHUNK = 1 << 20, PARTS = LINE / WIDTH, GAP = 4 };
typedef uint64_t vec __attribute__((vector_size(WIDTH), may_alias));

/* The sum of `streams` streams side by side, each of `lines` lines; what lies `ahead` bytes ahead is fetched into L1 or L2. */
INLINE uint64_t read_streams(const char *p, long lines, int streams, long ahead, int level) {
    vec acc[8];
    memset(acc, 0, sizeof acc);
    for (long i = 0; i < lines; i++) {
#pragma GCC unroll 8
        for (int s = 0; s < streams; s++) {
            const char *line = p + (s * lines + i) * LINE;
            if (level == 1) __builtin_prefetch(line + ahead, 0, 3);
            if (level == 2) __builtin_prefetch(line + ahead, 0, 2);
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) acc[s] += *(const vec *)(line + part * WIDTH);
        }
    }
    uint64_t sum = 0;
    for (int s = 0; s < streams; s++)
        for (int i = 0; i < WIDTH / 8; i++) sum += acc[s][i];
    return sum;
}

#define OF_LEVEL(level)                                              \
    switch (streams) {                                               \
    case 1: return read_streams(p, lines, 1, ahead, level);          \
    case 2: return read_streams(p, lines, 2, ahead, level);          \
    case 4: return read_streams(p, lines, 4, ahead, level);          \
    default: return read_streams(p, lines, 8, ahead, level);         \
    }

static uint64_t read_without(const char *p, long lines, long streams) { const long ahead = 0; OF_LEVEL(0) }
static uint64_t read_into_l1(const char *p, long lines, long streams, long ahead) { OF_LEVEL(1) }
static uint64_t read_into_l2(const char *p, long lines, long streams, long ahead) { OF_LEVEL(2) }

/* Again and again through a part of each thread's own, which a cache holds; four lines a step. */
static double read_own(probe_task *task, int thread, double begin, uint64_t *sum) {
    enum { VECS = 4 * PARTS };
    const vec *own = (const vec *)(task->base + thread * task->bytes);
    const long steps = task->bytes / LINE / 4, repeats = 1 + CHUNK / task->bytes;
    uint64_t total = 0;
    double bytes = 0;
    do {
        vec acc[VECS];
        memset(acc, 0, sizeof acc);
        for (long r = 0; r < repeats; r++) {
            for (long i = 0; i < steps; i++)
#pragma GCC unroll 16
                for (int v = 0; v < VECS; v++) acc[v] += own[i * VECS + v];
            __asm__ volatile("" : : : "memory"); /* what was read before may have changed */
        }
        for (int v = 0; v < VECS; v++)
            for (int i = 0; i < WIDTH / 8; i++) total += acc[v][i];
        bytes += (double)(repeats * steps * LINE * 4);
    } while (now() - begin < task->seconds);
    *sum = total;
    return bytes;
}

/* Chunks `first` to `first + count` of a ring, taken by whoever is free. Streams start GAP lines short of a power of two
   apart: else all of them would want the same lines of a cache. */
static double probe_work(probe_task *task, int thread, double begin, uint64_t *sum) {
    if (!task->count) return read_own(task, thread, begin, sum);
    const long lines = CHUNK / LINE / task->streams - GAP, chunks = task->bytes / CHUNK;
    double bytes = 0;
    for (long i; (i = atomic_fetch_add(&task->next, 1)) < task->count; bytes += (double)(lines * LINE * task->streams)) {
        const char *p = task->base + (task->first + i) % chunks * CHUNK;
        *sum += task->ahead == 0   ? read_without(p, lines, task->streams)
                : task->level == 1 ? read_into_l1(p, lines, task->streams, task->ahead)
                                   : read_into_l2(p, lines, task->streams, task->ahead);
    }
    return bytes;
}

double qcc_read(const char *base, long bytes, long first, long count, long streams, long ahead, long level, int threads,
                probe_result *result) {
    probe_task task = {.base = base, .bytes = bytes, .first = first, .count = count, .streams = streams, .ahead = ahead,
                       .level = level};
    return run_task(&task, threads, result);
}

/* `bytes` a thread: a multiple of 256. */
double qcc_read_own(const char *base, long bytes, double seconds, int threads, probe_result *result) {
    probe_task task = {.base = base, .bytes = bytes, .seconds = seconds};
    return run_task(&task, threads, result);
}
