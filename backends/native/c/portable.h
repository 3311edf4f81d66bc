/* The vocabulary of kernels in the vector extensions of gcc and clang, which every processor they know gets. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define EACH(n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)

/* Four vectors of 16 bytes, which is what the least processor with vectors has. */
typedef uint8_t byte16 __attribute__((vector_size(16)));
typedef int16_t half8 __attribute__((vector_size(16)));
typedef uint16_t half4 __attribute__((vector_size(8)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef int64_t long2 __attribute__((vector_size(16)));
typedef float float4 __attribute__((vector_size(16)));
typedef struct { byte16 v[4]; } bytes64;
typedef struct { int4 v[4]; } ints;
typedef struct { float4 v[4]; } floats;

INLINE void prefetch(const void *p) { __builtin_prefetch(p); }
INLINE void prefetch_far(const void *p) { __builtin_prefetch(p, 0, 2); }

/* Bytes */
INLINE bytes64 load_bytes(const void *p) { bytes64 v; memcpy(&v, p, 64); return v; }
INLINE void store_bytes(void *p, bytes64 v) { memcpy(p, &v, 64); }
/* The first `count` of 64 bytes */
INLINE void store_some(void *p, ints v, int count) {
    if (count >= 64) memcpy(p, &v, 64);
    else memcpy(p, &v, (size_t)count);
}
INLINE bytes64 set_bytes(int value) { bytes64 v; memset(&v, value, 64); return v; }
/* (v >> count) & mask in every byte; whole lanes are shifted, and the mask drops what came from the next byte */
INLINE bytes64 field(bytes64 v, int count, int mask) {
    EACH(4) v.v[i] = (byte16)((int4)v.v[i] >> count) & (uint8_t)mask;
    return v;
}
/* low | the bits of `mask` in v shifted: left where count is positive, right where it is negative */
INLINE bytes64 merge(bytes64 low, bytes64 v, int count, int mask) {
    EACH(4) {
        int4 moved = count > 0 ? (int4)v.v[i] << count : (int4)v.v[i] >> -count;
        low.v[i] |= (byte16)moved & (uint8_t)mask;
    }
    return low;
}
/* value in the bytes whose bit is set in the 64 bits at p, 0 in the others */
INLINE bytes64 plane(const void *p, int value) {
    const byte16 one = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8_t *bits = p;
    bytes64 v;
    EACH(4) {
        const uint64_t each = 0x0101010101010101;
        const long2 spread = {(int64_t)(bits[2 * i] * each), (int64_t)(bits[2 * i + 1] * each)};
        v.v[i] = (byte16)(((byte16)spread & one) == one) & (uint8_t)value;
    }
    return v;
}
/* v + value in the bytes whose bit is set in the 64 bits at p */
INLINE bytes64 add_plane(bytes64 v, const void *p, int value) {
    const bytes64 set = plane(p, value);
    EACH(4) v.v[i] += set.v[i];
    return v;
}
/* Of two vectors, the bytes of b where `mask` is all ones */
INLINE byte16 choose(byte16 a, byte16 b, byte16 mask) { return a ^ ((a ^ b) & mask); }
/* table[code], of 16 bytes for codes of up to 4 bits, else of 2^bits bytes: 16 values are a tree of choices, whose
   constants a compiler keeps, in place of 64 loads */
INLINE bytes64 lookup(bytes64 codes, const uint8_t *table, int bits) {
    if (bits > 4) {
        EACH(4) for (int j = 0; j < 16; j++) codes.v[i][j] = table[codes.v[i][j]];
        return codes;
    }
    EACH(4) {
        byte16 found[16];
        for (int c = 0; c < 16; c++) found[c] = (byte16){} + table[c];
        for (int bit = 0; bit < 4; bit++) {
            const byte16 one = (byte16){} + (uint8_t)(1 << bit), mask = (byte16)((codes.v[i] & one) == one);
            for (int c = 0; c < 8 >> bit; c++) found[c] = choose(found[2 * c], found[2 * c + 1], mask);
        }
        codes.v[i] = found[0];
    }
    return codes;
}

/* Lanes of 32 bits */
INLINE ints set_ints(int32_t value) { ints v; EACH(4) v.v[i] = (int4){value, value, value, value}; return v; }
INLINE ints zero_ints(void) { return set_ints(0); }
INLINE ints load_ints(const void *p) { ints v; memcpy(&v, p, 64); return v; }
INLINE ints load_u8(const void *p) {
    const uint8_t *b = p;
    ints v;
    EACH(4) v.v[i] = (int4){b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]};
    return v;
}
INLINE ints load_i8(const void *p) {
    const int8_t *b = p;
    ints v;
    EACH(4) v.v[i] = (int4){b[4 * i], b[4 * i + 1], b[4 * i + 2], b[4 * i + 3]};
    return v;
}
INLINE ints add_ints(ints a, ints b) { EACH(4) a.v[i] += b.v[i]; return a; }
INLINE ints mul_ints(ints a, ints b) { EACH(4) a.v[i] *= b.v[i]; return a; }
INLINE int4 add_quads(int4 a, int4 b) { return a + b; }
INLINE int4 max_quads(int4 a, int4 b) { const int4 more = a > b; return (a & more) | (b & ~more); }
INLINE ints max_ints(ints a, ints b) { EACH(4) a.v[i] = max_quads(a.v[i], b.v[i]); return a; }
INLINE int4 low_bytes(ints v) {
#ifdef __SSE2__
    const half8 a = __builtin_ia32_packssdw128(v.v[0] << 24 >> 24, v.v[1] << 24 >> 24);
    const half8 b = __builtin_ia32_packssdw128(v.v[2] << 24 >> 24, v.v[3] << 24 >> 24);
    return (int4)__builtin_ia32_packsswb128(a, b);
#else
    byte16 low;
    EACH(16) low[i] = (uint8_t)v.v[i / 4][i % 4];
    return (int4)low;
#endif
}
/* The low bytes of 64 numbers, in their order */
INLINE ints narrow(ints a, ints b, ints c, ints d) {
    const ints all[4] = {a, b, c, d};
    ints bytes;
    EACH(4) bytes.v[i] = low_bytes(all[i]);
    return bytes;
}
/* 64 numbers from -2^15 to 127 * 257 as signed bytes: 256 high + low */
INLINE void split(ints a, ints b, ints c, ints d, ints *high, ints *low) {
    *low = narrow(a, b, c, d);
    EACH(4) {
        a.v[i] = (a.v[i] + 128) >> 8, b.v[i] = (b.v[i] + 128) >> 8;
        c.v[i] = (c.v[i] + 128) >> 8, d.v[i] = (d.v[i] + 128) >> 8;
    }
    *high = narrow(a, b, c, d);
}
/* What lanes are joined to, those of one number beside each other: sum_8 and most_8 take two vectors, of a number each,
   to 8 lanes for each number; sum_4 and most_4 two vectors of such, of 4 numbers, to 4 lanes; sum_1 and most_1 four
   vectors, of 16 numbers, to one lane. */
#define JOINED(name, join)                                                                               \
    INLINE ints name##_8(ints a, ints b) {                                                               \
        return (ints){{join(a.v[0], a.v[2]), join(a.v[1], a.v[3]),                                       \
                       join(b.v[0], b.v[2]), join(b.v[1], b.v[3])}};                                     \
    }                                                                                                    \
    INLINE ints name##_4(ints a, ints b) {                                                               \
        return (ints){{join(a.v[0], a.v[1]), join(a.v[2], a.v[3]),                                       \
                       join(b.v[0], b.v[1]), join(b.v[2], b.v[3])}};                                     \
    }                                                                                                    \
    INLINE int4 name##_of_lanes(ints a) {                                                                \
        int4 lane[4];                                                                                    \
        EACH(4) lane[i] = (int4){a.v[0][i], a.v[1][i], a.v[2][i], a.v[3][i]};                            \
        return join(join(lane[0], lane[1]), join(lane[2], lane[3]));                                     \
    }                                                                                                    \
    INLINE ints name##_1(ints a, ints b, ints c, ints d) {                                               \
        return (ints){{name##_of_lanes(a), name##_of_lanes(b), name##_of_lanes(c), name##_of_lanes(d)}}; \
    }
JOINED(sum, add_quads)
JOINED(most, max_quads)
/* Four neighbouring activations in every lane */
INLINE ints spread4(const int8_t *x) { int32_t four; memcpy(&four, x, 4); return set_ints(four); }
/* Products of halves of 16 bits, summed in pairs: one instruction of SSE2, which every x86-64 has */
#ifdef __SSE2__
INLINE int4 dot_halves(half8 a, half8 b) { return (int4)__builtin_ia32_pmaddwd128(a, b); }
#else
INLINE int4 dot_halves(half8 a, half8 b) { a *= b; return ((int4)a << 16 >> 16) + ((int4)a >> 16); }
#endif
/* acc + four products in every lane: unsigned bytes of w times signed bytes of x, as halves of 16 bits, which hold
   255 * 128 */
INLINE ints dot(ints acc, bytes64 w, ints x) {
    EACH(4) {
        const half8 even = (half8)w.v[i] & 255, odd = (half8)((int4)w.v[i] >> 8) & 255;
        acc.v[i] += dot_halves(even, (half8)x.v[i] << 8 >> 8) + dot_halves(odd, (half8)x.v[i] >> 8);
    }
    return acc;
}
INLINE ints dot_wide(ints acc, bytes64 w, ints x) { return dot(acc, w, x); }

/* Floats */
INLINE floats set_floats(float value) { floats v; EACH(4) v.v[i] = (float4){value, value, value, value}; return v; }
INLINE floats zero_floats(void) { return set_floats(0); }
INLINE floats to_floats(ints a) { floats v; EACH(4) v.v[i] = __builtin_convertvector(a.v[i], float4); return v; }
INLINE floats mul(floats a, floats b) { EACH(4) a.v[i] *= b.v[i]; return a; }
INLINE floats add(floats a, floats b) { EACH(4) a.v[i] += b.v[i]; return a; }
INLINE floats fma_(floats a, floats b, floats c) { EACH(4) c.v[i] += a.v[i] * b.v[i]; return c; }
INLINE floats divide(floats a, floats b) { EACH(4) a.v[i] /= b.v[i]; return a; }
INLINE float4 pick(int4 mask, float4 yes, float4 no) { return (float4)(((int4)yes & mask) | ((int4)no & ~mask)); }
/* Of two numbers the second where either is NaN */
INLINE floats min_floats(floats a, floats b) { EACH(4) b.v[i] = pick(a.v[i] < b.v[i], a.v[i], b.v[i]); return b; }
INLINE floats max_floats(floats a, floats b) { EACH(4) b.v[i] = pick(a.v[i] > b.v[i], a.v[i], b.v[i]); return b; }
/* Of numbers below 2^22, half to even */
INLINE ints to_ints(floats v) {
    ints n;
    EACH(4) n.v[i] = (int4)(v.v[i] + 0x1.8p23f) - 0x4b400000;
    return n;
}
INLINE floats as_floats(ints bits) { floats v; memcpy(&v, &bits, 64); return v; }
/* The bits of |v| */
INLINE ints size_bits(floats v) { ints n; EACH(4) n.v[i] = (int4)v.v[i] & 0x7fffffff; return n; }
/* The first `count` lanes of v, and of `other` the rest */
INLINE floats keep_lanes(floats v, int count, floats other) {
    EACH(4) v.v[i] = pick((int4){0, 1, 2, 3} + 4 * i < count, v.v[i], other.v[i]);
    return v;
}
INLINE float from_bits(uint32_t bits) { float v; memcpy(&v, &bits, 4); return v; }
INLINE floats load_f32(const void *p) { floats v; memcpy(&v, p, 64); return v; }
INLINE float half_value(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff);
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    float magnitude = rest >= 0x400 ? from_bits((rest << 13) + (112u << 23)) : (float)rest * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}
INLINE floats load_f16(const void *p) {
    floats v;
    uint16_t half[16];
    memcpy(half, p, 32);
    EACH(16) v.v[i / 4][i % 4] = half_value(half[i]);
    return v;
}
INLINE floats load_bf16(const void *p) {
    ints v;
    EACH(4) {
        half4 some;
        memcpy(&some, (const char *)p + 8 * i, 8);
        v.v[i] = __builtin_convertvector(some, int4) << 16;
    }
    return as_floats(v);
}
INLINE floats load_e8m0(const void *p) {
    floats v;
    EACH(16) { uint8_t e = ((const uint8_t *)p)[i]; v.v[i / 4][i % 4] = e ? from_bits((uint32_t)e << 23) : 0x1p-127f; }
    return v;
}
/* e4m3 is float16 shifted by its exponent bias: 2^8 times the same bits one place up */
INLINE floats load_e4m3(const void *p) {
    floats v;
    EACH(16) { uint16_t c = ((const uint8_t *)p)[i]; v.v[i / 4][i % 4] = 256.0f * half_value((uint16_t)((c & 0x80) << 8 | (c & 0x7f) << 7)); }
    return v;
}
/* The first `count` of 16 numbers */
INLINE floats load_some(const float *p, int count) {
    floats v = zero_floats();
    memcpy(&v, p, sizeof(float) * (size_t)(count < 16 ? count : 16));
    return v;
}
INLINE void store_floats(float *p, floats v, int count) { memcpy(p, &v, sizeof(float) * (size_t)(count < 16 ? count : 16)); }
