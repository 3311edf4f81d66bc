/* What row kernels add to the vocabulary of `portable.h`. */

INLINE floats sub(floats a, floats b) { EACH(4) a.v[i] -= b.v[i]; return a; }
/* c - a b */
INLINE floats fnma_(floats a, floats b, floats c) { EACH(4) c.v[i] -= a.v[i] * b.v[i]; return c; }
INLINE floats negate(floats v) { EACH(4) v.v[i] = -v.v[i]; return v; }
INLINE floats abs_floats(floats v) { EACH(4) v.v[i] = (float4)((int4)v.v[i] & 0x7fffffff); return v; }
INLINE floats copy_sign(floats size, floats from) {
    EACH(4) size.v[i] = (float4)(((int4)size.v[i] & 0x7fffffff) | ((int4)from.v[i] & (int32_t)0x80000000));
    return size;
}
INLINE floats sqrt_floats(floats v) { EACH(16) v.v[i / 4][i % 4] = sqrtf(v.v[i / 4][i % 4]); return v; }
/* Half to even: so does adding what leaves no place for a fraction, and taking it away */
INLINE floats round_floats(floats v) {
    EACH(4) {
        const float4 whole = v.v[i] + 0x1.8p23f - 0x1.8p23f, size = (float4)((int4)v.v[i] & 0x7fffffff);
        v.v[i] = pick(size < 0x1p22f, whole, v.v[i]);
    }
    return v;
}
/* v 2^n for whole n from -252 to 254, in two steps so that no power is out of range */
INLINE floats scale_by_power(floats v, floats n) {
    const ints power = to_ints(n);
    EACH(4) {
        const int4 low = power.v[i] >> 1, high = power.v[i] - low;
        v.v[i] = v.v[i] * (float4)(low + 127 << 23) * (float4)(high + 127 << 23);
    }
    return v;
}
/* v = mantissa 2^exponent of a normal v > 0: the mantissa in [1, 2) */
INLINE floats exponent_of(floats v) {
    EACH(4) v.v[i] = __builtin_convertvector(((int4)v.v[i] >> 23) - 127, float4);
    return v;
}
INLINE floats mantissa_of(floats v) {
    EACH(4) v.v[i] = (float4)(((int4)v.v[i] & 0x7fffff) | 127 << 23);
    return v;
}
/* yes where a < b, else no: no where either is NaN */
INLINE floats select_less(floats a, floats b, floats yes, floats no) {
    EACH(4) no.v[i] = pick(a.v[i] < b.v[i], yes.v[i], no.v[i]);
    return no;
}
/* v where a is a number, else a */
INLINE floats unless_nan(floats a, floats v) { EACH(4) v.v[i] = pick(a.v[i] == a.v[i], v.v[i], a.v[i]); return v; }
INLINE float sum_lanes(floats v) {
    const float4 four = (v.v[0] + v.v[2]) + (v.v[1] + v.v[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float max_lanes(floats v) {
    float most = v.v[0][0];
    EACH(16) most = most > v.v[i / 4][i % 4] ? most : v.v[i / 4][i % 4];
    return most;
}
/* The low bytes of the first `count` lanes */
INLINE void store_low_bytes(void *p, ints v, int count) {
    uint8_t low[16];
    EACH(16) low[i] = (uint8_t)v.v[i / 4][i % 4];
    memcpy(p, low, (size_t)(count < 16 ? count : 16));
}
