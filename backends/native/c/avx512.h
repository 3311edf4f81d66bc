/* The vocabulary of kernels on 512-bit vectors: a vector is 64 bytes, or 16 lanes of 32 bits. */
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef __m512i bytes64;
typedef __m512i ints;
typedef __m512 floats;

INLINE void prefetch(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T0); }
INLINE void prefetch_far(const void *p) { _mm_prefetch((const char *)p, _MM_HINT_T1); }

/* Bytes */
INLINE bytes64 load_bytes(const void *p) { return _mm512_loadu_si512(p); }
INLINE void store_bytes(void *p, bytes64 v) { _mm512_storeu_si512(p, v); }
INLINE bytes64 set_bytes(int value) { return _mm512_set1_epi8((char)value); }
/* (v >> count) & mask in every byte; count below 8 */
INLINE bytes64 field(bytes64 v, int count, int mask) {
    return _mm512_and_si512(count ? _mm512_srli_epi16(v, count) : v, _mm512_set1_epi8((char)mask));
}
/* low | the bits of `mask` in v shifted: left where count is positive, right where it is negative */
INLINE bytes64 merge(bytes64 low, bytes64 v, int count, int mask) {
    bytes64 moved = count > 0 ? _mm512_slli_epi16(v, count) : count < 0 ? _mm512_srli_epi16(v, -count) : v;
    return _mm512_ternarylogic_epi32(low, moved, _mm512_set1_epi8((char)mask), 0xf8);
}
/* v + value in the bytes whose bit is set in the 64 bits at p */
INLINE bytes64 add_plane(bytes64 v, const void *p, int value) {
    __mmask64 set;
    memcpy(&set, p, 8);
    return _mm512_mask_add_epi8(v, set, v, _mm512_set1_epi8((char)value));
}
/* value in the bytes whose bit is set in the 64 bits at p, 0 in the others */
INLINE bytes64 plane(const void *p, int value) {
    __mmask64 set;
    memcpy(&set, p, 8);
    return _mm512_maskz_mov_epi8(set, _mm512_set1_epi8((char)value));
}
#ifdef __AVX512VBMI__
/* 64 codes of `bits` bits each from the dense bits at p, of which 64 bytes are read */
INLINE bytes64 expand_bits(const void *p, int bits, const uint8_t *bytes, const uint8_t *shifts) {
    bytes64 words = _mm512_permutexvar_epi8(load_bytes(bytes), load_bytes(p));
    return _mm512_and_si512(_mm512_multishift_epi64_epi8(load_bytes(shifts), words), _mm512_set1_epi8((char)((1 << bits) - 1)));
}
#endif
/* table[code], of 16 bytes for codes of up to 4 bits, else of 2^bits bytes */
INLINE bytes64 lookup(bytes64 codes, const uint8_t *table, int bits) {
    if (bits <= 4) return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), codes);
#ifdef __AVX512VBMI__
    if (bits == 5) return _mm512_permutexvar_epi8(codes, _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)table)));
    if (bits == 6) return _mm512_permutexvar_epi8(codes, load_bytes(table));
    bytes64 low = _mm512_permutex2var_epi8(load_bytes(table), codes, load_bytes(table + 64));
    if (bits == 7) return low;
    bytes64 high = _mm512_permutex2var_epi8(load_bytes(table + 128), codes, load_bytes(table + 192));
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high);
#else
    bytes64 found = _mm512_setzero_si512(), low = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    for (int h = 0; h < 1 << (bits - 4); h++) {
        __mmask64 here = _mm512_cmpeq_epi8_mask(field(codes, 4, 15), _mm512_set1_epi8((char)h));
        bytes64 some = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(table + 16 * h)));
        found = _mm512_mask_shuffle_epi8(found, here, some, low);
    }
    return found;
#endif
}

/* The first `count` of 64 bytes */
INLINE void store_some(void *p, ints v, int count) {
    if (count >= 64) _mm512_storeu_si512(p, v);
    else _mm512_mask_storeu_epi8(p, (1ull << count) - 1, v);
}

/* Lanes of 32 bits */
INLINE ints zero_ints(void) { return _mm512_setzero_si512(); }
INLINE ints set_ints(int32_t value) { return _mm512_set1_epi32(value); }
INLINE ints load_ints(const void *p) { return _mm512_loadu_si512(p); }
INLINE ints load_u8(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE ints load_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
INLINE ints add_ints(ints a, ints b) { return _mm512_add_epi32(a, b); }
INLINE ints mul_ints(ints a, ints b) { return _mm512_mullo_epi32(a, b); }
INLINE ints max_ints(ints a, ints b) { return _mm512_max_epi32(a, b); }
/* Lane 4 i + j from lane 4 j + i */
INLINE ints turned(ints v) {
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v);
}
/* 64 numbers from -128 to 127 as bytes, in their order */
INLINE ints narrow(ints a, ints b, ints c, ints d) {
    return turned(_mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)));
}
/* 64 numbers from -2^15 to 127 * 257 as signed bytes: 256 high + low */
INLINE void split(ints a, ints b, ints c, ints d, ints *high, ints *low) {
    const __m512i v = _mm512_packs_epi32(a, b), w = _mm512_packs_epi32(c, d), half = _mm512_set1_epi16(128);
    *high = turned(_mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(v, half), 8),
                                      _mm512_srai_epi16(_mm512_add_epi16(w, half), 8)));
    *low = turned(_mm512_packs_epi16(_mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8),
                                     _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8)));
}
/* What lanes are joined to, those of one number beside each other: sum_8 and most_8 take two vectors, of a number each,
   to 8 lanes for each number; sum_4 and most_4 two vectors of such, of 4 numbers, to 4 lanes; sum_1 and most_1 four
   vectors, of 16 numbers, to one lane. */
#define JOINED(name, join)                                                                             \
    INLINE ints name##_8(ints a, ints b) {                                                             \
        return join(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));               \
    }                                                                                                  \
    INLINE ints name##_4(ints a, ints b) {                                                             \
        return join(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));               \
    }                                                                                                  \
    INLINE ints name##_1(ints a, ints b, ints c, ints d) {                                             \
        const __m512 v = (__m512)join(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));       \
        const __m512 w = (__m512)join(_mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d));       \
        return turned(join((ints)_mm512_shuffle_ps(v, w, 0x88), (ints)_mm512_shuffle_ps(v, w, 0xdd))); \
    }
JOINED(sum, add_ints)
JOINED(most, max_ints)
/* Four neighbouring activations in every lane */
INLINE ints spread4(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}
/* acc + four products in every lane: unsigned bytes of w times signed bytes of x, exact. The instruction is written out:
   between vectors of 64-bit and of 32-bit lanes, as the intrinsic has them, gcc 12 copies and spills accumulators. */
INLINE ints dot(ints acc, bytes64 w, ints x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x));
    return acc;
}
INLINE ints dot_wide(ints acc, bytes64 w, ints x) { return dot(acc, w, x); }

/* Floats */
INLINE floats zero_floats(void) { return _mm512_setzero_ps(); }
INLINE floats set_floats(float value) { return _mm512_set1_ps(value); }
INLINE floats to_floats(ints v) { return _mm512_cvtepi32_ps(v); }
INLINE floats mul(floats a, floats b) { return _mm512_mul_ps(a, b); }
INLINE floats add(floats a, floats b) { return _mm512_add_ps(a, b); }
INLINE floats fma_(floats a, floats b, floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE floats divide(floats a, floats b) { return _mm512_div_ps(a, b); }
/* Of two numbers the second where either is NaN */
INLINE floats min_floats(floats a, floats b) { return _mm512_min_ps(a, b); }
INLINE floats max_floats(floats a, floats b) { return _mm512_max_ps(a, b); }
/* Half to even */
INLINE ints to_ints(floats v) { return _mm512_cvtps_epi32(v); }
INLINE floats as_floats(ints bits) { return _mm512_castsi512_ps(bits); }
/* The bits of |v| */
INLINE ints size_bits(floats v) { return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff)); }
/* The first `count` lanes of v, and of `other` the rest */
INLINE floats keep_lanes(floats v, int count, floats other) {
    return count >= 16 ? v : _mm512_mask_mov_ps(other, (__mmask16)((1u << count) - 1), v);
}
INLINE floats load_f32(const void *p) { return _mm512_loadu_ps(p); }
INLINE floats load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE floats load_bf16(const void *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE floats load_e8m0(const void *p) {
    ints exponent = load_u8(p);
    floats normal = _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
    return _mm512_mask_mov_ps(normal, _mm512_cmpeq_epi32_mask(exponent, zero_ints()), _mm512_set1_ps(0x1p-127f));
}
/* e4m3 is float16 shifted by its exponent bias: 2^8 times the same bits one place up */
INLINE floats load_e4m3(const void *p) {
    __m256i code = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x80)), 8);
    __m256i rest = _mm256_slli_epi16(_mm256_and_si256(code, _mm256_set1_epi16(0x7f)), 7);
    return _mm512_mul_ps(_mm512_cvtph_ps(_mm256_or_si256(sign, rest)), _mm512_set1_ps(256.0f));
}
/* The first `count` of 16 numbers */
INLINE floats load_some(const float *p, int count) {
    return count >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
}
INLINE void store_floats(float *p, floats v, int count) {
    if (count >= 16) _mm512_storeu_ps(p, v);
    else _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), v);
}
