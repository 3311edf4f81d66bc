/* What row kernels add to the vocabulary of `avx2.h`. */

INLINE floats sub(floats a, floats b) { return (floats){_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
/* c - a b */
INLINE floats fnma_(floats a, floats b, floats c) {
    return (floats){_mm256_fnmadd_ps(a.a, b.a, c.a), _mm256_fnmadd_ps(a.b, b.b, c.b)};
}
INLINE floats negate(floats v) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (floats){_mm256_xor_ps(v.a, sign), _mm256_xor_ps(v.b, sign)};
}
INLINE floats abs_floats(floats v) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (floats){_mm256_andnot_ps(sign, v.a), _mm256_andnot_ps(sign, v.b)};
}
INLINE floats copy_sign(floats size, floats from) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    const floats kept = abs_floats(size);
    return (floats){_mm256_or_ps(kept.a, _mm256_and_ps(sign, from.a)), _mm256_or_ps(kept.b, _mm256_and_ps(sign, from.b))};
}
INLINE floats sqrt_floats(floats v) { return (floats){_mm256_sqrt_ps(v.a), _mm256_sqrt_ps(v.b)}; }
/* Half to even */
INLINE floats round_floats(floats v) {
    return (floats){_mm256_round_ps(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                    _mm256_round_ps(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
INLINE __m256 scaled_half(__m256 v, __m256 n) {
    const __m256i power = _mm256_cvtps_epi32(n), low = _mm256_srai_epi32(power, 1), bias = _mm256_set1_epi32(127);
    const __m256i high = _mm256_sub_epi32(power, low);
    v = _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(low, bias), 23)));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(high, bias), 23)));
}
/* v 2^n for whole n from -252 to 254, in two steps so that no power is out of range */
INLINE floats scale_by_power(floats v, floats n) { return (floats){scaled_half(v.a, n.a), scaled_half(v.b, n.b)}; }
INLINE __m256 exponent_half(__m256 v) {
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_srli_epi32(_mm256_castps_si256(v), 23), _mm256_set1_epi32(127)));
}
INLINE __m256 mantissa_half(__m256 v) {
    const __m256i low = _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x7fffff));
    return _mm256_castsi256_ps(_mm256_or_si256(low, _mm256_set1_epi32(127 << 23)));
}
/* v = mantissa 2^exponent of a normal v > 0: the mantissa in [1, 2) */
INLINE floats exponent_of(floats v) { return (floats){exponent_half(v.a), exponent_half(v.b)}; }
INLINE floats mantissa_of(floats v) { return (floats){mantissa_half(v.a), mantissa_half(v.b)}; }
/* yes where a < b, else no: no where either is NaN */
INLINE floats select_less(floats a, floats b, floats yes, floats no) {
    return (floats){_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                    _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
/* v where a is a number, else a */
INLINE floats unless_nan(floats a, floats v) {
    return (floats){_mm256_blendv_ps(v.a, a.a, _mm256_cmp_ps(a.a, a.a, _CMP_UNORD_Q)),
                    _mm256_blendv_ps(v.b, a.b, _mm256_cmp_ps(a.b, a.b, _CMP_UNORD_Q))};
}
INLINE __m128 half_lanes(floats v, int most) {
    const __m256 a = most ? _mm256_max_ps(v.a, v.b) : _mm256_add_ps(v.a, v.b);
    const __m128 c = _mm256_castps256_ps128(a), d = _mm256_extractf128_ps(a, 1);
    return most ? _mm_max_ps(c, d) : _mm_add_ps(c, d);
}
INLINE float sum_lanes(floats v) {
    __m128 c = half_lanes(v, 0);
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_movehdup_ps(c)));
}
INLINE float max_lanes(floats v) {
    __m128 c = half_lanes(v, 1);
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}
/* The low bytes of the first `count` lanes */
INLINE void store_low_bytes(void *p, ints v, int count) {
    const __m256i places = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                            0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i a = _mm256_shuffle_epi8(v.a, places), b = _mm256_shuffle_epi8(v.b, places);
    const __m128i low = _mm_unpacklo_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    const __m128i high = _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
    const __m128i all = _mm_unpacklo_epi64(low, high);
    if (count >= 16) {
        _mm_storeu_si128((__m128i *)p, all);
        return;
    }
    uint8_t bytes[16];
    _mm_storeu_si128((__m128i *)bytes, all);
    memcpy(p, bytes, (size_t)count);
}
