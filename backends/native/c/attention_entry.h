/* The entry points of attention kernels. */

static int64_t splits_of(int64_t queries, int64_t length) {
    int64_t keys = length;
    if (WINDOW && keys > WINDOW + queries - 1) keys = WINDOW + queries - 1;
    return keys > SPLIT ? (keys + SPLIT - 1) / SPLIT : 1;
}
static int64_t in_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of scratch memory of a call with up to `keys` keys */
int64_t qcc_attention_scratch(int64_t batch, int64_t queries, int64_t keys, int64_t threads) {
    if (batch <= 0 || queries <= 0) return 0;
    threads = threads > 1 ? threads : 1;
    if (queries * GROUP > FEW_ROWS) return threads * TILE_BYTES;
    const int64_t groups = batch * KV_HEADS, rows = queries * GROUP;
    return threads * SPLIT_BYTES + in_lines(4 * groups) + 4 * groups * splits_of(queries, keys) * rows * PART;
}

/* y = softmax(SCALE q k^T [softcap] [+ mask]) v */
void qcc_attention(const attention_call *call) {
    if (call->batch <= 0 || call->queries <= 0) return;
    const int64_t groups = call->batch * KV_HEADS, rows = call->queries * GROUP;
    const int threads = call->threads > 1 && call->launch ? (int)call->threads : 1;
    if (rows > FEW_ROWS) {
        tile_job job = {call, call->scratch, (rows + LANES - 1) / LANES, rows};
        if (threads > 1) call->launch(tile_task, &job, job.tiles * groups, 1, threads);
        else tile_task(&job, 0, job.tiles * groups, 0);
        return;
    }
    int64_t longest = 0;
    for (int64_t b = 0; b < call->batch; b++) longest = call->lengths[b] > longest ? call->lengths[b] : longest;
    split_job job = {call, 0, 0, call->scratch, splits_of(call->queries, longest), rows};
    job.ended = (atomic_int *)(job.own + threads * SPLIT_BYTES);
    job.parts = (float *)((uint8_t *)job.ended + in_lines(4 * groups));
    for (int64_t i = 0; i < groups; i++) atomic_init(&job.ended[i], 0);
    const int64_t tasks = job.splits * groups, each = (tasks + threads - 1) / threads;
    /* neighbours for one thread, which asks for the next one's keys; many in two turns, as threads are not alike */
    if (threads > 1) call->launch(split_task, &job, tasks, each > 4 ? (each + 1) / 2 : each, threads);
    else split_task(&job, 0, job.splits * groups, 0);
}
