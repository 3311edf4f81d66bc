/* Attention of new tokens over a cache in place: heads are made ready, keys and values appended, then attended to.

Q_NORM, K_NORM: whether heads are divided by the root of their mean square and multiplied with a weight [SIZE].
ROTATED: how many values of a head of q and k are turned by the angles of their position; 0: none. PAIRS: whether the two
numbers of a rotation are neighbours, else ROTATED / 2 apart. */

typedef struct {
    const float *x[2], *weight[2], *cos, *sin; /* q and k */
    float *to[2];
    int64_t queries, by[2], table_by;
} heads_job;

static const struct { int heads, norm; float epsilon; } SIDES[2] = {{HEADS, Q_NORM, Q_EPSILON}, {KV_HEADS, K_NORM, K_EPSILON}};

static void norm_head(const float *x, const float *weight, float epsilon, float *to) {
    floats squares = zero_floats();
    for (long d = 0; d < SIZE; d += 16) {
        const floats v = load_some(x + d, SIZE - d < 16 ? SIZE - d : 16);
        squares = fma_(v, v, squares);
    }
    const floats factor = set_floats(1.0f / sqrtf(sum_lanes(squares) / SIZE + epsilon));
    for (long d = 0; d < SIZE; d += 16) {
        const int count = SIZE - d < 16 ? SIZE - d : 16;
        store_floats(to + d, mul(mul(load_some(x + d, count), factor), load_some(weight + d, count)), count);
    }
}

static void turn_head(float *x, const float *cos, const float *sin) {
    enum { HALF_TURNED = ROTATED / 2 };
#if PAIRS
    for (long d = 0; d < HALF_TURNED; d++) {
        const float a = x[2 * d], b = x[2 * d + 1];
        x[2 * d] = a * cos[d] - b * sin[d];
        x[2 * d + 1] = a * sin[d] + b * cos[d];
    }
#else
    for (long d = 0; d < HALF_TURNED; d += 16) {
        const int count = HALF_TURNED - d < 16 ? HALF_TURNED - d : 16;
        const floats a = load_some(x + d, count), b = load_some(x + HALF_TURNED + d, count);
        const floats c = load_some(cos + d, count), s = load_some(sin + d, count);
        store_floats(x + d, subtract(mul(a, c), mul(b, s)), count);
        store_floats(x + HALF_TURNED + d, add(mul(a, s), mul(b, c)), count);
    }
#endif
}

static void heads_task(void *data, long first, long last, int thread) {
    const heads_job *job = data;
    (void)thread;
    for (long token = first; token < last; token++) {
        const int64_t angle = (token / job->queries * job->table_by + token % job->queries) * (ROTATED / 2);
        for (int side = 0; side < 2; side++)
            for (long head = 0; head < SIDES[side].heads; head++) {
                const float *x = job->x[side] + token * job->by[side] + head * SIZE;
                float *to = job->to[side] + (token * SIDES[side].heads + head) * SIZE;
                if (SIDES[side].norm) norm_head(x, job->weight[side], SIDES[side].epsilon, to);
                else memcpy(to, x, sizeof(float) * SIZE);
                if (ROTATED) turn_head(to, job->cos + angle, job->sin + angle);
            }
    }
}

void qcc_launch(task_fn task, void *data, long count, long chunk, int threads);
void *qcc_scratch(size_t bytes);
extern int qcc_threads;

typedef struct {
    element *k, *v;
    float *k_scale, *v_scale;
    const int32_t *total; /* tokens of the cache with the new ones */
} cache_arrays;

/* q [batch, queries, HEADS, SIZE], k and v [batch, queries, KV_HEADS, SIZE], `by` numbers from token to token; caches
   [batch, KV_HEADS, capacity, SIZE]. 1 where `total` does not hold the new tokens, or the cache does not hold `total`. */
static int attend(const float *q, const float *k, const float *v, cache_arrays cache, const float *q_weight,
                  const float *k_weight, const float *cos, const float *sin, float *y, int64_t batch, int64_t queries,
                  int64_t capacity, int64_t q_by, int64_t k_by, int64_t v_by, int64_t table_by) {
    const int64_t total = *cache.total;
    if (total < queries || total > capacity) return 1;
    if (batch <= 0 || queries <= 0) return 0;
    const int64_t own = in_lines(qcc_attention_scratch(batch, queries, total, qcc_threads)), numbers = in_lines(8 * batch);
    const int64_t tokens = batch * queries, ready = Q_NORM || K_NORM || ROTATED;
    const int64_t q_bytes = in_lines(4 * tokens * HEADS * SIZE), k_bytes = in_lines(4 * tokens * KV_HEADS * SIZE);
    uint8_t *scratch = qcc_scratch((size_t)(own + 2 * numbers + (ready ? q_bytes + k_bytes : 0)));
    int64_t *lengths = (int64_t *)(scratch + own), *past = (int64_t *)(scratch + own + numbers);
    for (int64_t b = 0; b < batch; b++) lengths[b] = total, past[b] = total - queries;
    if (ready) {
        float *q_ready = (float *)(scratch + own + 2 * numbers), *k_ready = (float *)((uint8_t *)q_ready + q_bytes);
        heads_job job = {{q, k}, {q_weight, k_weight}, cos, sin, {q_ready, k_ready}, queries, {q_by, k_by}, table_by};
        if (tokens < 16) heads_task(&job, 0, tokens, 0);
        else qcc_launch(heads_task, &job, tokens, 8, qcc_threads);
        q = q_ready, k = k_ready, q_by = HEADS * SIZE, k_by = KV_HEADS * SIZE;
    }
    const strides held = {KV_HEADS * capacity * SIZE, capacity * SIZE, SIZE}, scales = {KV_HEADS * capacity, capacity, 1};
    append_call append = {.k = k, .v = v, .to_k = cache.k, .to_v = cache.v, .k_scale = cache.k_scale,
                          .v_scale = cache.v_scale, .past = past, .by = {queries * k_by, SIZE, k_by},
                          .v_by = {queries * v_by, SIZE, v_by}, .kv_by = held, .scale_by = scales, .batch = batch,
                          .count = queries, .threads = qcc_threads, .launch = qcc_launch};
    qcc_attention_append(&append);
    attention_call call = {.q = q, .y = y, .k = cache.k, .v = cache.v, .k_scale = cache.k_scale, .v_scale = cache.v_scale,
                           .lengths = lengths, .q_by = {queries * q_by, SIZE, q_by},
                           .y_by = {queries * HEADS * SIZE, SIZE, HEADS * SIZE}, .kv_by = held, .scale_by = scales,
                           .batch = batch, .queries = queries, .scratch = scratch, .threads = qcc_threads,
                           .launch = qcc_launch};
    qcc_attention(&call);
    return 0;
}
