/* Few rows: splits of SPLIT keys, each a task; the last one of a group that ends adds up what all of them found.

    part[split][row] = (max s, sum e^(s - max), sum e^(s - max) v)        s = scale q k

The keys of a split are counted from the first one that is seen, so that neither threads nor other rows of the batch
change the order of any sum. Lanes are values of a head, then keys, then values. */

typedef struct {
    const attention_call *call;
    float *parts;        /* [batch, KV_HEADS, splits, rows, PART] */
    atomic_int *ended;   /* [batch, KV_HEADS]: splits that were computed */
    uint8_t *own;        /* SPLIT_BYTES for each thread */
    int64_t splits, rows;
} split_job;

enum { SPLIT_BYTES = 4 * FEW_ROWS * (Q_ROW + SPLIT) };

/* The scales of some keys; zeros behind them */
INLINE floats scales_of(const float *scale, int64_t by, int64_t at, int count) {
    if (by == 1) return load_some(scale + at, count);
    float all[16];
    for (int i = 0; i < count; i++) all[i] = scale[(at + i) * by];
    return load_some(all, count);
}

/* Scores become weights: the exponential less the maximum, times the scales of the values. */
static void weigh_row(const attention_call *call, float *s, float q_scale, int64_t b, int64_t head, int64_t query,
                      int64_t low, long count, range keys, const float *k_scale, const float *v_scale, float *most, float *sum) {
    const char *mask = call->mask;
    if (MASK) mask += MASK_BYTES * (offset(call->mask_by, b, head, query) + low);
    floats high = set_floats(-INFINITY), total = zero_floats();
    for (long j = 0; j < count; j += 16) {
        const int some = count - j < 16 ? (int)(count - j) : 16;
        floats v = load_f32(s + j);
        if (CODES) v = mul(v, mul(scales_of(k_scale, call->scale_by.token, low + j, some), set_floats(q_scale)));
        v = capped(v);
        if (MASK) {
            float other[16];
            for (int i = 0; i < some; i++) other[i] = bias_at(mask, j + i);
            v = add(v, load_some(other, some));
        }
        if (some < 16 || low + j < keys.low || low + j + 16 > keys.high) {
            const int64_t end = keys.high < low + count ? keys.high : low + count;
            const ints first = set_ints((int)(keys.low - low)), past = set_ints((int)(end - low) - 1);
            v = admitted(v, first, past, add_ints(set_ints((int)j), load_ints(COUNTED)));
        }
        high = larger(high, v);
        store_floats(s + j, v, 16);
    }
    *most = largest_lane(high);
    const floats least = set_floats(subtracted(*most));
    for (long j = 0; j < count; j += 16) {
        const int some = count - j < 16 ? (int)(count - j) : 16;
        floats v = exp_of(subtract(load_f32(s + j), least));
        total = add(total, v);
        if (CODES) v = mul(v, scales_of(v_scale, call->scale_by.token, low + j, some));
        store_floats(s + j, v, 16);
    }
    *sum = sum_lanes(total);
}

/* Partial results in the order of the splits */
static void add_up(const split_job *job, int64_t b, int64_t kv_head, int64_t splits) {
    const attention_call *call = job->call;
    const float *parts = job->parts + (b * KV_HEADS + kv_head) * job->splits * job->rows * PART;
    for (int64_t r = 0; r < job->rows; r++) {
        float most = -INFINITY, sum = 0;
        for (int64_t i = 0; i < splits; i++) {
            const float found = parts[(i * job->rows + r) * PART + WIDE];
            most = found > most ? found : most;
        }
        float *y = call->y + offset(call->y_by, b, kv_head * GROUP + r % GROUP, r / GROUP);
        floats all[WIDE / 16];
        for (long d = 0; d < WIDE / 16; d++) all[d] = zero_floats();
        for (int64_t i = 0; i < splits; i++) {
            const float *part = parts + (i * job->rows + r) * PART, less = part[WIDE] - subtracted(most);
            float weight[16];
            store_floats(weight, exp_of(set_floats(less)), 16);
            sum += part[WIDE + 1] * weight[0];
            for (long d = 0; d < WIDE / 16; d++) all[d] = fma_(load_f32(part + 16 * d), set_floats(weight[0]), all[d]);
        }
        const floats per = set_floats(inverse(sum));
        for (long d = 0; d < WIDE / 16; d++) store_values(y, mul(all[d], per), 16 * d);
    }
}

static void split_task(void *data, long first, long last, int thread) {
    const split_job *job = data;
    const attention_call *call = job->call;
    float *q = (float *)(job->own + (size_t)thread * SPLIT_BYTES), *s = q + FEW_ROWS * Q_ROW;
    const element *asked = 0; /* keys that are on their way to the second cache */
    for (long task = first; task < last; task++) {
        const int64_t split = task % job->splits, group = task / job->splits, kv_head = group % KV_HEADS, b = group / KV_HEADS;
        const range all = seen_by_some(0, call->queries - 1, call->queries, call->lengths[b]);
        const int64_t keys = all.high > all.low ? all.high - all.low : 0, splits = keys ? (keys + SPLIT - 1) / SPLIT : 1;
        if (split >= splits) continue;
        const int64_t low = all.low + split * SPLIT;
        const long count = keys - split * SPLIT < SPLIT ? (long)(keys - split * SPLIT) : SPLIT;
        const int64_t at = offset(call->kv_by, b, kv_head, low);
        const int64_t scales = CODES ? offset(call->scale_by, b, kv_head, 0) : 0;
        for (int64_t r = 0; r < job->rows; r++) {
            prepare_query(call->q + offset(call->q_by, b, kv_head * GROUP + r % GROUP, r / GROUP), q + r * Q_ROW);
        }
        float *parts = job->parts + (group * job->splits + split) * job->rows * PART;
        if (count) {
            const int ahead = call->k + at != asked;
            row_scores(job->rows, q, call->k + at, call->v + at, ahead, call->kv_by.token, count, s);
        }
        for (int64_t r = 0; r < job->rows; r++)
            weigh_row(call, s + r * SPLIT, QUERY_SCALE(q + r * Q_ROW), b, kv_head * GROUP + r % GROUP, r / GROUP, low, count,
                      seen_by(r / GROUP, call->queries, call->lengths[b]), call->k_scale + scales, call->v_scale + scales,
                      parts + r * PART + WIDE, parts + r * PART + WIDE + 1);
        /* else another thread's, or nothing, comes next */
        const int more = task + 1 < last && low + count + SPLIT <= all.high;
        asked = more ? call->k + at + SPLIT * call->kv_by.token : 0;
        row_values(job->rows, s, call->v + at, asked, call->kv_by.token, count, parts);
        if (atomic_fetch_add(&job->ended[group], 1) + 1 == splits) add_up(job, b, kv_head, splits);
    }
}
