/* The entry point of a convolution kernel: tasks are chunks of rows by groups of VECTORS blocks of channels. */

enum { GROUPS = (BLOCKS + VECTORS - 1) / VECTORS };

static inline void fill_halo(output *y, long count, int zero) {
    for (long i = 0; i < 16 * count; i++) y[i] = (output)zero;
}

/* The halo of a plane beside rows [first, end), and above and below where they are the first or the last. */
static void halo_of(const conv_job *job, output *plane, long first, long end) {
    const long width = Y_ROW / 16;
    const int zero = sizeof(output) == 1 ? job->zero : 0;
    if (HALO_TOP && first == 0) fill_halo(plane, HALO_TOP * width, zero);
    if (HALO_BOTTOM && end == HEIGHT) fill_halo(plane + (HALO_TOP + HEIGHT) * Y_ROW, HALO_BOTTOM * width, zero);
    for (long row = HALO_TOP + first; row < HALO_TOP + end; row++) {
        if (HALO_LEFT) fill_halo(plane + row * Y_ROW, HALO_LEFT, zero);
        if (HALO_RIGHT) fill_halo(plane + row * Y_ROW + 16 * (HALO_LEFT + WIDTH), HALO_RIGHT, zero);
    }
}

static void conv_task(void *data, long first_task, long last_task, int thread) {
    const conv_job *job = data;
    (void)thread;
    for (long task = first_task; task < last_task; task++) {
        const long block = task % GROUPS * VECTORS, part = task / GROUPS % CHUNKS, image = task / (GROUPS * CHUNKS);
        const long first = part * CHUNK, end = part == CHUNKS - 1 ? HEIGHT : first + CHUNK;
        const long vectors = block + VECTORS <= BLOCKS ? VECTORS : BLOCKS - block;
        const uint8_t *x = job->x + image * X_IMAGE + FIRST_OF(block) * X_PLANE + X_FIRST;
        const int8_t *w = job->w + block * WEIGHT_BLOCK;
        output *y = job->y + image * Y_IMAGE + block * Y_PLANE;
        if (HALO_TOP | HALO_LEFT | HALO_BOTTOM | HALO_RIGHT)
            for (long v = 0; v < vectors; v++) halo_of(job, y + v * Y_PLANE, first, end);
        y += Y_FIRST;
        for (long r = first; r < end; r += ROWS) {
            const long row = r + ROWS <= end ? r : end - ROWS;
            const long below = r + 2 * ROWS <= end ? r + ROWS : end - ROWS;
            for (long q = 0; q < WIDTH; q += COLUMNS) {
                const long column = q + COLUMNS <= WIDTH ? q : WIDTH - COLUMNS;
                const uint8_t *here = x + row * X_ROW + column * X_PIXEL;
                const uint8_t *next = q + COLUMNS < WIDTH ? here + COLUMNS * X_PIXEL : x + below * X_ROW;
                /* pixels are new to the cache for the first channels, the next weight for the first tile */
                const int fetch = DEPTHWISE || block == 0 || (r == first && q == 0);
                tile(vectors, fetch, job, here, next, w, y + row * Y_ROW + column * 16, block);
            }
        }
    }
}

void qcc_conv(const uint8_t *x, const int8_t *w, const int32_t *start, const float *scale, output *y, long images,
              const int *codes, const float *clamp, int threads, launch_fn launch) {
    conv_job job = {x, w, start, scale, y, codes[0], codes[1], codes[2], clamp[0], clamp[1]};
    const long tasks = images * CHUNKS * GROUPS;
    if (threads <= 1 || !launch) conv_task(&job, 0, tasks, 0);
    else launch(conv_task, &job, tasks, 1, threads);
}
