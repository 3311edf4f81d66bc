/* What reads rows of a packed weight: numbers of levels, four codes at a time, and the rows that are asked for. */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef void (*task_fn)(void *data, long first, long last, int thread);
typedef void (*launch_fn)(task_fn task, void *data, long count, long chunk, int threads);

/* Numbers of levels */
INLINE float from_bits(uint32_t bits) { float v; memcpy(&v, &bits, 4); return v; }
INLINE uint32_t two_bytes(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
INLINE float half_value(uint32_t h) {
    const uint32_t sign = (h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return from_bits(sign | ((rest << 13) + (112u << 23)));
    const float size = (float)(int)rest * 0x1p-24f;
    return sign ? -size : size;
}
INLINE float number_f32(const uint8_t *p) { float v; memcpy(&v, p, 4); return v; }
INLINE float number_f16(const uint8_t *p) { return half_value(two_bytes(p)); }
INLINE float number_bf16(const uint8_t *p) { return from_bits(two_bytes(p) << 16); }
INLINE float number_e8m0(const uint8_t *p) { return *p ? from_bits((uint32_t)*p << 23) : 0x1p-127f; }
/* e4m3 is float16 shifted by its exponent bias: 2^8 times the same bits one place up */
INLINE float number_e4m3(const uint8_t *p) { return 256.0f * half_value((*p & 0x80u) << 8 | (*p & 0x7fu) << 7); }
INLINE float number_u8(const uint8_t *p) { return (float)*p; }
INLINE float number_i8(const uint8_t *p) { return (float)(int8_t)*p; }

/* `count` bytes, 1 to 4, the first the least significant: none beyond them is read */
INLINE uint32_t load_word(const uint8_t *p, int count) { uint32_t v = 0; memcpy(&v, p, (size_t)count); return v; }
/* Four fields of `width` bits, each `by` bits behind the last, as four bytes */
INLINE uint32_t spread(uint32_t v, int by, int width) {
    const uint32_t all = ((1u << width) - 1) * 0x01010101u;
    if (by == 8) return v & all;
    if (by == 1) return (v & 15) * 0x00204081u & all;
    const uint32_t two = (1u << 2 * by) - 1, one = ((1u << by) - 1) * 0x00010001u;
    v = (v & two) | (v >> 2 * by & two) << 16;
    v = (v & one) | (v >> by & one) << 8;
    return v & all;
}

static void read_row(const uint8_t *w, int64_t n, float tensor, float *y);

typedef struct {
    const int64_t *indices;
    const uint8_t *w;
    float *y;
    float tensor;           /* the scale of the whole table */
} embedding_job;

static void rows_task(void *data, long first, long last, int thread) {
    const embedding_job *job = data;
    (void)thread;
    for (long i = first; i < last; i++) {
        const int64_t n = job->indices[i];
        read_row(job->w, n < 0 ? n + ROWS : n, job->tensor, job->y + i * COLUMNS);
    }
}

/* y[count, COLUMNS] = rows of w; 1, and nothing read, where an index is out of range, else 0. */
static int embed(const int64_t *indices, const uint8_t *w, float *y, int64_t count, float alpha, int threads,
                 launch_fn launch) {
    for (int64_t i = 0; i < count; i++)
        if (indices[i] < -ROWS || indices[i] >= ROWS) return 1;
    embedding_job job = {indices, w, y, (float)((double)alpha / STEP)};
    if (threads <= 1 || !launch || count * COLUMNS < LEAST_SHARED) rows_task(&job, 0, count, 0);
    else launch(rows_task, &job, count, (count + 4 * threads - 1) / (4 * threads), threads);
    return 0;
}
