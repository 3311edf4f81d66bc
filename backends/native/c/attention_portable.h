/* What attention adds to the vocabulary of `portable.h`. */

#define LANE(w, i) (w).v[(i) / 4][(i) % 4]
INLINE float4 chosen(int4 mask, float4 a, float4 b) { return (float4)(((int4)a & mask) | ((int4)b & ~mask)); }
/* The larger and the smaller of two; b where one is not a number */
INLINE floats larger(floats a, floats b) { EACH(4) a.v[i] = chosen(a.v[i] > b.v[i], a.v[i], b.v[i]); return a; }
INLINE floats smaller(floats a, floats b) { EACH(4) a.v[i] = chosen(a.v[i] < b.v[i], a.v[i], b.v[i]); return a; }
INLINE floats subtract(floats a, floats b) { EACH(4) a.v[i] -= b.v[i]; return a; }
/* Adding and taking away 3 * 2^22 rounds half to even, as every sum of floats */
INLINE floats nearest(floats a) {
    EACH(4) a.v[i] = a.v[i] + 0x1.8p23f - 0x1.8p23f;
    return a;
}
/* v 2^n for a whole n from -250 to 250, in two steps, as a power may lie below the least normal one */
INLINE floats times_power(floats a, floats n) {
    EACH(4) {
        const int4 power = (int4)(n.v[i] + 0x1.8p23f) - 0x4b400000, half = power >> 1;
        a.v[i] = a.v[i] * (float4)((half + 127) << 23) * (float4)((power - half + 127) << 23);
    }
    return a;
}
/* `other` where v is `value` */
INLINE floats replace_equal(floats a, float value, floats other) {
    EACH(4) a.v[i] = chosen(a.v[i] == value, other.v[i], a.v[i]);
    return a;
}
/* v in the lanes that have first <= at <= last, elsewhere -inf */
INLINE floats admitted(floats a, ints first, ints last, ints at) {
    const floats none = set_floats(-INFINITY);
    EACH(4) a.v[i] = chosen((first.v[i] <= at.v[i]) & (at.v[i] <= last.v[i]), a.v[i], none.v[i]);
    return a;
}
INLINE float sum_lanes(floats a) {
    const float4 four = (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
    return (four[0] + four[1]) + (four[2] + four[3]);
}
/* NaN where a lane is one, or any number */
INLINE float largest_lane(floats a) {
    float found = LANE(a, 0);
    for (int i = 1; i < 16; i++) found = found > LANE(a, i) ? found : LANE(a, i);
    return found;
}
/* The nearest float16, half to even */
INLINE uint16_t half_of(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    const uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (size < 0x38800000) return (uint16_t)(sign | (uint32_t)(int32_t)((from_bits(size) * 0x1p24f + 0x1.8p23f) - 0x1.8p23f));
    return (uint16_t)(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}
INLINE void store_f16(void *p, floats a) {
    uint16_t half[16];
    EACH(16) half[i] = half_of(LANE(a, i));
    memcpy(p, half, 32);
}

/* v[i] lane j becomes v[j] lane i */
INLINE void turn_16(floats *v) {
    float from[16][16], to[16][16];
    memcpy(from, v, sizeof from);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) to[i][j] = from[j][i];
    memcpy(v, to, sizeof to);
}
/* Lane i is the sum of the lanes of v[i] */
INLINE floats sums_of_16(const floats *v) {
    floats sum;
    EACH(16) LANE(sum, i) = sum_lanes(v[i]);
    return sum;
}
