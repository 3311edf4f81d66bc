/* Sums of four activations from tables, 64 rows at a time: what kernels by table lookup add to the vocabulary.

A table has 16 entries, one for each choice of four neighbouring activations: TABLE_BIAS + their sum, 0 to 1023, as
16 low halves (5 bits) and 16 high halves (5 bits). Eight entries of a half still fit a byte, so bytes are summed, eight
lookups at a time, before they are widened to 16 bits. The order of rows in a vector, 16 l + 4 j + i for row
16 j + 4 l + i, is what makes both widenings come out in order of rows without a permutation across lanes. */

#define TABLE_BIAS 512
#define TABLE_BYTES 32
#define TABLES(row, part) ((uint8_t *)(row) + TABLES_AT + (size_t)(part) * (COLUMNS / 4 * TABLE_BYTES))

static const uint8_t CHOICES[64] __attribute__((aligned(64))) = {
    0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 1, 0,
    0, 0, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1,
};

#ifdef __AVX512BW__
typedef struct { __m512i low, high; } words64;
/* The barrier keeps additions in their order: as a tree, which compilers prefer, all that is looked up is spilled. */
INLINE bytes64 add_bytes(bytes64 a, bytes64 b) {
    a = _mm512_add_epi8(a, b);
    __asm__("" : "+v"(a));
    return a;
}
INLINE words64 set_words(int value) { return (words64){_mm512_set1_epi16((short)value), _mm512_set1_epi16((short)value)}; }
/* sum + (low + 32 high) << shift in 16 bits */
INLINE words64 add_halves(words64 sum, bytes64 low, bytes64 high, int shift) {
    const __m512i by = _mm512_set1_epi16(shift ? 2 | 64 << 8 : 1 | 32 << 8);
    __m512i a = _mm512_maddubs_epi16(_mm512_unpacklo_epi8(low, high), by);
    __m512i b = _mm512_maddubs_epi16(_mm512_unpackhi_epi8(low, high), by);
    if (shift > 1) a = _mm512_slli_epi16(a, shift - 1), b = _mm512_slli_epi16(b, shift - 1);
    return (words64){_mm512_add_epi16(sum.low, a), _mm512_add_epi16(sum.high, b)};
}
/* Rows 16 j to 16 j + 15 */
INLINE ints widen(words64 sum, int j) {
    __m512i half = j < 2 ? sum.low : sum.high;
    return _mm512_srai_epi32(j % 2 ? _mm512_unpackhi_epi16(half, half) : _mm512_unpacklo_epi16(half, half), 16);
}
INLINE void store_table(uint8_t *p, ints sums) {
    _mm_store_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_and_si512(sums, _mm512_set1_epi32(31))));
    _mm_store_si128((__m128i *)(p + 16), _mm512_cvtepi32_epi8(_mm512_srli_epi32(sums, 5)));
}
#else
typedef struct { bytes64 low, high; } words64;
/* The barrier keeps additions in their order: as a tree, which compilers prefer, all that is looked up is spilled. */
INLINE bytes64 add_bytes(bytes64 a, bytes64 b) {
    a.a = _mm256_add_epi8(a.a, b.a), a.b = _mm256_add_epi8(a.b, b.b);
    __asm__("" : "+x"(a.a), "+x"(a.b));
    return a;
}
INLINE words64 set_words(int value) {
    const __m256i all = _mm256_set1_epi16((short)value);
    return (words64){{all, all}, {all, all}};
}
INLINE __m256i whole_half(__m256i low_high, int shift) {
    const __m256i by = _mm256_set1_epi16(shift ? 2 | 64 << 8 : 1 | 32 << 8), v = _mm256_maddubs_epi16(low_high, by);
    return shift > 1 ? _mm256_slli_epi16(v, shift - 1) : v;
}
/* sum + (low + 32 high) << shift in 16 bits */
INLINE words64 add_halves(words64 sum, bytes64 low, bytes64 high, int shift) {
    sum.low.a = _mm256_add_epi16(sum.low.a, whole_half(_mm256_unpacklo_epi8(low.a, high.a), shift));
    sum.low.b = _mm256_add_epi16(sum.low.b, whole_half(_mm256_unpacklo_epi8(low.b, high.b), shift));
    sum.high.a = _mm256_add_epi16(sum.high.a, whole_half(_mm256_unpackhi_epi8(low.a, high.a), shift));
    sum.high.b = _mm256_add_epi16(sum.high.b, whole_half(_mm256_unpackhi_epi8(low.b, high.b), shift));
    return sum;
}
INLINE __m256i widen_half(__m256i v, int upper) {
    return _mm256_srai_epi32(upper ? _mm256_unpackhi_epi16(v, v) : _mm256_unpacklo_epi16(v, v), 16);
}
/* Rows 16 j to 16 j + 15 */
INLINE ints widen(words64 sum, int j) {
    bytes64 half = j < 2 ? sum.low : sum.high;
    return (ints){widen_half(half.a, j % 2), widen_half(half.b, j % 2)};
}
INLINE void store_table(uint8_t *p, ints sums) {
    const __m256i five = _mm256_set1_epi32(31), apart = _mm256_setr_epi8(
        0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m256i a = _mm256_or_si256(_mm256_and_si256(sums.a, five), _mm256_slli_epi32(_mm256_srli_epi32(sums.a, 5), 8));
    __m256i b = _mm256_or_si256(_mm256_and_si256(sums.b, five), _mm256_slli_epi32(_mm256_srli_epi32(sums.b, 5), 8));
    __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
    _mm256_store_si256((__m256i *)p, _mm256_permute4x64_epi64(_mm256_shuffle_epi8(pairs, apart), 0xd8));
}
#endif

/* The activations in whole numbers, and the table of every four of them. */
static void prepare_tables(const input *x, uint8_t *row) {
    prepare_row(x, row);
    for (int part = 0; part < PARTS; part++) {
        const int8_t *q = QUANTIZED(row, part);
        uint8_t *table = TABLES(row, part);
        for (long k = 0; k < COLUMNS; k += 4, table += TABLE_BYTES)
            store_table(table, dot(set_ints(TABLE_BIAS), load_bytes(CHOICES), spread4(q + k)));
    }
}
#define prepare_row prepare_tables
