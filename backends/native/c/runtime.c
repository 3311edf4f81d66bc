/* What the kernels of a compiled network share: how many threads take part, and memory for one call at a time. */
#include <stdlib.h>
#include <string.h>

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

/* y [outer, count] of pieces of `bytes`: those of x [outer, extent] at `places`, which count from the end where they are
   negative. 1 where one is not there. */
int qcc_gather(const uint8_t *x, const int64_t *places, uint8_t *y, int64_t outer, int64_t extent, int64_t count,
               int64_t bytes) {
    for (int64_t i = 0; i < count; i++)
        if (places[i] >= extent || places[i] < -extent) return 1;
    for (int64_t o = 0; o < outer; o++, x += extent * bytes)
        for (int64_t i = 0; i < count; i++, y += bytes)
            memcpy(y, x + (places[i] < 0 ? places[i] + extent : places[i]) * bytes, (size_t)bytes);
    return 0;
}
