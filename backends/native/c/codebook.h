/* Codes whose bits lie apart, their tables, sums over lanes and the end of a row: what kernels whose vectors hold
   neighbours of one row add to the vocabulary. */

#define FIELDS(width) ((width) == 1 ? 0x55 : (width) == 2 ? 0x33 : 0x0f)
#define CODE_MASK ((1 << BITS) - 1)

#if defined(__AVX512F__)
/* Bytes moved right, with bits of their neighbours from above */
INLINE bytes64 shifted(bytes64 v, int count) { return _mm512_srli_epi16(v, count); }
/* Fields of twice the width from the even ones, and from the odd ones, of two registers: `upper` above `lower` */
INLINE bytes64 merge_even(bytes64 upper, bytes64 lower, int width) {
    return _mm512_ternarylogic_epi32(_mm512_slli_epi16(upper, width), lower, set_bytes(FIELDS(width)), 0xd8);
}
INLINE bytes64 merge_odd(bytes64 upper, bytes64 lower, int width) {
    return _mm512_ternarylogic_epi32(_mm512_srli_epi16(lower, width), upper, set_bytes(FIELDS(width)), 0xe4);
}
#elif defined(__AVX2__)
INLINE bytes64 shifted(bytes64 v, int count) { return (bytes64){moved_half(v.a, -count), moved_half(v.b, -count)}; }
INLINE __m256i chosen_half(__m256i upper, __m256i lower, int width) {
    const __m256i low = _mm256_set1_epi8(FIELDS(width));
    return _mm256_or_si256(_mm256_and_si256(low, lower), _mm256_andnot_si256(low, upper));
}
INLINE bytes64 merge_even(bytes64 upper, bytes64 lower, int width) {
    return (bytes64){chosen_half(moved_half(upper.a, width), lower.a, width),
                     chosen_half(moved_half(upper.b, width), lower.b, width)};
}
INLINE bytes64 merge_odd(bytes64 upper, bytes64 lower, int width) {
    return (bytes64){chosen_half(upper.a, moved_half(lower.a, -width), width),
                     chosen_half(upper.b, moved_half(lower.b, -width), width)};
}
#else
INLINE bytes64 shifted(bytes64 v, int count) { EACH(4) v.v[i] >>= (uint8_t)count; return v; }
INLINE bytes64 merge_even(bytes64 upper, bytes64 lower, int width) {
    const uint8_t low = FIELDS(width), high = (uint8_t)~low;
    EACH(4) lower.v[i] = (lower.v[i] & low) | (upper.v[i] << (uint8_t)width & high);
    return lower;
}
INLINE bytes64 merge_odd(bytes64 upper, bytes64 lower, int width) {
    const uint8_t low = FIELDS(width), high = (uint8_t)~low;
    EACH(4) lower.v[i] = (lower.v[i] >> (uint8_t)width & low) | (upper.v[i] & high);
    return lower;
}
#endif

/* table[code], where bits above those of the code may be anything */
#ifdef __AVX512VBMI__
INLINE bytes64 find(bytes64 codes, const uint8_t *table, int bits) {
    int32_t four;
    int64_t eight;
    memcpy(&four, table, 4);
    if (bits == 2) return _mm512_permutexvar_epi8(codes, _mm512_set1_epi32(four));
    memcpy(&eight, table, 8);
    if (bits == 3) return _mm512_permutexvar_epi8(codes, _mm512_set1_epi64(eight));
    if (bits == 4) return _mm512_permutexvar_epi8(codes, _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)));
    return lookup(codes, table, bits);
}
#elif defined(__AVX2__)
INLINE bytes64 find(bytes64 codes, const uint8_t *table, int bits) {
    return lookup(bits < 8 ? field(codes, 0, CODE_MASK) : codes, table, bits);
}
#else
/* A function of its own: 64 bytes one by one, written out at every place, take a compiler long */
static __attribute__((noinline)) bytes64 find(bytes64 codes, const uint8_t *table, int bits) {
    uint8_t each[64];
    (void)bits;
    store_bytes(each, field(codes, 0, CODE_MASK));
    __asm__ volatile("" : : "r"(each) : "memory"); /* else gcc takes bytes out of vectors, at several times the cost */
    for (int i = 0; i < 64; i++) each[i] = table[each[i]];
    return load_bytes(each);
}
#endif

/* Four sums over all lanes */
#if defined(__AVX512F__)
INLINE __m512i pairs_added(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
INLINE void sums_of_four(ints a, ints b, ints c, ints d, int32_t *sums) {
    __m512i ab = pairs_added(a, b), cd = pairs_added(c, d);
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128((__m128i *)sums, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
#elif defined(__AVX2__)
INLINE __m256i all_added(ints a) { return _mm256_add_epi32(a.a, a.b); }
INLINE void sums_of_four(ints a, ints b, ints c, ints d, int32_t *sums) {
    __m256i ab = _mm256_hadd_epi32(all_added(a), all_added(b)), cd = _mm256_hadd_epi32(all_added(c), all_added(d));
    __m256i all = _mm256_hadd_epi32(ab, cd);
    _mm_storeu_si128((__m128i *)sums, _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
#else
INLINE int32_t all_added(ints a) {
    int4 v = a.v[0] + a.v[1] + a.v[2] + a.v[3];
    return v[0] + v[1] + v[2] + v[3];
}
INLINE void sums_of_four(ints a, ints b, ints c, ints d, int32_t *sums) {
    sums[0] = all_added(a), sums[1] = all_added(b), sums[2] = all_added(c), sums[3] = all_added(d);
}
#endif

/* The tables of a row and those behind it: high, then low bytes */
#define TABLES_OF(w, row) ((w) + TABLES_AT + ((size_t)(row) << (BITS + 1)))

/* One result from its sums by falling significance, each without what high bytes are above their values: exact up to
   the one rounding to a float. */
static inline void finish_row(const linear_job *job, const uint8_t *x, float *y, long row, const int32_t *sums,
                              long next) {
    if (row >= N) return;
    int64_t total = 0;
    for (int level = 0; level <= PARTS; level++) {
        int64_t sum = sums[level * next];
        if (level < PARTS) sum += STARTS(x, level)[0];
        total = 256 * total + sum;
    }
    float step;
    memcpy(&step, job->w + STEPS_AT + 4 * row, 4);
    const float value = (float)((double)total * ((double)step * SCALES(x)[0]));
    y[row] = job->bias ? value + job->bias[row] : value;
}
