/* Sums over the lanes of vectors, and the end of a row, for kernels whose vectors hold neighbours of one row. */

/* Four sums over all lanes */
#if defined(__AVX512F__)
INLINE __m512i pairs_added(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
INLINE void sum_lanes(ints a, ints b, ints c, ints d, int32_t *sums) {
    __m512i ab = pairs_added(a, b), cd = pairs_added(c, d);
    __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    _mm_storeu_si128((__m128i *)sums, _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
#elif defined(__AVX2__)
INLINE __m256i all_added(ints a) { return _mm256_add_epi32(a.a, a.b); }
INLINE void sum_lanes(ints a, ints b, ints c, ints d, int32_t *sums) {
    __m256i ab = _mm256_hadd_epi32(all_added(a), all_added(b)), cd = _mm256_hadd_epi32(all_added(c), all_added(d));
    __m256i all = _mm256_hadd_epi32(ab, cd);
    _mm_storeu_si128((__m128i *)sums, _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
#else
INLINE int32_t all_added(ints a) {
    int4 v = a.v[0] + a.v[1] + a.v[2] + a.v[3];
    return v[0] + v[1] + v[2] + v[3];
}
INLINE void sum_lanes(ints a, ints b, ints c, ints d, int32_t *sums) {
    sums[0] = all_added(a), sums[1] = all_added(b), sums[2] = all_added(c), sums[3] = all_added(d);
}
#endif

/* The first of the rows from `row` on: its codes, its tables (high, then low bytes) and its step */
#define CODES(w, row) \
    ((w) + (size_t)((row) / SPAN_ROWS) * SPAN_BYTES + (size_t)((row) % SPAN_ROWS / BLOCK_ROWS) * PIECE_BYTES + \
     (size_t)((row) % BLOCK_ROWS) * STRIDE)
#define TABLES_OF(w, row) ((w) + TABLES_AT + (size_t)(row) * (2 * ENTRIES))

/* One result from its sums by falling significance, each without what high bytes are above their values: exact up to
   the one rounding to a float. */
static inline void finish_row(const linear_job *job, const uint8_t *x, float *y, long row, const int32_t *sums, long next) {
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
