/* What row kernels add to the vocabulary of `avx512.h`. */

INLINE floats sub(floats a, floats b) { return _mm512_sub_ps(a, b); }
/* c - a b */
INLINE floats fnma_(floats a, floats b, floats c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE floats negate(floats v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }
INLINE floats abs_floats(floats v) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), v); }
INLINE floats copy_sign(floats size, floats sign) {
    return _mm512_or_ps(_mm512_andnot_ps(_mm512_set1_ps(-0.0f), size), _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
}
INLINE floats sqrt_floats(floats v) { return _mm512_sqrt_ps(v); }
/* Half to even */
INLINE floats round_floats(floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* v 2^n for whole n */
INLINE floats scale_by_power(floats v, floats n) { return _mm512_scalef_ps(v, n); }
/* v = mantissa 2^exponent of v > 0: the mantissa in [1, 2) */
INLINE floats exponent_of(floats v) { return _mm512_getexp_ps(v); }
INLINE floats mantissa_of(floats v) { return _mm512_getmant_ps(v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src); }
/* yes where a < b, else no: no where either is NaN */
INLINE floats select_less(floats a, floats b, floats yes, floats no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}
/* v where a is a number, else a */
INLINE floats unless_nan(floats a, floats v) { return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), a); }
INLINE __m128 half_lanes(__m512 v, int most) {
    __m256 a = _mm512_castps512_ps256(v), b = _mm512_extractf32x8_ps(v, 1);
    a = most ? _mm256_max_ps(a, b) : _mm256_add_ps(a, b);
    __m128 c = _mm256_castps256_ps128(a), d = _mm256_extractf128_ps(a, 1);
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
    __m128i low = _mm512_cvtepi32_epi8(v);
    if (count >= 16) _mm_storeu_si128((__m128i *)p, low);
    else _mm_mask_storeu_epi8(p, (__mmask16)((1u << count) - 1), low);
}
