/* How fast dot products are summed, by the instructions that DOT_* names. Every product is 3 * 1, so that `sum` tells how
   many there were. */
enum { STEPS = 10000 };

#if defined(DOT_avx512_vnni)
#include <immintrin.h>
enum { SUMS = 16, LANES = 16, PRODUCTS = 4 };
typedef __m512i sums, operand;
typedef int32_t lane;
#define ZERO _mm512_setzero_si512()
#define EVERY(value) _mm512_set1_epi8(value)
#define STEP(acc, w, x) _mm512_dpbusd_epi32(acc, w, x)

#elif defined(DOT_avx_vnni) || defined(DOT_avx2)
#include <immintrin.h>
enum { SUMS = 12, LANES = 8, PRODUCTS = 4 };
typedef __m256i sums, operand;
typedef int32_t lane;
#define ZERO _mm256_setzero_si256()
#define EVERY(value) _mm256_set1_epi8(value)
#ifdef DOT_avx_vnni
#define STEP(acc, w, x) _mm256_dpbusd_avx_epi32(acc, w, x)
#else
#define STEP(acc, w, x) \
    _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)))
#endif

#elif defined(DOT_f32_avx512)
#include <immintrin.h>
enum { SUMS = 16, LANES = 16, PRODUCTS = 1 };
typedef __m512 sums, operand;
typedef float lane;
#define ZERO _mm512_setzero_ps()
#define EVERY(value) _mm512_set1_ps(value)
#define STEP(acc, w, x) _mm512_fmadd_ps(w, x, acc)

#elif defined(DOT_f32_fma)
#include <immintrin.h>
enum { SUMS = 12, LANES = 8, PRODUCTS = 1 };
typedef __m256 sums, operand;
typedef float lane;
#define ZERO _mm256_setzero_ps()
#define EVERY(value) _mm256_set1_ps(value)
#define STEP(acc, w, x) _mm256_fmadd_ps(w, x, acc)

#elif defined(DOT_bf16)
#include <immintrin.h>
enum { SUMS = 16, LANES = 16, PRODUCTS = 2 };
typedef __m512 sums;
typedef __m512bh operand;
typedef float lane;
#define ZERO _mm512_setzero_ps()
#define EVERY(value) _mm512_cvtne2ps_pbh(_mm512_set1_ps(value), _mm512_set1_ps(value))
#define STEP(acc, w, x) _mm512_dpbf16_ps(acc, w, x)

#elif defined(DOT_f32_portable) /* four lanes, which x86-64 and AArch64 always have */
enum { SUMS = 10, LANES = 4, PRODUCTS = 1 };
typedef float sums __attribute__((vector_size(16)));
typedef sums operand;
typedef float lane;
#define ZERO ((sums){0})
#define EVERY(value) ((sums){value, value, value, value})
#define STEP(acc, w, x) ((acc) + (w) * (x))
#endif

#if defined(DOT_amx) || defined(DOT_amx_loads)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Thread_local int32_t tile_sums[16 * 16] __attribute__((aligned(64)));
static uint8_t tile_weights[4][16 * 64] __attribute__((aligned(64)));
static int8_t tile_activations[4][16 * 64] __attribute__((aligned(64)));

/* Tiles of 16 rows of 64 bytes. The kernel of the system grants them once a process: arch_prctl(ARCH_REQ_XCOMP_PERM). */
static int take_tiles(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; } shape = {.palette = 1};
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 0;
    for (int t = 0; t < 8; t++) shape.columns[t] = 64, shape.rows[t] = 16;
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* gcc 12 drops the stores to `shape` otherwise */
    _tile_loadconfig(&shape);
    return 1;
}

#define ADD_TILE(tile)                                                 \
    _tile_stored(tile, tile_sums, 64);                                 \
    __asm__ volatile("" : : "r"(tile_sums) : "memory");                \
    for (int i = 0; i < 256; i++) sum += (uint64_t)tile_sums[i];

#ifdef DOT_amx
/* Six tiles of sums and two of operands: as many as there are. */
static double block(uint64_t *result) {
    uint64_t sum = 0;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3); _tile_zero(4); _tile_zero(5);
    _tile_loadd(6, tile_activations[0], 64);
    _tile_loadd(7, tile_weights[0], 64);
    for (int i = 0; i < STEPS; i++) {
        _tile_dpbsud(0, 6, 7); _tile_dpbsud(1, 6, 7); _tile_dpbsud(2, 6, 7);
        _tile_dpbsud(3, 6, 7); _tile_dpbsud(4, 6, 7); _tile_dpbsud(5, 6, 7);
    }
    ADD_TILE(0) ADD_TILE(1) ADD_TILE(2) ADD_TILE(3) ADD_TILE(4) ADD_TILE(5)
    *result += sum;
    return 2.0 * 6 * 16 * 16 * 64 * STEPS;
}
#else
/* Two by two tiles of sums: every tile of operands is loaded from L1, and used twice, as in a product of matrices. */
static double block(uint64_t *result) {
    uint64_t sum = 0;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (int i = 0; i < STEPS; i++) {
        const int at = i & 2;
        _tile_loadd(4, tile_activations[at], 64);
        _tile_loadd(6, tile_weights[at], 64);
        _tile_loadd(5, tile_activations[at + 1], 64);
        _tile_loadd(7, tile_weights[at + 1], 64);
        _tile_dpbsud(0, 4, 6); _tile_dpbsud(1, 5, 6); _tile_dpbsud(2, 4, 7); _tile_dpbsud(3, 5, 7);
    }
    ADD_TILE(0) ADD_TILE(1) ADD_TILE(2) ADD_TILE(3)
    *result += sum;
    return 2.0 * 4 * 16 * 16 * 64 * STEPS;
}
#endif

static int begin_blocks(void) {
    memset(tile_weights, 3, sizeof tile_weights);
    memset(tile_activations, 1, sizeof tile_activations);
    return take_tiles();
}
static void end_blocks(void) { _tile_release(); }

#elif defined(DOT_portable)
/* C alone, operands from L1. */
enum { LENGTH = 4096 };
static uint8_t portable_weights[LENGTH];
static int8_t portable_activations[LENGTH];
static int begin_blocks(void) {
    memset(portable_weights, 3, LENGTH);
    memset(portable_activations, 1, LENGTH);
    return 1;
}
static void end_blocks(void) {}
static double block(uint64_t *result) {
    for (int i = 0; i < 16; i++) {
        int32_t sum = 0;
        __asm__ volatile("" : : "r"(portable_weights), "r"(portable_activations) : "memory");
        for (int k = 0; k < LENGTH; k++) sum += portable_weights[k] * portable_activations[k];
        *result += (uint64_t)sum;
    }
    return 2.0 * 16 * LENGTH;
}

#else /* sums and operands in vector registers */
static int begin_blocks(void) { return 1; }
static void end_blocks(void) {}
/* The compiler takes it for changed, and keeps it in a vector register. */
#if defined(__AVX512F__)
#define HIDE(v) __asm__ volatile("" : "+v"(v))
#elif defined(__x86_64__)
#define HIDE(v) __asm__ volatile("" : "+x"(v))
#elif defined(__aarch64__)
#define HIDE(v) __asm__ volatile("" : "+w"(v))
#else
#define HIDE(v) __asm__ volatile("" : "+m"(v))
#endif
static double block(uint64_t *result) {
    sums acc[SUMS];
    operand w = EVERY(3), x = EVERY(1);
    HIDE(w);
    HIDE(x);
#pragma GCC unroll 16
    for (int s = 0; s < SUMS; s++) acc[s] = ZERO;
    for (int i = 0; i < STEPS; i++)
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++) {
            acc[s] = STEP(acc[s], w, x);
            HIDE(acc[s]); /* or gcc 12 keeps sums in memory */
            HIDE(w);      /* or parts of the step are done once for all */
        }
    lane lanes[SUMS][LANES] __attribute__((aligned(64)));
    memcpy(lanes, acc, sizeof lanes);
    __asm__ volatile("" : : "r"(lanes) : "memory");
    for (int s = 0; s < SUMS; s++)
        for (int i = 0; i < LANES; i++) *result += (uint64_t)lanes[s][i];
    return 2.0 * SUMS * LANES * PRODUCTS * STEPS;
}
#endif

static double probe_work(probe_task *task, int thread, double begin, uint64_t *sum) {
    (void)thread;
    if (!begin_blocks()) return NO_TILES;
    double operations = 0;
    do operations += block(sum);
    while (now() - begin < task->seconds);
    end_blocks();
    return operations;
}

double qcc_dot(double seconds, int threads, probe_result *result) {
    probe_task task = {.seconds = seconds};
    return run_task(&task, threads, result);
}
