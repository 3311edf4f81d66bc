/* Activations in whole numbers: q = round(x / scale), scale = max |x| / LIMIT for every row, or group of a row.

The kernel defines K, COLUMNS (K with its padding), GROUP, GROUPS (of the row), GROUPED (a scale for each group),
PARTS (1: int8, 2: int16 as high and low byte), LIMIT, BF16 (bfloat16 input, else float32), FIXED (one scale and zero point, given with the call), and where a row's numbers
lie: ROW_BYTES, STARTS_AT, SCALES_AT, TOTALS_AT. What sums of products start with is OFFSET times minus the sum of the bytes of a group: what the bytes of the
weight are too high by. Padding is 0. A row that is not finite gets a scale that is not finite either. */

#if BF16
typedef uint16_t input; /* the upper half of a float32 */
static inline float number(input v) {
    const uint32_t bits = (uint32_t)v << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
#else
typedef float input;
static inline float number(input v) { return v; }
#endif

#define ROW(base, m) ((base) + (size_t)(m) * ROW_BYTES)
#define QUANTIZED(row, part) ((int8_t *)((row) + (part) * COLUMNS))
#define STARTS(row, part) ((int32_t *)((row) + STARTS_AT) + (part) * GROUPS)
#define SCALES(row) ((float *)((row) + SCALES_AT))
#define TOTALS(row) ((float *)((row) + TOTALS_AT))

/* Lanes of their own let a compiler take 16 numbers at a time, whose order a single maximum would fix. */
static float scale_of(const input *x, long count) {
    float high[16] = {0}, odd[16] = {0};
    long i = 0;
    for (; i + 16 <= count; i += 16)
        for (int lane = 0; lane < 16; lane++) {
            float size = fabsf(number(x[i + lane]));
            high[lane] = size > high[lane] ? size : high[lane];
            odd[lane] += number(x[i + lane]) * 0.0f;
        }
    for (; i < count; i++) {
        high[0] = fmaxf(high[0], fabsf(number(x[i])));
        odd[0] += number(x[i]) * 0.0f;
    }
    for (int lane = 1; lane < 16; lane++) {
        high[0] = high[lane] > high[0] ? high[lane] : high[0];
        odd[0] += odd[lane];
    }
    const float scale = high[0] / LIMIT; /* below 2^-126 its inverse is infinite */
    return (high[0] > 0 && scale < 0x1p-126f ? 0x1p-126f : scale) + odd[0];
}

static void round_group(uint8_t *row, const input *x, long from, long count, float inverse) {
    int8_t *high = QUANTIZED(row, 0) + from;
#if PARTS == 2
    int8_t *low = QUANTIZED(row, 1) + from;
#endif
    for (long i = 0; i < count; i++) {
        float scaled = number(x[i]) * inverse;
        scaled = scaled < LIMIT ? scaled : LIMIT;
        scaled = scaled > -LIMIT ? scaled : -LIMIT;
        int32_t q = (int32_t)rintf(scaled);
#if PARTS == 2
        int32_t h = (q + 128) >> 8;
        high[i] = (int8_t)h;
        low[i] = (int8_t)(q - 256 * h);
#else
        high[i] = (int8_t)q;
#endif
    }
}

static int32_t sum_of(const int8_t *q, long count) {
    int32_t sum = 0;
    for (long i = 0; i < count; i++) sum += q[i];
    return sum;
}

/* q = round(x / scale) + zero, as QuantizeLinear of ONNX; what `zero` adds to a product is the same for all rows. */
static void prepare_fixed(const input *x, uint8_t *row, float scale, int zero) {
    int8_t *q = QUANTIZED(row, 0);
    memset(row + K, 0, COLUMNS - K);
    for (long i = 0; i < K; i++) {
        float code = rintf(number(x[i]) / scale) + (float)zero;
        code = code < 127.0f ? code : 127.0f;
        q[i] = (int8_t)(code > -128.0f ? code : -128.0f);
    }
    SCALES(row)[0] = scale;
    for (long g = 0; g < GROUPS; g++) {
        const long from = g * GROUP, count = K - from < GROUP ? K - from : GROUP;
        const int32_t sum = count > 0 ? sum_of(q + from, count) : 0;
        STARTS(row, 0)[g] = -OFFSET * sum;
        TOTALS(row)[g] = (float)sum;
    }
}

static void prepare_row(const input *x, uint8_t *row) {
    float scale = 0;
    memset(row, 0, PARTS * COLUMNS);
    if (!GROUPED) {
        scale = scale_of(x, K);
        SCALES(row)[0] = scale;
    }
    for (long g = 0; g < GROUPS; g++) {
        long from = g * GROUP, count = K - from < GROUP ? K - from : GROUP;
        if (GROUPED) {
            scale = count > 0 ? scale_of(x + from, count) : 0;
            SCALES(row)[g] = scale;
        }
        if (count > 0) round_group(row, x + from, from, count, scale > 0 ? 1.0f / scale : 0.0f);
        float total = 0;
        for (int part = 0; part < PARTS; part++) {
            int32_t sum = count > 0 ? sum_of(QUANTIZED(row, part) + from, count) : 0;
            STARTS(row, part)[g] = -OFFSET * sum;
            total = total * 256.0f + (float)sum;
        }
        TOTALS(row)[g] = GROUPED ? total * scale : total;
    }
}

/* 16 results of one row, from column `at` of a block that has `n` */
static inline void finish(float *y, floats v, floats factor, const float *bias, int at, int n) {
    if (n <= at) return;
    v = mul(v, factor);
    if (bias) v = add(v, load_some(bias + at, n - at));
    store_floats(y, v, n - at);
}
