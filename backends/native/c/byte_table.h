/* The entry point of a table kernel: y[i] = table[x[i]], in tasks of CHUNK vectors of 64 bytes. One byte at a time where
   the vocabulary has no lookup in registers: BY_BYTES. */

typedef void (*task_fn)(void *data, long first, long last, int thread);
typedef void (*launch_fn)(task_fn task, void *data, long count, long chunk, int threads);

enum { CHUNK = 256 };

typedef struct {
    const uint8_t *x, *table;
    uint8_t *y;
    long count;
} table_job;

static void table_task(void *data, long first, long last, int thread) {
    const table_job *job = data;
    const uint8_t *x = job->x;
    uint8_t *y = job->y, table[256];
    const long whole = BY_BYTES ? first : job->count / 64 < last ? job->count / 64 : last;
    (void)thread;
    memcpy(table, job->table, 256); /* which no result overlaps: its vectors stay in registers */
    for (long i = first; i < whole; i++) store_bytes(y + 64 * i, lookup(load_bytes(x + 64 * i), table, 8));
    for (long i = 64 * (whole > first ? whole : first); i < 64 * last && i < job->count; i++) y[i] = table[x[i]];
}

void qcc_table(const uint8_t *x, const uint8_t *table, uint8_t *y, long count, int threads, launch_fn launch) {
    table_job job = {x, table, y, count};
    const long tasks = (count + 63) / 64;
    if (tasks <= 0) return;
    if (threads <= 1 || !launch) table_task(&job, 0, tasks, 0);
    else launch(table_task, &job, tasks, CHUNK, threads);
}
