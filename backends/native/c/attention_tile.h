/* Many rows: tiles of up to LANES rows go through the keys KEYS at a time, with a running maximum (FlashAttention).

    m' = max(m, max s), l = l e^(m - m') + sum e^(s - m'), o = o e^(m - m') + sum e^(s - m') v         y = o / l

Lanes are rows, so that keys and values are read one number at a time, for all lanes, and no sum crosses lanes. Tiles of
keys that no row of a tile sees are left out. A thread does a tile of rows alone. */

typedef struct {
    const attention_call *call;
    uint8_t *own; /* TILE_BYTES for each thread */
    int64_t tiles, rows;
} tile_job;

typedef struct {
    float q[WIDE * LANES], o[WIDE * LANES], s[KEYS * LANES], bias[KEYS * LANES], most[LANES], sum[LANES], factor[LANES];
    float k[KEYS * PITCH], v[KEYS * PITCH];
    int first[LANES], last[LANES];
    int64_t query[LANES], head[LANES];
} tile_state;

enum { TILE_BYTES = (sizeof(tile_state) + 63) / 64 * 64 };

/* `count` rows as numbers; asks for as many `later` ones behind them. */
static void load_tile(float *to, const element *from, const float *scale, int64_t by, int64_t scale_by, long count,
                      long later) {
    for (long j = 0; j < count; j++) {
        if (j < later)
            for (long d = 0; d < SIZE; d += 64 / sizeof(element)) prefetch_far(from + (j + count) * by + d);
        for (long d = 0; d < WIDE; d += 16) {
            floats v = cached(d, from + j * by);
            if (CODES) v = mul(v, set_floats(scale[j * scale_by]));
            store_floats(to + j * PITCH + d, v, 16);
        }
    }
}

/* Masks from `low` on, lanes side by side; one number for all lanes where `same`. */
static void load_bias(tile_state *t, const attention_call *call, int64_t b, int64_t low, long count, long lanes, int same) {
    for (long lane = 0; lane < (same ? 1 : lanes); lane++) {
        const int64_t at = offset(call->mask_by, b, t->head[lane], t->query[lane]) + low;
        for (long j = 0; j < count; j++) t->bias[same ? j : j * lanes + lane] = bias_at(call->mask, at + j);
    }
}

/* Scores of a vector of lanes become weights; what was summed before is to be multiplied by `factor`. */
INLINE void weigh_lanes(tile_state *t, long lanes, long at, int64_t low, long count, int edge, int same) {
    const floats old = load_f32(t->most + at);
    const ints first = load_ints(t->first + at), last = load_ints(t->last + at);
    floats most = old, sum = zero_floats(), others = zero_floats();
    float *s = t->s + at;
    for (long j = 0; j < count; j++) {
        floats v = load_f32(s + j * lanes);
        if (SOFTCAPPED || MASK || edge) {
            v = capped(v);
            if (MASK) v = add(v, same ? set_floats(t->bias[j]) : load_f32(t->bias + j * lanes + at));
            if (edge) v = admitted(v, first, last, set_ints((int)(low + j)));
            store_floats(s + j * lanes, v, 16);
        }
        most = larger(most, v);
    }
    const floats least = replace_equal(most, -INFINITY, zero_floats());
    for (long j = 0; j < count; j++) {
        const floats v = exp_of(subtract(load_f32(s + j * lanes), least));
        sum = add(sum, v);
        store_floats(s + j * lanes, v, 16);
    }
    const floats factor = exp_of(subtract(old, least));
    store_floats(t->most + at, most, 16);
    store_floats(t->factor + at, factor, 16);
    store_floats(t->sum + at, fma_(load_f32(t->sum + at), factor, sum), 16);
}

static void tile_rows(const tile_job *job, tile_state *t, int64_t b, int64_t kv_head, int64_t row, long count) {
    const attention_call *call = job->call;
    const int64_t length = call->lengths[b], n = call->queries;
    const long vectors = (count + 15) / 16, lanes = 16 * vectors;
    range all = seen_by_some(row / GROUP, (row + count - 1) / GROUP, n, length), common = {0, length};
    for (long lane = 0; lane < lanes; lane++) {
        const int64_t r = row + (lane < count ? lane : count - 1);
        const range keys = seen_by(r / GROUP, n, length);
        t->query[lane] = r / GROUP;
        t->head[lane] = kv_head * GROUP + r % GROUP;
        t->first[lane] = (int)keys.low;
        t->last[lane] = (int)keys.high - 1;
        t->most[lane] = -INFINITY;
        t->sum[lane] = 0;
        common.low = keys.low > common.low ? keys.low : common.low;
        common.high = keys.high < common.high ? keys.high : common.high;
    }
    for (long lane = 0; lane < lanes; lane += 16)
        for (long d = 0; d < WIDE; d += 16) {
            floats v[16];
            EACH(16) {
                const float *x = call->q + offset(call->q_by, b, t->head[lane + i], t->query[lane + i]);
                v[i] = mul(load_some(x + d, SIZE - d < 16 ? SIZE - d : 16), set_floats(SCALE));
            }
            turn_16(v);
            EACH(16) store_floats(t->q + (d + i) * lanes + lane, v[i], 16);
        }
    memset(t->o, 0, sizeof(float) * WIDE * (size_t)lanes);
    const int same = call->mask_by.token == 0 && (call->mask_by.head == 0 || GROUP == 1);
    for (int64_t low = all.low; low < all.high; low += KEYS) {
        const long some = all.high - low < KEYS ? (long)(all.high - low) : KEYS;
        const long whole = (some + KEY_ROWS - 1) / KEY_ROWS * KEY_ROWS;
        const int64_t at = offset(call->kv_by, b, kv_head, low), scale = CODES ? offset(call->scale_by, b, kv_head, low) : 0;
        const long later = all.high - low - some < some ? (long)(all.high - low - some) : some;
        load_tile(t->k, call->k + at, call->k_scale + scale, call->kv_by.token, call->scale_by.token, some, later);
        load_tile(t->v, call->v + at, call->v_scale + scale, call->kv_by.token, call->scale_by.token, some, later);
        for (long j = some; j < whole; j++) memset(t->k + j * PITCH, 0, sizeof(float) * SIZE);
        for (long j = 0; j < whole; j += KEY_ROWS) tile_scores(vectors, t->q, t->k + j * PITCH, t->s + j * lanes);
        if (MASK) load_bias(t, call, b, low, some, lanes, same);
        const int edge = low < common.low || low + some > common.high;
        for (long lane = 0; lane < lanes; lane += 16) {
            if (same) weigh_lanes(t, lanes, lane, low, some, edge, 1);
            else weigh_lanes(t, lanes, lane, low, some, edge, 0);
        }
        for (long d = 0; d < SIZE; d += VALUE_ROWS) tile_values(vectors, t->s, t->v + d, t->o + d * lanes, t->factor, some);
    }
    for (long lane = 0; lane < lanes; lane += 16) {
        const floats one = set_floats(1.0f), sum = load_f32(t->sum + lane);
        const floats per = replace_equal(divide(one, sum), INFINITY, zero_floats()); /* of rows that see nothing */
        for (long d = 0; d < WIDE; d += 16) {
            floats v[16];
            EACH(16) v[i] = mul(load_f32(t->o + (d + i) * lanes + lane), per);
            turn_16(v);
            for (long i = 0; i < 16 && lane + i < count; i++)
                store_values(call->y + offset(call->y_by, b, t->head[lane + i], t->query[lane + i]), v[i], d);
        }
    }
}

static void tile_task(void *data, long first, long last, int thread) {
    const tile_job *job = data;
    for (long task = first; task < last; task++) {
        /* the longest first, and all of a group that share keys one after the other */
        const int64_t group = task / job->tiles, tile = job->tiles - 1 - task % job->tiles;
        const int64_t row = tile * LANES, count = job->rows - row < LANES ? job->rows - row : LANES;
        tile_state *own = (tile_state *)(job->own + (size_t)thread * TILE_BYTES);
        tile_rows(job, own, group / KV_HEADS, group % KV_HEADS, row, (long)count);
    }
}
