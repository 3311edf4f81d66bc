/* Several linear operations on the same activations: FORMS in which these are rounded, KERNELS that multiply them. */

typedef void (*task_fn)(void *data, long first, long last, int thread);
void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
void *qcc_scratch(size_t bytes);
extern int qcc_threads;

typedef struct {
    const uint8_t *w;
    const float *bias;
    float *y;
    float alpha;
} member;

enum { ALL_FORMS = sizeof(FORMS) / sizeof(FORMS[0]) };

typedef struct {
    const input *x;
    const member *members;
    uint8_t *rows[ALL_FORMS], *panels;
    long m;
    float scale;
    int zero;
} group_job;

static void prepare_task(void *data, long first, long last, int thread) {
    const group_job *job = data;
    (void)thread;
    for (int f = 0; f < ALL_FORMS; f++)
        FORMS[f].prepare(job->x + first * KERNELS[0].inputs, last - first, job->rows[f] + first * FORMS[f].bytes,
                         job->scale, job->zero);
}

/* Blocks are counted through all members. */
static void blocks_task(void *data, long first, long last, int thread) {
    const group_job *job = data;
    long begin = 0;
    for (int i = 0; i < MEMBERS; begin += KERNELS[i++].count) {
        const long from = first > begin ? first - begin : 0, end = last - begin;
        const long to = end < KERNELS[i].count ? end : KERNELS[i].count;
        const member *at = job->members + i;
        if (from < to)
            KERNELS[i].blocks(job->rows[KERNELS[i].form], at->w, at->bias, at->y, job->m, at->alpha,
                              job->panels + (size_t)thread * PANEL, from, to);
    }
}

static void multiply_group(const input *x, const member *members, long m, float scale, int zero) {
    if (m <= 0) return;
    size_t bytes = 0;
    for (int f = 0; f < ALL_FORMS; f++) bytes += (size_t)m * FORMS[f].bytes;
    group_job job = {.x = x, .members = members, .m = m, .scale = scale, .zero = zero};
    uint8_t *scratch = qcc_scratch(bytes + (size_t)qcc_threads * PANEL);
    for (int f = 0; f < ALL_FORMS; f++) {
        job.rows[f] = scratch;
        scratch += (size_t)m * FORMS[f].bytes;
    }
    job.panels = scratch;
    long blocks = 0;
    for (int i = 0; i < MEMBERS; i++) blocks += KERNELS[i].count;
    if (m < 8) prepare_task(&job, 0, m, 0);
    else qcc_launch(prepare_task, &job, m, (m + qcc_threads - 1) / qcc_threads, qcc_threads);
    const long share = (blocks + qcc_threads - 1) / qcc_threads;
    /* Chunks balance threads; of few blocks they would leave too few for the streams of a kernel. */
    const long chunk = qcc_threads == 1 ? blocks : m > 8 ? 1 : share <= 4 * KERNELS[0].streams ? share : (share + 3) / 4;
    qcc_launch(blocks_task, &job, blocks, chunk, qcc_threads);
}
