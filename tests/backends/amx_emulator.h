/* Int8 tiles in plain C, after Intel's Software Developer's Manual (volume 2: LDTILECFG, TILELOADD, TDPBSSD ...).

Put in front of a kernel, it takes the place of the intrinsics. What would fault ends the process with a word of what was
wrong: a configuration that palette 1 does not allow, tiles that are not configured or whose shapes do not fit, tiles that
are one and the same, and all use before the system has granted them. Each thread has tiles of its own. */
#include <errno.h>
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { EMULATED_TILES = 8, EMULATED_ROWS = 16, EMULATED_COLUMNS = 64 };

typedef struct {
    unsigned rows, columns; /* columns in bytes */
    uint8_t at[EMULATED_ROWS][EMULATED_COLUMNS];
} emulated_tile;

static __thread emulated_tile emulated_tiles[EMULATED_TILES];
static __thread int emulated_palette;
static int emulated_grant;
/* How many products of tiles there were: of signed bytes, and of unsigned bytes of the weight. */
long emulated_signed_products, emulated_unsigned_products;

#define EMULATED_FAULT_IF(wrong) \
    do { if (wrong) { fprintf(stderr, "tiles: %s\n", #wrong); abort(); } } while (0)

static long emulated_syscall(long number, long code, long feature) {
    EMULATED_FAULT_IF(number != SYS_arch_prctl || code != 0x1023 || feature != 18);
#ifdef EMULATED_REFUSAL
    errno = EMULATED_REFUSAL;
    return -1;
#else
    emulated_grant = 1;
    return 0;
#endif
}

static void emulated_loadconfig(const void *config) {
    struct { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } shape;
    memcpy(&shape, config, sizeof shape);
    EMULATED_FAULT_IF(!emulated_grant);
    EMULATED_FAULT_IF(shape.palette != 1 || shape.start != 0);
    for (int i = 0; i < 14; i++) EMULATED_FAULT_IF(shape.reserved[i]);
    for (int t = 0; t < 16; t++) {
        const unsigned rows = shape.rows[t], columns = shape.columns[t];
        EMULATED_FAULT_IF(t >= EMULATED_TILES && (rows || columns));
        EMULATED_FAULT_IF(rows > EMULATED_ROWS || columns > EMULATED_COLUMNS);
        EMULATED_FAULT_IF(!rows != !columns);
        if (t < EMULATED_TILES) emulated_tiles[t] = (emulated_tile){rows, columns, {{0}}};
    }
    emulated_palette = 1;
}

static void emulated_release(void) {
    memset(emulated_tiles, 0, sizeof emulated_tiles);
    emulated_palette = 0;
}

static emulated_tile *emulated_at(int t) {
    EMULATED_FAULT_IF(emulated_palette != 1);
    EMULATED_FAULT_IF(t < 0 || t >= EMULATED_TILES);
    EMULATED_FAULT_IF(!emulated_tiles[t].rows);
    return &emulated_tiles[t];
}

static void emulated_zero(int t) { memset(emulated_at(t)->at, 0, sizeof emulated_tiles[t].at); }

static void emulated_load(int t, const void *base, long stride) {
    emulated_tile *tile = emulated_at(t);
    memset(tile->at, 0, sizeof tile->at);
    for (unsigned r = 0; r < tile->rows; r++) memcpy(tile->at[r], (const char *)base + r * stride, tile->columns);
}

static void emulated_store(int t, void *base, long stride) {
    const emulated_tile *tile = emulated_at(t);
    for (unsigned r = 0; r < tile->rows; r++) memcpy((char *)base + r * stride, tile->at[r], tile->columns);
}

/* sums[m, n] += products of four bytes of a[m, 4 k ..] and b[k, 4 n ..], as 32-bit words that wrap around. */
static void emulated_product(int sums, int a, int b, int is_signed) {
    emulated_tile *to = emulated_at(sums);
    const emulated_tile *left = emulated_at(a), *right = emulated_at(b);
    EMULATED_FAULT_IF(sums == a || sums == b || a == b);
    EMULATED_FAULT_IF(to->columns % 4 || left->columns % 4 || right->columns % 4);
    EMULATED_FAULT_IF(to->rows != left->rows || to->columns != right->columns || left->columns / 4 != right->rows);
    int32_t weights[4][EMULATED_ROWS][EMULATED_ROWS]; /* [i, k, n]: in this order a compiler takes many n at a time */
    for (unsigned k = 0; k < right->rows; k++)
        for (unsigned byte = 0; byte < right->columns; byte++)
            weights[byte % 4][k][byte / 4] = is_signed ? (int8_t)right->at[k][byte] : right->at[k][byte];
    for (unsigned m = 0; m < to->rows; m++) {
        uint32_t words[EMULATED_ROWS];
        memcpy(words, to->at[m], to->columns);
        for (unsigned byte = 0; byte < left->columns; byte++)
            for (unsigned n = 0; n < EMULATED_ROWS; n++)
                words[n] += (uint32_t)((int8_t)left->at[m][byte] * weights[byte % 4][byte / 4][n]);
        memcpy(to->at[m], words, to->columns);
    }
    __atomic_fetch_add(is_signed ? &emulated_signed_products : &emulated_unsigned_products, 1, __ATOMIC_RELAXED);
}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbsud
#define syscall emulated_syscall
#define _tile_loadconfig emulated_loadconfig
#define _tile_release emulated_release
#define _tile_zero emulated_zero
#define _tile_loadd emulated_load
#define _tile_stored emulated_store
#define _tile_dpbssd(sums, a, b) emulated_product(sums, a, b, 1)
#define _tile_dpbsud(sums, a, b) emulated_product(sums, a, b, 0)
