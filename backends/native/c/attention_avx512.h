/* What attention adds to the vocabulary of `avx512.h`. */
#include <math.h>

#define EACH(n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

/* The larger and the smaller of two; b where one is not a number */
INLINE floats larger(floats a, floats b) { return _mm512_max_ps(a, b); }
INLINE floats smaller(floats a, floats b) { return _mm512_min_ps(a, b); }
INLINE floats subtract(floats a, floats b) { return _mm512_sub_ps(a, b); }
INLINE floats nearest(floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* v 2^n for a whole n */
INLINE floats times_power(floats v, floats n) { return _mm512_scalef_ps(v, n); }
/* `other` where v is `value` */
INLINE floats replace_equal(floats v, float value, floats other) {
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, _mm512_set1_ps(value), _CMP_EQ_OQ), other);
}
/* v in the lanes that have first <= at <= last, elsewhere -inf */
INLINE floats admitted(floats v, ints first, ints last, ints at) {
    const __mmask16 in = _mm512_mask_cmple_epi32_mask(_mm512_cmple_epi32_mask(first, at), at, last);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), in, v);
}
INLINE float sum_lanes(floats v) { return _mm512_reduce_add_ps(v); }
/* NaN where a lane is one, or any number */
INLINE float largest_lane(floats v) { return _mm512_reduce_max_ps(v); }
INLINE void store_f16(void *p, floats v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/* Signed bytes as unsigned ones that are 128 higher */
INLINE bytes64 raised(bytes64 v) { return _mm512_xor_si512(v, _mm512_set1_epi8((char)128)); }

/* Lane i is the sum of the lanes of v[i] */
INLINE floats sums_of_16(const floats *v) {
    floats h[8], q[4];
    EACH(8) h[i] = _mm512_add_ps(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    EACH(4) {
        const __m512d a = _mm512_castps_pd(h[2 * i]), b = _mm512_castps_pd(h[2 * i + 1]);
        q[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const floats low = _mm512_add_ps(_mm512_shuffle_f32x4(q[0], q[1], 0x88), _mm512_shuffle_f32x4(q[0], q[1], 0xdd));
    const floats high = _mm512_add_ps(_mm512_shuffle_f32x4(q[2], q[3], 0x88), _mm512_shuffle_f32x4(q[2], q[3], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}
/* v[i] lane j becomes v[j] lane i */
INLINE void turn_16(floats *v) {
    floats t[16];
    EACH(8) {
        t[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    EACH(4) {
        const __m512d a = _mm512_castps_pd(t[4 * i]), b = _mm512_castps_pd(t[4 * i + 2]);
        const __m512d c = _mm512_castps_pd(t[4 * i + 1]), d = _mm512_castps_pd(t[4 * i + 3]);
        v[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        v[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        v[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
        v[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
    EACH(4) {
        t[i] = _mm512_shuffle_f32x4(v[i], v[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_f32x4(v[i], v[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_f32x4(v[8 + i], v[12 + i], 0xdd);
    }
    EACH(4) {
        v[i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88);
        v[8 + i] = _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd);
        v[4 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88);
        v[12 + i] = _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd);
    }
}
