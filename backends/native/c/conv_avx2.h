/* What convolutions add to the vocabulary of `avx2.h`. A vector of bytes holds four of each of 16 lanes. */

/* Four neighbouring codes in every lane */
INLINE bytes64 spread_bytes(const uint8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return (bytes64){_mm256_set1_epi32(four), _mm256_set1_epi32(four)};
}
/* Byte 4 c + t is channel c of tap t: four pixels of 16 channels, `stride` bytes apart */
INLINE bytes64 gather_taps(const uint8_t *p, long stride) {
    const __m128i t0 = _mm_loadu_si128((const __m128i *)p), t1 = _mm_loadu_si128((const __m128i *)(p + stride));
    const __m128i t2 = _mm_loadu_si128((const __m128i *)(p + 2 * stride)), t3 = _mm_loadu_si128((const __m128i *)(p + 3 * stride));
    const __m128i low01 = _mm_unpacklo_epi8(t0, t1), low23 = _mm_unpacklo_epi8(t2, t3);
    const __m128i high01 = _mm_unpackhi_epi8(t0, t1), high23 = _mm_unpackhi_epi8(t2, t3);
    return (bytes64){_mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23)),
                     _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23))};
}

typedef struct { __m256i zero, low, high; } code_range;
INLINE code_range range_of(int zero, int low, int high) {
    return (code_range){_mm256_set1_epi16((int16_t)zero), _mm256_set1_epi8((char)low), _mm256_set1_epi8((char)high)};
}
/* round half to even; beyond int32 it is the end that saturates */
INLINE __m256i rounded_half(__m256i acc, __m256 scale) {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(acc), scale), _mm256_set1_ps(0x1p30f)));
}
INLINE __m256i codes_of_two(ints a, ints b, floats scale, code_range range) {
    const __m256i wa = _mm256_packs_epi32(rounded_half(a.a, scale.a), rounded_half(a.b, scale.b));
    const __m256i wb = _mm256_packs_epi32(rounded_half(b.a, scale.a), rounded_half(b.b, scale.b));
    __m256i v = _mm256_packus_epi16(_mm256_adds_epi16(wa, range.zero), _mm256_adds_epi16(wb, range.zero));
    v = _mm256_min_epu8(_mm256_max_epu8(v, range.low), range.high);
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
INLINE void store_two(uint8_t *y, int count, __m256i v) {
    if (count > 1) _mm256_storeu_si256((__m256i *)y, v);
    else _mm_storeu_si128((__m128i *)y, _mm256_castsi256_si128(v));
}
/* The codes of 16 channels of up to four pixels, one behind the other */
INLINE void store_codes(uint8_t *y, int count, ints a, ints b, ints c, ints d, floats scale, code_range range) {
    store_two(y, count, codes_of_two(a, b, scale, range));
    if (count > 2) store_two(y + 32, count - 2, codes_of_two(c, d, scale, range));
}
INLINE void store_clamped(float *y, ints acc, floats scale, floats least, floats most) {
    const floats v = mul(to_floats(acc), scale);
    _mm256_storeu_ps(y, _mm256_min_ps(_mm256_max_ps(v.a, least.a), most.a));
    _mm256_storeu_ps(y + 8, _mm256_min_ps(_mm256_max_ps(v.b, least.b), most.b));
}
