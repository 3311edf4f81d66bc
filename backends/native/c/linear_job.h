/* What a linear kernel is called with. */

typedef void (*task_fn)(void *data, long first, long last, int thread);
typedef void (*launch_fn)(task_fn task, void *data, long count, long chunk, int threads);

typedef struct {
    const input *input;
    const uint8_t *x;       /* prepared activations, ROW_BYTES a row */
    const uint8_t *w;       /* packed weight */
    const float *bias;      /* N numbers, or none */
    float *y;               /* [m, N] */
    uint8_t *panels;        /* PANEL_BYTES a thread */
    long m;
    float alpha;            /* a factor of every result: the scale of the whole weight */
    float scale;            /* of activations, where it is FIXED, and their zero point, of codes -128 to 127 */
    int zero;
} linear_job;

#define ROWS_OF(block) ((int)(N - (block) * BLOCK_ROWS < BLOCK_ROWS ? N - (block) * BLOCK_ROWS : BLOCK_ROWS))
#define BLOCK(job, block) \
    (job)->w + (size_t)(block) * BLOCK_BYTES, (job)->y + (block) * BLOCK_ROWS, \
    (job)->bias ? (job)->bias + (block) * BLOCK_ROWS : 0, ROWS_OF(block)

/* Fetches the `which`th cache line that begins in [ahead, ahead + step); one that is there already where there is none:
   a line that is asked for twice costs more than a branch or the instruction. */
static inline void fetch_line(const uint8_t *ahead, size_t step, int which, const uint8_t *present) {
    const uint8_t *line = (const uint8_t *)(((uintptr_t)ahead + 63) & ~(uintptr_t)63) + 64 * which;
    prefetch_far(line < ahead + step ? line : present);
}
