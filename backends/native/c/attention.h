/* What both forms of attention share: loads of a cache, ranges of keys, masks; and appending to a cache.

A row is a query of one of the GROUP heads that share keys and values: row r is query r / GROUP of head r % GROUP. */

enum {
    WIDE = (SIZE + 15) / 16 * 16,  /* values of a head in whole vectors */
    PART = WIDE + 16,              /* numbers of a partial result: values, maximum, sum */
};

/* 16 numbers of a row of the cache from value `at` on; zeros behind the last */
INLINE floats cached(long at, const element *row) {
    if (at + 16 <= SIZE) return load_cached(row + at);
    element some[16] = {0};
    memcpy(some, row + at, sizeof(element) * (size_t)(SIZE - at));
    return load_cached(some);
}
INLINE void store_values(float *y, floats v, long at) { store_floats(y + at, v, SIZE - at < 16 ? SIZE - at : 16); }

/* A query of few rows, times SCALE: float32, or for codes whole numbers of 16 bits as high and low bytes, what their sums
   start with, as bytes of keys are 128 too high, and what sums are multiplied by. */
#if WHOLE
enum { Q_ROW = WIDE / 2 + 48 };
#define WHOLE_CODES(q, part) ((const int8_t *)(q) + (part) * WIDE)
#define WHOLE_START(q, part) ((const int32_t *)(q) + WIDE / 2 + 16 * (part))
#define QUERY_SCALE(q) (q)[WIDE / 2 + 32]
#else
enum { Q_ROW = WIDE };
#define QUERY_SCALE(q) 1.0f
#endif
static void prepare_query(const float *x, float *q) {
#if WHOLE
    enum { LIMIT = 127 * 256 + 127 };
    int8_t *high = (int8_t *)q, *low = high + WIDE;
    floats sizes = zero_floats(), odds = zero_floats();
    for (long d = 0; d < SIZE; d += 16) {
        const floats v = mul(load_f32(x + d), set_floats(SCALE));
        sizes = larger(sizes, larger(v, subtract(zero_floats(), v)));
        odds = fma_(v, zero_floats(), odds); /* not a number where one is not finite */
    }
    const float most = largest_lane(sizes), odd = sum_lanes(odds);
    const float scale = most > 0 && most / LIMIT < 0x1p-126f ? 0x1p-126f : most / LIMIT;
    const float per = odd == 0 && scale > 0 ? 1 / scale : 0;
    for (long d = 0; d < SIZE; d++) {
        float v = odd == 0 ? x[d] * SCALE * per : 0;
        v = v < LIMIT ? v : LIMIT;
        v = v > -LIMIT ? v : -LIMIT;
        const int code = (int)rintf(v), upper = (code + 128) >> 8;
        high[d] = (int8_t)upper;
        low[d] = (int8_t)(code - 256 * upper);
    }
    for (int part = 0; part < 2; part++) {
        ints sum = zero_ints();
        for (long d = 0; d < SIZE; d += 64) sum = dot_wide(sum, set_bytes(128), load_ints(WHOLE_CODES(q, part) + d));
        store_bytes((void *)WHOLE_START(q, part), mul_ints(sum, set_ints(-1)));
    }
    QUERY_SCALE(q) = scale + odd;
#else
    for (long d = 0; d < WIDE; d += 16)
        store_floats(q + d, mul(load_some(x + d, SIZE - d < 16 ? SIZE - d : 16), set_floats(SCALE)), 16);
#endif
}

typedef struct { int64_t low, high; } range;
/* The keys that a query sees, from `low` to before `high` */
static inline range seen_by(int64_t query, int64_t queries, int64_t length) {
    const int64_t position = length - queries + query;
    range keys = {0, length};
    if (CAUSAL) keys.high = position + 1 > 0 ? position + 1 : 0;
    if (WINDOW && position + 1 > WINDOW) keys.low = position + 1 - WINDOW;
    return keys;
}
/* Those that some query from `first` to `last` sees */
static inline range seen_by_some(int64_t first, int64_t last, int64_t queries, int64_t length) {
    return (range){seen_by(first, queries, length).low, seen_by(last, queries, length).high};
}

/* Where a row of a token and head lies */
INLINE int64_t offset(strides by, int64_t batch, int64_t head, int64_t token) {
    return batch * by.batch + head * by.head + token * by.token;
}
static const int32_t COUNTED[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* What is added to the score of a key */
INLINE float bias_at(const void *mask, int64_t at) {
#if MASK == 1
    return ((const uint8_t *)mask)[at] ? 0.0f : -INFINITY;
#else
    return ((const float *)mask)[at];
#endif
}
INLINE floats capped(floats s) {
#if SOFTCAPPED
    s = mul(tanh_of(mul(s, set_floats(1 / SOFTCAP))), set_floats(SOFTCAP));
#endif
    return s;
}
/* A maximum that can be subtracted: a row that sees nothing has -inf */
INLINE float subtracted(float most) { return most == -INFINITY ? 0.0f : most; }
/* What sums are multiplied by; a row that sees nothing gets zeros */
INLINE float inverse(float sum) { return sum == 0 ? 0.0f : 1 / sum; }

static void append_row(const float *x, element *to, float *scale) {
#if CODES
    float most = 0, odd = 0;
    for (long d = 0; d < SIZE; d++) {
        const float size = fabsf(x[d]);
        most = size > most ? size : most;
        odd += x[d] * 0.0f; /* not a number where one is not finite */
    }
    const float step = most / 127 < 0x1p-126f && most > 0 ? 0x1p-126f : most / 127; /* below it 1 / step is infinite */
    const float per = step > 0 && odd == 0 ? 1 / step : 0;
    for (long d = 0; d < SIZE; d++) {
        const float code = odd == 0 ? rintf(x[d] * per) : 1;
        to[d] = (element)(code > 127 ? 127 : code < -127 ? -127 : code);
    }
    *scale = step + odd;
#elif HALF
    for (long d = 0; d < SIZE; d += 16) {
        element some[16];
        store_f16(some, load_some(x + d, SIZE - d < 16 ? SIZE - d : 16));
        memcpy(to + d, some, sizeof(element) * (size_t)(SIZE - d < 16 ? SIZE - d : 16));
    }
#else
    memcpy(to, x, sizeof(float) * SIZE);
#endif
}

static void append_task(void *data, long first, long last, int thread) {
    const append_call *call = data;
    (void)thread;
    for (long task = first; task < last; task++) {
        const long i = task % call->count, head = task / call->count % KV_HEADS, b = task / (call->count * KV_HEADS);
        const int64_t at = call->past[b] + i;
        const int64_t to = offset(call->kv_by, b, head, at), scale = offset(call->scale_by, b, head, at);
        append_row(call->k + offset(call->by, b, head, i), call->to_k + to, CODES ? call->k_scale + scale : 0);
        append_row(call->v + offset(call->v_by, b, head, i), call->to_v + to, CODES ? call->v_scale + scale : 0);
    }
}

/* Puts new keys and values behind those of a cache, in its element. */
void qcc_attention_append(const append_call *call) {
    append_call held = *call;
    if (call->batch <= 0 || call->count <= 0) return;
    const long tasks = call->batch * KV_HEADS * call->count;
    if (call->threads <= 1 || !call->launch || tasks < 64) append_task(&held, 0, tasks, 0);
    else call->launch(append_task, &held, tasks, 16, (int)call->threads);
}
