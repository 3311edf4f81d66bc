/* What a row kernel is called with. */

typedef void (*task_fn)(void *data, long first, long last, int thread);
typedef void (*launch_fn)(task_fn task, void *data, long count, long chunk, int threads);

typedef struct {
    const float *const *inputs;     /* in the order in which the expression reads them */
    const long *input_steps;        /* numbers from one row to the next, of tensors and of vectors [M] */
    void *const *outputs;
    const long *output_steps;       /* elements from one row to the next */
} rows_job;

/* Codes of 16 numbers: round(v / scale) + zero, between `low` and `high`; the lowest of what is no number */
INLINE void store_codes(void *p, floats v, floats scale, floats zero, floats low, floats high, int count) {
    v = divide(v, scale);
    v = min_floats(max_floats(v, sub(low, zero)), sub(high, zero));
    store_low_bytes(p, to_ints(add(round_floats(v), zero)), count);
}
