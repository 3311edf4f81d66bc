/* What convolutions add to the vocabulary of `avx512.h`. A vector of bytes holds four of each of 16 lanes. */

/* Four neighbouring codes in every lane */
INLINE bytes64 spread_bytes(const uint8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}
/* Byte 4 c + t is channel c of tap t: four pixels of 16 channels, `stride` bytes apart */
INLINE bytes64 gather_taps(const uint8_t *p, long stride) {
    bytes64 v;
    if (stride == 16) {
        v = load_bytes(p);
    } else {
        v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)p));
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + stride)), 1);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 2 * stride)), 2);
        v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(p + 3 * stride)), 3);
    }
#ifdef __AVX512VBMI__
    const ints order = _mm512_setr_epi32(0x30201000, 0x31211101, 0x32221202, 0x33231303, 0x34241404, 0x35251505, 0x36261606,
        0x37271707, 0x38281808, 0x39291909, 0x3a2a1a0a, 0x3b2b1b0b, 0x3c2c1c0c, 0x3d2d1d0d, 0x3e2e1e0e, 0x3f2f1f0f);
    return _mm512_permutexvar_epi8(order, v);
#else
    v = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
    return _mm512_shuffle_epi8(v, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
#endif
}

typedef struct { ints zero; bytes64 low, high; } code_range;
INLINE code_range range_of(int zero, int low, int high) {
    return (code_range){_mm512_set1_epi16((int16_t)zero), set_bytes(low), set_bytes(high)};
}
/* round half to even; beyond int32 it is the end that saturates */
INLINE ints rounded(ints acc, floats scale) {
    return _mm512_cvtps_epi32(_mm512_min_ps(mul(to_floats(acc), scale), set_floats(0x1p30f)));
}
/* The codes of 16 channels of up to four pixels, one behind the other */
INLINE void store_codes(uint8_t *y, int count, ints a, ints b, ints c, ints d, floats scale, code_range range) {
    ints ab = _mm512_packs_epi32(rounded(a, scale), rounded(b, scale));
    ints cd = _mm512_packs_epi32(rounded(c, scale), rounded(d, scale));
    ints v = _mm512_packus_epi16(_mm512_adds_epi16(ab, range.zero), _mm512_adds_epi16(cd, range.zero));
    v = _mm512_min_epu8(_mm512_max_epu8(v, range.low), range.high);
    v = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
    if (count == 4) store_bytes(y, v);
    else _mm512_mask_storeu_epi32(y, (__mmask16)((1u << 4 * count) - 1), v);
}
INLINE void store_clamped(float *y, ints acc, floats scale, floats least, floats most) {
    _mm512_storeu_ps(y, _mm512_min_ps(_mm512_max_ps(mul(to_floats(acc), scale), least), most));
}
