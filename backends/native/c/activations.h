/* Activations in whole numbers: q = round(x / scale), scale = max |x| / LIMIT for every row, or group of a row.

The kernel defines K, COLUMNS (K with its padding), GROUP, GROUPS (of the row), GROUPED (a scale for each group),
PARTS (1: int8, 2: int16 as high and low byte), LIMIT, BF16 (bfloat16 input, else float32), FIXED (one scale and zero
point, given with the call; not defined where rows never have one), and where a row's numbers lie: ROW_BYTES, STARTS_AT,
SCALES_AT, TOTALS_AT. What sums of products start with is OFFSET times minus the sum of the bytes of a group: what the
bytes of the weight are too high by. Padding is 0. A row that is not finite gets a scale that is not finite either.

Sixteen groups are taken at a time: the largest size and the sum of each come to lie in a lane of one vector. */

#if BF16
typedef uint16_t input; /* the upper half of a float32 */
#else
typedef float input;
#endif

#ifndef FIXED
#define FIXED 0
#endif

#define ROW(base, m) ((base) + (size_t)(m) * ROW_BYTES)
#define QUANTIZED(row, part) ((int8_t *)((row) + (part) * COLUMNS))
#define STARTS(row, part) ((int32_t *)((row) + STARTS_AT) + (part) * GROUPS)
#define SCALES(row) ((float *)((row) + SCALES_AT))
#define TOTALS(row) ((float *)((row) + TOTALS_AT))

/* Lanes of 4 columns that a group has where vectors of 64 columns hold several groups, else all of them */
#define GROUP_LANES (GROUP == 16 || GROUP == 32 ? GROUP / 4 : 16)
#define UNROLLED _Pragma("GCC unroll 16")

/* How one scale, or each of 16 groups, rounds: what numbers are multiplied by, or divided by where it is FIXED */
typedef struct {
    float by[16];
    int zero;
} rounding;

/* The first `count` of 16 numbers, and 0 */
INLINE floats load_input(const input *x, long count) {
    if (count <= 0) return zero_floats();
#if BF16
    if (count >= 16) return load_bf16(x);
    uint16_t some[16] = {0};
    memcpy(some, x, (size_t)count * 2);
    return load_bf16(some);
#else
    return count >= 16 ? load_f32(x) : load_some(x, (int)count);
#endif
}

/* Of each lane the largest size, as bits: their order is that of sizes, with what is not finite above all others */
INLINE ints largest(const input *x, long count) {
    ints most = zero_ints();
    long i = 0;
    for (; i + 16 <= count; i += 16) most = max_ints(most, size_bits(load_input(x + i, 16)));
    return i < count ? max_ints(most, size_bits(load_input(x + i, count - i))) : most;
}

/* One number of each of `count`, at most 16, which have `lanes` lanes each, from 16 vectors: the largest, or the sum */
#define EACH_OF(name)                                                                                    \
    INLINE ints name##_of_each(ints *v, int lanes, int count) {                                          \
        if (lanes == 16)                                                                                 \
            UNROLLED for (int i = 0; i < 8; i++)                                                         \
                v[i] = 2 * i < count ? name##_8(v[2 * i], v[2 * i + 1]) : zero_ints();                   \
        if (lanes >= 8)                                                                                  \
            UNROLLED for (int i = 0; i < 4; i++)                                                         \
                v[i] = 4 * i < count ? name##_4(v[2 * i], v[2 * i + 1]) : zero_ints();                   \
        return name##_1(v[0], v[1], v[2], v[3]);                                                         \
    }
EACH_OF(sum)
EACH_OF(most)

/* Scales of the largest sizes, and their inverses: 0 where a scale is not finite. They are at least 2^-126, below which
   inverses are infinite, but for sizes of 0, whose product with a power is less. */
INLINE floats scales_of(floats most, float *inverses) {
    const floats raised = max_floats(set_floats(0x1p-126f), divide(most, set_floats(LIMIT)));
    store_floats(inverses, max_floats(divide(set_floats(1), raised), zero_floats()), 16);
    return add(min_floats(mul(most, set_floats(0x1p127f)), raised), mul(most, zero_floats()));
}

/* The whole numbers of 16 columns, of which the row has `count` */
INLINE ints codes_of(floats v, long count, float by, int zero) {
    /* Below -LIMIT by less than half, products round to it; the minimum is for NaN. */
    if (!FIXED) return to_ints(min_floats(mul(v, set_floats(by)), set_floats(LIMIT)));
    const floats low = set_floats((float)(-128 - zero)), high = set_floats((float)(127 - zero));
    v = max_floats(min_floats(divide(v, set_floats(by)), high), low);
    if (count < 16) v = keep_lanes(v, count > 0 ? (int)count : 0, set_floats((float)-zero));
    return add_ints(to_ints(v), set_ints(zero));
}

/* 64 columns, of which the row has `count` and its memory `held`; adds the sums of every four to `sums` */
INLINE void round_columns(const input *x, uint8_t *row, long at, long count, long held, const rounding *how, int group,
                          ints *sums) {
    ints q[4], part[PARTS];
    UNROLLED for (int i = 0; i < 4; i++) {
        const int own = !GROUPED ? 0 : group + 16 * i / (4 * GROUP_LANES);
        q[i] = codes_of(load_input(x + at + 16 * i, count - 16 * i), count - 16 * i, how->by[own], how->zero);
    }
#if PARTS == 2
    split(q[0], q[1], q[2], q[3], &part[0], &part[1]);
#else
    part[0] = narrow(q[0], q[1], q[2], q[3]);
#endif
    for (int p = 0; p < PARTS; p++) {
        store_some(QUANTIZED(row, p) + at, part[p], held < 64 ? (int)held : 64);
        sums[16 * p] = dot(sums[16 * p], set_bytes(1), part[p]);
    }
}

/* `count` groups, at most 16, from the one numbered `first`; `whole` where no column of theirs is padding. */
INLINE void prepare_groups(const input *x, uint8_t *row, long first, int count, int whole, rounding *how) {
    const long from = first * GROUP, end = from + (long)count * GROUP, given = whole || end < K ? end : K;
#define GIVEN(at, width) (whole || (at) + (width) <= given ? (width) : given - (at))
#if GROUPED
    ints most[16];
    UNROLLED for (int i = 0; i < 16; i++)
        most[i] = i < count ? largest(x + from + i * GROUP, GIVEN(from + i * GROUP, GROUP)) : zero_ints();
    const floats scales = scales_of(as_floats(most_of_each(most, 16, count)), how->by);
    store_floats(SCALES(row) + first, scales, count);
#endif
    ints sums[PARTS * 16];
    UNROLLED for (int i = 0; i < PARTS * 16; i++) sums[i] = zero_ints();
    if (GROUP_LANES < 16)
        UNROLLED for (int i = 0; i < GROUP_LANES; i++) {
            const long at = from + 64 * i, left = end - at;
            if (left > 0) round_columns(x, row, at, GIVEN(at, left), left, how, i * (16 / GROUP_LANES), sums + i);
        }
    else
        for (int i = 0; i < count; i++)
            for (long at = from + i * GROUP, left = GROUP; left > 0; at += 64, left -= 64)
                round_columns(x, row, at, GIVEN(at, left), left, how, i, sums + i);
    floats total = zero_floats();
    for (int p = 0; p < PARTS; p++) {
        const ints sum = sum_of_each(sums + 16 * p, GROUP_LANES, count);
        store_floats((float *)(STARTS(row, p) + first), as_floats(mul_ints(sum, set_ints(-(OFFSET)))), count);
        total = add(mul(total, set_floats(256)), to_floats(sum));
    }
#if GROUPED
    total = mul(total, scales);
#endif
    store_floats(TOTALS(row) + first, total, count);
}

static void prepare_all(const input *x, uint8_t *row, rounding *how) {
    const long whole = K / GROUP / 16 * 16;
    for (long g = 0; g < whole; g += 16) prepare_groups(x, row, g, 16, 1, how);
    for (long g = whole; g < GROUPS; g += 16)
        prepare_groups(x, row, g, GROUPS - g < 16 ? (int)(GROUPS - g) : 16, K == COLUMNS, how);
}

/* q = round(x / scale) + zero, as QuantizeLinear of ONNX; what `zero` adds to a product is the same for all rows. */
static void prepare_fixed(const input *x, uint8_t *row, float scale, int zero) {
    rounding how = {{scale}, zero};
    SCALES(row)[0] = scale;
    prepare_all(x, row, &how);
}

static void prepare_row(const input *x, uint8_t *row) {
    rounding how = {.zero = 0};
    if (!GROUPED) {
        ints most[16] = {largest(x, K)};
        store_floats(SCALES(row), scales_of(as_floats(most_of_each(most, 16, 1)), how.by), 1);
    }
    prepare_all(x, row, &how);
}

/* 16 results of one row, from column `at` of a block that has `n` */
static inline void finish(float *y, floats v, floats factor, const float *bias, int at, int n) {
    if (n <= at) return;
    v = mul(v, factor);
    if (bias) v = add(v, load_some(bias + at, n - at));
    store_floats(y, v, n - at);
}
