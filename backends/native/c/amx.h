/* Blocks of the result by int8 tiles: 16 rows of activations or more, in strips of TILES tiles of 16 rows.

The kernel defines what is unpacked at once (GROUPS_AT_ONCE groups of STEPS_AT_ONCE steps of DEPTH columns), how tiles are
numbered (sums first, activations from FIRST_A, weights from FIRST_B), where a thread's memory holds what, and the functions that are
declared here. The last tile begins 16 rows before the end: rows that two tiles
share are computed twice, so that no tile needs padding. */
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct {
    const uint8_t *x[TILES]; /* the prepared activations of each tile */
    long tiles;
    long g, groups;          /* groups whose sums are held */
    int32_t *sums;           /* [groups, tiles, lanes, levels, 16, 16] */
    const float *numbers;    /* [groups, NUMBERS, BLOCK_ROWS], from the first lane */
    float *results;          /* [16 tiles, BLOCK_ROWS], from the first lane */
} strip;

/* Unpacks some steps of some groups of the block at w, with the numbers of the groups. */
static void fill_panel(const uint8_t *w, uint8_t *panel, float *numbers, long g, long groups, long step, long steps);
/* Multiplies one group of a strip of one tile of activations, or of two: `more` adds to the sums that are there. */
static void multiply_1(const strip *s, long column, const uint8_t *b, long steps, int32_t *sums, int more);
#if TILES == 2
static void multiply_2(const strip *s, long column, const uint8_t *b, long steps, int32_t *sums, int more);
#endif
/* Adds the sums of the groups of a strip to its results, times their scales. */
static void flush(const strip *s);

/* The lowest byte of every lane, four times. */
INLINE bytes64 repeat_low_bytes(ints v) {
    return _mm512_shuffle_epi8(v, _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0));
}
INLINE bytes64 sub_bytes(bytes64 a, bytes64 b) { return _mm512_sub_epi8(a, b); }

/* Asks the system for tiles, once a process: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). 0, or what it answers. */
int qcc_ask_for_tiles(void) {
    enum { UNKNOWN = -1 };
    static int answer = UNKNOWN;
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (known == UNKNOWN) {
        known = syscall(SYS_arch_prctl, 0x1023, 18) ? errno : 0;
        __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    }
    return known;
}

/* Tile loads are no memory reads for gcc 12, nor is all of a configuration: stores before them could be moved or dropped. */
#define STORES_ARE_DONE(pointer) __asm__ volatile("" : : "r"(pointer) : "memory")

static void configure_tiles(void) {
    _Alignas(64) struct { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        shape.columns[t] = t >= FIRST_A && t < FIRST_B ? DEPTH : 64;
        shape.rows[t] = t >= FIRST_B ? DEPTH / 4 : 16;
    }
    STORES_ARE_DONE(&shape);
    _tile_loadconfig(&shape);
}

static inline long first_row(const linear_job *job, long tile) { return 16 * tile < job->m - 16 ? 16 * tile : job->m - 16; }

/* A chunk that lies in the panel, times `count` tiles of activations. What comes after it in memory is fetched meanwhile. */
static void multiply_chunk(const linear_job *job, uint8_t *panel, long tile, long count, long g, long groups, long step,
                           long steps, const uint8_t *ahead) {
    const long turns = VECTORS / LANES * ((count + TILES - 1) / TILES) * ((groups + BATCH - 1) / BATCH);
    const float *numbers = (const float *)(panel + NUMBERS_AT);
    const int complete = step + steps == STEPS;
    strip now, before = {.groups = 0};
    long turn = 0, fetched = 0;
    for (long lane = 0; lane < VECTORS; lane += LANES)
        for (long t = 0; t < count; t += TILES)
            for (long j = 0; j < groups; j += BATCH, turn++) {
                for (; fetched * turns < CHUNK_BYTES * (turn + 1); fetched += 64) prefetch_far(ahead + fetched);
                now.tiles = count - t < TILES ? count - t : TILES;
                for (long i = 0; i < now.tiles; i++) now.x[i] = ROW(job->x, first_row(job, tile + t + i));
                now.g = g + j;
                now.groups = groups - j < BATCH ? groups - j : BATCH;
                now.sums = (int32_t *)(panel + SUMS_AT) + (CARRIED ? turn : turn & 1) * (256 * BATCH * TILES * LANES * LEVELS);
                now.numbers = numbers + j * NUMBERS * BLOCK_ROWS + 16 * lane;
                now.results = (float *)(panel + RESULTS_AT) + 16 * t * BLOCK_ROWS + 16 * lane;
                for (long i = 0; i < now.groups; i++) {
                    const uint8_t *b = panel + (j + i) * PANEL_GROUP + lane * LANE_BYTES;
                    const long column = (now.g + i) * GROUP + step * DEPTH;
                    int32_t *sums = now.sums + i * (256 * TILES * LANES * LEVELS);
#if TILES == 2
                    if (now.tiles == 2) multiply_2(&now, column, b, steps, sums, step > 0);
                    else
#endif
                    multiply_1(&now, column, b, steps, sums, step > 0);
                }
                if (before.groups) flush(&before);
                if (complete) before = now;
            }
    if (before.groups) flush(&before);
}

/* One block of the weight times `count` tiles of activations from `tile` on. */
static void multiply_block(const linear_job *job, long block, uint8_t *panel, long tile, long count) {
    const uint8_t *w = job->w + (size_t)block * BLOCK_BYTES, *ahead = w;
    float *results = (float *)(panel + RESULTS_AT);
    memset(results, 0, sizeof(float) * 16 * count * BLOCK_ROWS);
    for (long g = 0; g < GROUPS; g += GROUPS_AT_ONCE)
        for (long step = 0; step < STEPS; step += STEPS_AT_ONCE) {
            const long groups = GROUPS - g < GROUPS_AT_ONCE ? GROUPS - g : GROUPS_AT_ONCE;
            const long steps = STEPS - step < STEPS_AT_ONCE ? STEPS - step : STEPS_AT_ONCE;
            fill_panel(w, panel, (float *)(panel + NUMBERS_AT), g, groups, step, steps);
            STORES_ARE_DONE(panel);
            multiply_chunk(job, panel, tile, count, g, groups, step, steps, ahead += CHUNK_BYTES);
        }
    for (long i = 0; i < 16 * count; i++) {
        const long m = first_row(job, tile + i / 16) + i % 16;
        const floats factor = set_floats(GROUPED ? job->alpha : job->alpha * SCALES(ROW(job->x, m))[0]);
        const float *bias = job->bias ? job->bias + block * BLOCK_ROWS : 0;
        for (int at = 0; at < BLOCK_ROWS; at += 16)
            finish(job->y + m * N + block * BLOCK_ROWS + at, load_f32(results + i * BLOCK_ROWS + at), factor, bias, at,
                   ROWS_OF(block));
    }
}

/* Some blocks, for 16 rows of activations or more. */
static void multiply_by_tiles(const linear_job *job, long first, long last, int thread) {
    uint8_t *panel = job->panels + (size_t)thread * PANEL_BYTES;
    const long tiles = (job->m + 15) / 16, passes = (tiles + MOST_TILES - 1) / MOST_TILES;
    configure_tiles();
    for (long block = first; block < last; block++)
        for (long tile = 0, left = passes; left > 0; left--) {
            const long count = (tiles - tile + left - 1) / left;
            multiply_block(job, block, panel, tile, count);
            tile += count;
        }
    _tile_release();
}
#define BY_TILES(job) ((job)->m >= 16 && qcc_ask_for_tiles() == 0)
