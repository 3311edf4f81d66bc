/* The vocabulary of kernels on 256-bit vectors: a vector of 64 bytes, or of 16 lanes, is a pair of registers. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef struct { __m256i a, b; } bytes64;
typedef struct { __m256i a, b; } ints;
typedef struct { __m256 a, b; } floats;

INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
INLINE void prefetch_far(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }

/* Bytes */
INLINE __m256i load_half(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE bytes64 load_bytes(const void *p) { return (bytes64){load_half(p), load_half((const char *)p + 32)}; }
INLINE void store_bytes(void *p, bytes64 v) {
    _mm256_storeu_si256((__m256i *)p, v.a);
    _mm256_storeu_si256((__m256i *)((char *)p + 32), v.b);
}
/* The first `count` of 64 bytes */
INLINE void store_some(void *p, ints v, int count) {
    if (count >= 64) {
        _mm256_storeu_si256((__m256i *)p, v.a);
        _mm256_storeu_si256((__m256i *)((char *)p + 32), v.b);
    } else memcpy(p, &v, (size_t)count);
}
INLINE bytes64 set_bytes(int value) { return (bytes64){_mm256_set1_epi8((char)value), _mm256_set1_epi8((char)value)}; }
INLINE __m256i moved_half(__m256i v, int left) {
    return left > 0 ? _mm256_slli_epi16(v, left) : left < 0 ? _mm256_srli_epi16(v, -left) : v;
}
/* (v >> count) & mask in every byte; count below 8 */
INLINE bytes64 field(bytes64 v, int count, int mask) {
    __m256i kept = _mm256_set1_epi8((char)mask);
    return (bytes64){_mm256_and_si256(moved_half(v.a, -count), kept), _mm256_and_si256(moved_half(v.b, -count), kept)};
}
/* low | the bits of `mask` in v shifted: left where count is positive, right where it is negative */
INLINE bytes64 merge(bytes64 low, bytes64 v, int count, int mask) {
    __m256i kept = _mm256_set1_epi8((char)mask);
    return (bytes64){_mm256_or_si256(low.a, _mm256_and_si256(moved_half(v.a, count), kept)),
                     _mm256_or_si256(low.b, _mm256_and_si256(moved_half(v.b, count), kept))};
}
INLINE __m256i plane_half(const void *p, int value) {
    int32_t bits;
    memcpy(&bits, p, 4);
    __m256i places = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    __m256i one = _mm256_set1_epi64x((long long)0x8040201008040201);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits), places);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, one), one), _mm256_set1_epi8((char)value));
}
/* value in the bytes whose bit is set in the 64 bits at p, 0 in the others */
INLINE bytes64 plane(const void *p, int value) {
    return (bytes64){plane_half(p, value), plane_half((const char *)p + 4, value)};
}
/* v + value in the bytes whose bit is set in the 64 bits at p */
INLINE bytes64 add_plane(bytes64 v, const void *p, int value) {
    bytes64 set = plane(p, value);
    return (bytes64){_mm256_add_epi8(v.a, set.a), _mm256_add_epi8(v.b, set.b)};
}
INLINE __m256i lookup_half(__m256i codes, const uint8_t *table, int bits) {
    __m256i low = bits <= 4 ? codes : _mm256_and_si256(codes, _mm256_set1_epi8(15)), found = _mm256_setzero_si256();
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
    for (int h = 0; h < (bits <= 4 ? 1 : 1 << (bits - 4)); h++) {
        __m256i some = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(table + 16 * h)));
        __m256i value = _mm256_shuffle_epi8(some, low);
        if (bits <= 4) return value;
        found = _mm256_blendv_epi8(found, value, _mm256_cmpeq_epi8(high, _mm256_set1_epi8((char)h)));
    }
    return found;
}
/* table[code], of 16 bytes for codes of up to 4 bits, else of 2^bits bytes */
INLINE bytes64 lookup(bytes64 codes, const uint8_t *table, int bits) {
    return (bytes64){lookup_half(codes.a, table, bits), lookup_half(codes.b, table, bits)};
}

/* Lanes of 32 bits */
INLINE ints zero_ints(void) { return (ints){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE ints set_ints(int32_t value) { return (ints){_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
INLINE ints load_ints(const void *p) { return (ints){load_half(p), load_half((const char *)p + 32)}; }
INLINE ints load_u8(const void *p) {
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    return (ints){_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
INLINE ints load_i8(const void *p) {
    __m128i v = _mm_loadu_si128((const __m128i *)p);
    return (ints){_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
INLINE ints add_ints(ints a, ints b) { return (ints){_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
INLINE ints mul_ints(ints a, ints b) { return (ints){_mm256_mullo_epi32(a.a, b.a), _mm256_mullo_epi32(a.b, b.b)}; }
INLINE ints max_ints(ints a, ints b) { return (ints){_mm256_max_epi32(a.a, b.a), _mm256_max_epi32(a.b, b.b)}; }
/* Lane 4 i + j from lane 4 j + i */
INLINE ints turned(ints v) {
    const __m256i places = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return (ints){_mm256_permutevar8x32_epi32(_mm256_unpacklo_epi32(v.a, v.b), places),
                  _mm256_permutevar8x32_epi32(_mm256_unpackhi_epi32(v.a, v.b), places)};
}
INLINE __m256i bytes_of_words(__m256i a, __m256i b) {
    const __m256i places = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), places);
}
/* 64 numbers from -128 to 127 as bytes, in their order */
INLINE ints narrow(ints a, ints b, ints c, ints d) {
    return (ints){bytes_of_words(_mm256_packs_epi32(a.a, a.b), _mm256_packs_epi32(b.a, b.b)),
                  bytes_of_words(_mm256_packs_epi32(c.a, c.b), _mm256_packs_epi32(d.a, d.b))};
}
INLINE void split_half(ints a, ints b, __m256i *high, __m256i *low) {
    const __m256i v = _mm256_packs_epi32(a.a, a.b), w = _mm256_packs_epi32(b.a, b.b), half = _mm256_set1_epi16(128);
    *high = bytes_of_words(_mm256_srai_epi16(_mm256_add_epi16(v, half), 8),
                           _mm256_srai_epi16(_mm256_add_epi16(w, half), 8));
    *low = bytes_of_words(_mm256_srai_epi16(_mm256_slli_epi16(v, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
}
/* 64 numbers from -2^15 to 127 * 257 as signed bytes: 256 high + low */
INLINE void split(ints a, ints b, ints c, ints d, ints *high, ints *low) {
    split_half(a, b, &high->a, &low->a);
    split_half(c, d, &high->b, &low->b);
}
/* What lanes are joined to, those of one number beside each other: sum_8 and most_8 take two vectors, of a number each,
   to 8 lanes for each number; sum_4 and most_4 two vectors of such, of 4 numbers, to 4 lanes; sum_1 and most_1 four
   vectors, of 16 numbers, to one lane. */
#define JOINED(name, join)                                                                                          \
    INLINE ints name##_8(ints a, ints b) { return (ints){join(a.a, a.b), join(b.a, b.b)}; }                         \
    INLINE __m256i name##_4_half(ints v) {                                                                          \
        return join(_mm256_permute2x128_si256(v.a, v.b, 0x20), _mm256_permute2x128_si256(v.a, v.b, 0x31));          \
    }                                                                                                               \
    INLINE ints name##_4(ints a, ints b) { return (ints){name##_4_half(a), name##_4_half(b)}; }                     \
    INLINE __m256i name##_1_half(__m256i a, __m256i b, __m256i c, __m256i d) {                                      \
        const __m256 v = (__m256)join(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));                    \
        const __m256 w = (__m256)join(_mm256_unpacklo_epi64(c, d), _mm256_unpackhi_epi64(c, d));                    \
        return join((__m256i)_mm256_shuffle_ps(v, w, 0x88), (__m256i)_mm256_shuffle_ps(v, w, 0xdd));                \
    }                                                                                                               \
    INLINE ints name##_1(ints a, ints b, ints c, ints d) {                                                          \
        return turned((ints){name##_1_half(a.a, b.a, c.a, d.a), name##_1_half(a.b, b.b, c.b, d.b)});                \
    }
JOINED(sum, _mm256_add_epi32)
JOINED(most, _mm256_max_epi32)
/* Four neighbouring activations in every lane */
INLINE ints spread4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return set_ints(four);
}
#ifdef __AVXVNNI__
/* acc + four products in every lane: unsigned bytes of w times signed bytes of x, exact */
INLINE ints dot(ints acc, bytes64 w, ints x) {
    return (ints){_mm256_dpbusd_avx_epi32(acc.a, w.a, x.a), _mm256_dpbusd_avx_epi32(acc.b, w.b, x.b)};
}
INLINE ints dot_wide(ints acc, bytes64 w, ints x) { return dot(acc, w, x); }
#else
INLINE __m256i dot_half(__m256i acc, __m256i w, __m256i x) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
/* acc + four products in every lane: bytes of w from 0 to 127 times signed bytes of x, whose pair sums 16 bits hold */
INLINE ints dot(ints acc, bytes64 w, ints x) { return (ints){dot_half(acc.a, w.a, x.a), dot_half(acc.b, w.b, x.b)}; }
INLINE __m256i dot_wide_half(__m256i acc, __m256i w, __m256i x) {
    __m256i low = _mm256_madd_epi16(_mm256_and_si256(w, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
    __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(w, 8), _mm256_srai_epi16(x, 8));
    return _mm256_add_epi32(acc, _mm256_add_epi32(low, high));
}
/* The same for bytes of w up to 255 */
INLINE ints dot_wide(ints acc, bytes64 w, ints x) {
    return (ints){dot_wide_half(acc.a, w.a, x.a), dot_wide_half(acc.b, w.b, x.b)};
}
#endif

/* Floats */
INLINE floats zero_floats(void) { return (floats){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE floats set_floats(float value) { return (floats){_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
INLINE floats to_floats(ints v) { return (floats){_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
INLINE floats mul(floats a, floats b) { return (floats){_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
INLINE floats add(floats a, floats b) { return (floats){_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
INLINE floats fma_(floats a, floats b, floats c) {
    return (floats){_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)};
}
INLINE floats divide(floats a, floats b) { return (floats){_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
/* Of two numbers the second where either is NaN */
INLINE floats min_floats(floats a, floats b) { return (floats){_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
INLINE floats max_floats(floats a, floats b) { return (floats){_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
/* Half to even */
INLINE ints to_ints(floats v) { return (ints){_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
INLINE floats as_floats(ints bits) { return (floats){_mm256_castsi256_ps(bits.a), _mm256_castsi256_ps(bits.b)}; }
/* The bits of |v| */
INLINE ints size_bits(floats v) {
    const __m256i kept = _mm256_set1_epi32(0x7fffffff);
    return (ints){_mm256_and_si256(_mm256_castps_si256(v.a), kept), _mm256_and_si256(_mm256_castps_si256(v.b), kept)};
}
/* The first `count` lanes of v, and of `other` the rest */
INLINE floats keep_lanes(floats v, int count, floats other) {
    if (count >= 16) return v;
    const __m256i places = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i a = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), places);
    const __m256i b = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), places);
    return (floats){_mm256_blendv_ps(other.a, v.a, _mm256_castsi256_ps(a)),
                    _mm256_blendv_ps(other.b, v.b, _mm256_castsi256_ps(b))};
}
INLINE floats load_f32(const void *p) { return (floats){_mm256_loadu_ps(p), _mm256_loadu_ps((const float *)p + 8)}; }
INLINE floats load_f16(const void *p) {
    const __m128i *q = (const __m128i *)p;
    return (floats){_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
INLINE __m256 bf16_half(const __m128i *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
INLINE floats load_bf16(const void *p) { return (floats){bf16_half(p), bf16_half((const __m128i *)p + 1)}; }
INLINE __m256 e8m0_half(__m256i exponent) {
    __m256 none = _mm256_castsi256_ps(_mm256_cmpeq_epi32(exponent, _mm256_setzero_si256()));
    return _mm256_blendv_ps(_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)), _mm256_set1_ps(0x1p-127f), none);
}
INLINE floats load_e8m0(const void *p) {
    ints exponent = load_u8(p);
    return (floats){e8m0_half(exponent.a), e8m0_half(exponent.b)};
}
/* e4m3 is float16 shifted by its exponent bias: 2^8 times the same bits one place up */
INLINE floats load_e4m3(const void *p) {
    __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x80)), 8);
    __m256i half = _mm256_or_si256(sign, _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x7f)), 7));
    floats v = {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
    return mul(v, set_floats(256.0f));
}
/* The first `count` of 16 numbers */
INLINE floats load_some(const float *p, int count) {
    float all[16] = {0};
    memcpy(all, p, sizeof(float) * (size_t)(count < 16 ? count : 16));
    return load_f32(all);
}
INLINE void store_floats(float *p, floats v, int count) {
    if (count >= 16) {
        _mm256_storeu_ps(p, v.a);
        _mm256_storeu_ps(p + 8, v.b);
        return;
    }
    float all[16];
    _mm256_storeu_ps(all, v.a);
    _mm256_storeu_ps(all + 8, v.b);
    memcpy(p, all, sizeof(float) * (size_t)count);
}
