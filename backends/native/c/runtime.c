/* What the kernels of a compiled network share: how many threads take part, and memory for one call at a time. */
#include <stdlib.h>

int qcc_threads = 1;

void qcc_set_threads(int threads) { qcc_threads = threads < 1 ? 1 : threads > MOST ? MOST : threads; }

/* Memory that grows to the largest call and stays. Where there is none left, the process cannot go on. */
void *qcc_scratch(size_t bytes) {
    static _Thread_local void *memory;
    static _Thread_local size_t held;
    if (bytes > held) {
        free(memory);
        held = bytes + bytes / 4 + 4096;
        if (posix_memalign(&memory, 64, held)) abort();
    }
    return memory;
}
