/* What attention adds to the vocabulary of `avx2.h`. */
#include <math.h>

#define EACH(n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

#define BOTH(f, x, y) (floats){f(x.a, y.a), f(x.b, y.b)}
/* The larger and the smaller of two; y where one is not a number */
INLINE floats larger(floats x, floats y) { return BOTH(_mm256_max_ps, x, y); }
INLINE floats smaller(floats x, floats y) { return BOTH(_mm256_min_ps, x, y); }
INLINE floats subtract(floats x, floats y) { return BOTH(_mm256_sub_ps, x, y); }
INLINE floats nearest(floats v) {
    const int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return (floats){_mm256_round_ps(v.a, mode), _mm256_round_ps(v.b, mode)};
}
/* In two steps, as a power may lie below the least normal one where its product does not */
INLINE __m256 times_power_half(__m256 v, __m256 n) {
    const __m256i power = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(power, 1), rest = _mm256_sub_epi32(power, half);
    const __m256i bias = _mm256_set1_epi32(127);
    v = _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}
/* v 2^n for a whole n from -250 to 250 */
INLINE floats times_power(floats v, floats n) { return BOTH(times_power_half, v, n); }
/* `other` where v is `value` */
INLINE floats replace_equal(floats v, float value, floats other) {
    const __m256 same = _mm256_set1_ps(value);
    return (floats){_mm256_blendv_ps(v.a, other.a, _mm256_cmp_ps(v.a, same, _CMP_EQ_OQ)),
                    _mm256_blendv_ps(v.b, other.b, _mm256_cmp_ps(v.b, same, _CMP_EQ_OQ))};
}
INLINE __m256 admitted_half(__m256 v, __m256i first, __m256i last, __m256i at) {
    const __m256i out = _mm256_or_si256(_mm256_cmpgt_epi32(first, at), _mm256_cmpgt_epi32(at, last));
    return _mm256_blendv_ps(v, _mm256_set1_ps(-INFINITY), _mm256_castsi256_ps(out));
}
/* v in the lanes that have first <= at <= last, elsewhere -inf */
INLINE floats admitted(floats v, ints first, ints last, ints at) {
    return (floats){admitted_half(v.a, first.a, last.a, at.a), admitted_half(v.b, first.b, last.b, at.b)};
}
INLINE float sum_lanes(floats v) {
    const __m256 all = _mm256_add_ps(v.a, v.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
/* NaN where a lane is one, or any number */
INLINE float largest_lane(floats v) {
    const __m256 all = _mm256_max_ps(v.a, v.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
INLINE void store_f16(void *p, floats v) {
    const int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v.a, mode));
    _mm_storeu_si128((__m128i *)p + 1, _mm256_cvtps_ph(v.b, mode));
}

/* Of eight vectors of eight lanes, lane j of v[i] becomes lane i of v[j] */
INLINE void turn_8(__m256 *v) {
    __m256 t[8], u[8];
    EACH(4) {
        t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
    }
    EACH(2) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    EACH(4) {
        v[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
        v[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
}
/* v[i] lane j becomes v[j] lane i */
INLINE void turn_16(floats *v) {
    __m256 a[8], b[8], c[8], d[8];
    EACH(8) { a[i] = v[i].a; b[i] = v[i].b; c[i] = v[8 + i].a; d[i] = v[8 + i].b; }
    turn_8(a); turn_8(b); turn_8(c); turn_8(d);
    EACH(8) { v[i] = (floats){a[i], c[i]}; v[8 + i] = (floats){b[i], d[i]}; }
}
/* Lane i is the sum of the lanes of v[i] */
INLINE floats sums_of_16(const floats *v) {
    __m256 low[8], high[8];
    EACH(8) {
        low[i] = _mm256_add_ps(v[i].a, v[i].b);
        high[i] = _mm256_add_ps(v[8 + i].a, v[8 + i].b);
    }
    floats sum;
    EACH(2) {
        __m256 *w = i ? high : low;
        const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(w[0], w[1]), _mm256_hadd_ps(w[2], w[3]));
        const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(w[4], w[5]), _mm256_hadd_ps(w[6], w[7]));
        const __m256 all = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
        if (i) sum.b = all;
        else sum.a = all;
    }
    return sum;
}
