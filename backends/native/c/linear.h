/* The entry points of a linear kernel: y[m, N] = x[m, K] w^T (+ bias), in blocks of BLOCK_ROWS rows of the weight. */

static void prepare_task(void *data, long first, long last, int thread) {
    const linear_job *job = data;
    (void)thread;
    for (long m = first; m < last; m++)
#if FIXED
        prepare_fixed(job->input + m * K, ROW((uint8_t *)job->x, m), job->scale, job->zero);
#else
        prepare_row(job->input + m * K, ROW((uint8_t *)job->x, m));
#endif
}

static void block_task(void *data, long first, long last, int thread) {
    const linear_job *job = data;
    const long m = job->m;
    (void)thread;
#ifdef BY_TILES
    if (BY_TILES(job)) {
        multiply_by_tiles(job, first, last, thread);
        return;
    }
#endif
    if (m == 1 && STREAMS > 1) {
        const long part = (last - first) / STREAMS, end = first + part;
        for (; first < end; first++) DIRECT_STREAMS(job, first, part);
        first += (STREAMS - 1) * part;
    }
    for (long block = first; block < last; block++) multiply(job, block);
}

/* The activations in whole numbers: [m, K] numbers to m rows of ROW_BYTES. */
void qcc_prepare(const input *input, long m, uint8_t *x, float scale, int zero) {
    linear_job job = {.input = input, .x = x, .m = m, .scale = scale, .zero = zero};
    prepare_task(&job, 0, m, 0);
}

/* Some blocks of the result on the calling thread; `panel` is its PANEL_BYTES, where they are not 0. */
void qcc_blocks(const uint8_t *x, const uint8_t *w, const float *bias, float *y, long m, float alpha, uint8_t *panel,
                long first, long last) {
    linear_job job = {0, x, w, bias, y, panel, m, alpha, 0, 0};
    block_task(&job, first, last, 0);
}

/* Everything; `scale` and `zero` are of activations, where they are FIXED, else not used. `scratch` holds m rows of ROW_BYTES, then a panel for each thread; both aligned to 64 bytes. */
void qcc_linear(const input *input, const uint8_t *w, const float *bias, float *y, long m, float alpha,
                uint8_t *scratch, int threads, launch_fn launch, float scale, int zero) {
    linear_job job = {input, scratch, w, bias, y, scratch + (size_t)m * ROW_BYTES, m, alpha, scale, zero};
    if (threads <= 1 || !launch) {
        prepare_task(&job, 0, m, 0);
        block_task(&job, 0, BLOCKS, 0);
        return;
    }
    if (m < 8) prepare_task(&job, 0, m, 0);
    else launch(prepare_task, &job, m, (m + threads - 1) / threads, threads);
    const long share = (BLOCKS + threads - 1) / threads;
    /* Chunks balance threads; of few blocks they would leave too few for streams. */
    const long chunk = m > 8 ? 1 : share <= 4 * STREAMS ? share : (share + 3) / 4;
    launch(block_task, &job, BLOCKS, chunk, threads);
}
