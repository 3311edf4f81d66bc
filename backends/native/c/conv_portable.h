/* What convolutions add to the vocabulary of `portable.h`. A vector of bytes holds four of each of 16 lanes. */

/* Four neighbouring codes in every lane */
INLINE bytes64 spread_bytes(const uint8_t *x) {
    int32_t four;
    bytes64 v;
    memcpy(&four, x, 4);
    EACH(4) v.v[i] = (byte16)(int4){four, four, four, four};
    return v;
}
#define INTERLEAVED(a, b, half) \
    __builtin_shufflevector(a, b, half, half + 16, half + 1, half + 17, half + 2, half + 18, half + 3, half + 19, half + 4, \
                            half + 20, half + 5, half + 21, half + 6, half + 22, half + 7, half + 23)
#define PAIRS(a, b, half) \
    (byte16)__builtin_shufflevector((half8)(a), (half8)(b), half, half + 8, half + 1, half + 9, half + 2, half + 10, half + 3, \
                                    half + 11)
/* Byte 4 c + t is channel c of tap t: four pixels of 16 channels, `stride` bytes apart */
INLINE bytes64 gather_taps(const uint8_t *p, long stride) {
    byte16 t[4];
    EACH(4) memcpy(&t[i], p + i * stride, 16);
    const byte16 low01 = INTERLEAVED(t[0], t[1], 0), low23 = INTERLEAVED(t[2], t[3], 0);
    const byte16 high01 = INTERLEAVED(t[0], t[1], 8), high23 = INTERLEAVED(t[2], t[3], 8);
    return (bytes64){{PAIRS(low01, low23, 0), PAIRS(low01, low23, 4), PAIRS(high01, high23, 0), PAIRS(high01, high23, 4)}};
}

typedef struct { int zero, low, high; } code_range;
INLINE code_range range_of(int zero, int low, int high) { return (code_range){zero, low, high}; }
/* Adding and taking away 3 * 2^22 rounds half to even, as every sum of floats; beyond 2^20 all codes saturate. */
INLINE void store_code(uint8_t *y, ints acc, floats scale, code_range range) {
    const floats v = mul(to_floats(acc), scale);
    EACH(16) {
        float f = v.v[i / 4][i % 4];
        f = f < 0x1p20f ? f : 0x1p20f;
        f = f > -0x1p20f ? f : -0x1p20f;
        const int code = (int)(f + 0x1.8p23f - 0x1.8p23f) + range.zero;
        y[i] = (uint8_t)(code < range.low ? range.low : code > range.high ? range.high : code);
    }
}
/* The codes of 16 channels of up to four pixels, one behind the other */
INLINE void store_codes(uint8_t *y, int count, ints a, ints b, ints c, ints d, floats scale, code_range range) {
    store_code(y, a, scale, range);
    if (count > 1) store_code(y + 16, b, scale, range);
    if (count > 2) store_code(y + 32, c, scale, range);
    if (count > 3) store_code(y + 48, d, scale, range);
}
INLINE void store_clamped(float *y, ints acc, floats scale, floats least, floats most) {
    const floats v = mul(to_floats(acc), scale);
    EACH(16) {
        const float f = v.v[i / 4][i % 4] > least.v[i / 4][i % 4] ? v.v[i / 4][i % 4] : least.v[i / 4][i % 4];
        y[i] = f < most.v[i / 4][i % 4] ? f : most.v[i / 4][i % 4];
    }
}
