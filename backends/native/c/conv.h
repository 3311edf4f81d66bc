/* The entry point of a convolution kernel: tasks are chunks of rows by groups of VECTORS blocks of channels. */

enum { GROUPS = (BLOCKS + VECTORS - 1) / VECTORS };

static inline void fill_halo(output *y, long count, int zero) {
    for (long i = 0; i < 16 * count; i++) y[i] = (output)zero;
}

/* The halo of a plane beside rows [first, end), and above and below where they are the first or the last. */
static void halo_of(const conv_job *job, output *plane, long first, long end) {
    const long row_bytes = job->y_row, width = row_bytes / 16;
    const int zero = sizeof(output) == 1 ? job->zero : 0;
    if (HALO_TOP && first == 0) fill_halo(plane, HALO_TOP * width, zero);
    if (HALO_BOTTOM && end == job->height)
        fill_halo(plane + (HALO_TOP + job->height) * row_bytes, HALO_BOTTOM * width, zero);
    for (long row = HALO_TOP + first; row < HALO_TOP + end; row++) {
        if (HALO_LEFT) fill_halo(plane + row * row_bytes, HALO_LEFT, zero);
        if (HALO_RIGHT) fill_halo(plane + row * row_bytes + 16 * (HALO_LEFT + job->width), HALO_RIGHT, zero);
    }
}

static inline long chunks_of(long height) { return CHUNK && CHUNK < height ? height / CHUNK : 1; }

static void conv_task(void *data, long first_task, long last_task, int thread) {
    const conv_job *job = data;
    const long chunks = chunks_of(job->height);
    /* an image that is smaller than a tile is computed pixel by pixel */
    const int whole = job->width >= COLUMNS && (chunks > 1 ? CHUNK : job->height) >= ROWS;
    const long rows = whole ? ROWS : 1, columns = whole ? COLUMNS : 1;
    (void)thread;
    for (long task = first_task; task < last_task; task++) {
        const long block = task % GROUPS * VECTORS, part = task / GROUPS % chunks, image = task / (GROUPS * chunks);
        const long first = part * CHUNK, end = part == chunks - 1 ? job->height : first + CHUNK;
        const long vectors = block + VECTORS <= BLOCKS ? VECTORS : BLOCKS - block;
        const uint8_t *x = job->x + image * job->x_image + FIRST_OF(block) * job->x_plane +
                           (X_HALO_TOP - PAD_TOP) * job->x_row + (X_HALO_LEFT - PAD_LEFT) * X_BLOCK;
        const int8_t *w = job->w + block * WEIGHT_BLOCK;
        output *y = job->y + image * job->y_image + block * job->y_plane;
        if (HALO_TOP | HALO_LEFT | HALO_BOTTOM | HALO_RIGHT)
            for (long v = 0; v < vectors; v++) halo_of(job, y + v * job->y_plane, first, end);
        y += HALO_TOP * job->y_row + HALO_LEFT * 16;
        for (long r = first; r < end; r += rows) {
            const long row = r + rows <= end ? r : end - rows;
            const long below = r + 2 * rows <= end ? r + rows : end - rows;
            for (long q = 0; q < job->width; q += columns) {
                const long column = q + columns <= job->width ? q : job->width - columns;
                const uint8_t *here = x + row * X_ROW + column * X_PIXEL;
                const uint8_t *next = q + columns < job->width ? here + columns * X_PIXEL : x + below * X_ROW;
                /* pixels are new to the cache for the first channels, the next weight for the first tile */
                const int fetch = DEPTHWISE || block == 0 || (r == first && q == 0);
                tile(whole, vectors, fetch, job, here, next, w, y + row * job->y_row + column * 16, block);
            }
        }
    }
}

/* `images` of `height` x `width` pixels, halo not counted. */
void qcc_conv(const uint8_t *x, const int8_t *w, const int32_t *start, const float *scale, output *y, long images,
              long height, long width, const int *codes, const float *clamp, const float *numbers, int threads,
              launch_fn launch) {
    conv_job job = {x, w, start, scale, y, codes[0], codes[1], codes[2], clamp[0], clamp[1], numbers};
    job.height = (height + PAD_TOP + PAD_BOTTOM - REACH_ROWS) / STRIDE_ROWS + 1;
    job.width = (width + PAD_LEFT + PAD_RIGHT - REACH_COLUMNS) / STRIDE_COLUMNS + 1;
    job.x_row = (X_HALO_LEFT + width + X_HALO_RIGHT) * X_BLOCK;
    job.x_plane = (X_HALO_TOP + height + X_HALO_BOTTOM) * job.x_row;
    job.x_image = X_BLOCKS * job.x_plane;
    job.y_row = (HALO_LEFT + job.width + HALO_RIGHT) * 16;
    job.y_plane = (HALO_TOP + job.height + HALO_BOTTOM) * job.y_row;
    job.y_image = BLOCKS * job.y_plane;
    const long tasks = images * chunks_of(job.height) * GROUPS;
    if (threads <= 1 || !launch) conv_task(&job, 0, tasks, 0);
    else launch(conv_task, &job, tasks, 1, threads);
}
