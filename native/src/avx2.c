/* AVX2: popcount by two table look-ups a byte; a tile of 4 rows by 8 columns of bytes, summed once per 31 words. */
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"
#include "target.h"

BB_TARGET_BEGIN("avx2,popcnt")

#define BB_NATIVE_LANES
#include "lanes.h"

typedef union {
    bb_floats lanes;
    bb_words words;
    __m256 half[2];
    __m256i whole[2];
} pair;

BB_INLINE bb_floats lanes_max(bb_floats a, bb_floats b) {
    const pair x = {.lanes = a}, y = {.lanes = b};
    return (pair){.half = {_mm256_max_ps(x.half[0], y.half[0]), _mm256_max_ps(x.half[1], y.half[1])}}.lanes;
}

BB_INLINE uint32_t lanes_less(bb_floats a, bb_floats b) {
    const pair x = {.lanes = a}, y = {.lanes = b};
    uint32_t low = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.half[0], y.half[0], _CMP_LT_OQ));
    uint32_t high = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x.half[1], y.half[1], _CMP_LT_OQ));
    return low | high << 8;
}

BB_INLINE uint32_t lanes_within(bb_words a, bb_words b) {
    const pair x = {.words = a}, y = {.words = b};
    __m256i low = _mm256_cmpeq_epi32(_mm256_max_epu32(x.whole[0], y.whole[0]), y.whole[0]);
    __m256i high = _mm256_cmpeq_epi32(_mm256_max_epu32(x.whole[1], y.whole[1]), y.whole[1]);
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(low)) | (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(high)) << 8;
}

BB_INLINE bb_floats lanes_keep(bb_floats vector, uint32_t bits) {
    static const bb_words bit_of_lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (bb_floats)((bb_ints)vector & (bb_ints)((bits & bit_of_lane) == bit_of_lane));
}

#include "elementwise.h"

#define TILE_ROWS 4
#define BYTE_WORDS 31 /* a byte holds the sum of 31 popcounts of a byte */

/* Popcounts of the 32 bytes of x. */
BB_INLINE __m256i popcount_bytes(__m256i x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(x, nibble));
    return _mm256_add_epi8(low, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), nibble)));
}

/* Eight columns of a panel for up to four rows; `num_rows` and `mask` are constants where this is inlined. */
BB_INLINE void count_tile(const uint32_t *left, size_t stride, const size_t num_rows, size_t num_words, const uint32_t *panel,
                          const bool mask, uint32_t *counts) {
    __m256i sums[TILE_ROWS], bytes[TILE_ROWS];
    for (size_t row = 0; row < num_rows; row++) sums[row] = _mm256_setzero_si256();
    for (size_t first = 0; first < num_words; first += BYTE_WORDS) {
        const size_t end = first + BYTE_WORDS < num_words ? first + BYTE_WORDS : num_words;
        for (size_t row = 0; row < num_rows; row++) bytes[row] = _mm256_setzero_si256();
        for (size_t word = first; word < end; word++) {
            const __m256i right = _mm256_loadu_si256((const __m256i *)(panel + word * BB_PANEL));
            for (size_t row = 0; row < num_rows; row++) {
                const __m256i broadcast = _mm256_set1_epi32((int32_t)left[row * stride + word]);
                const __m256i bits = mask ? _mm256_and_si256(broadcast, right) : _mm256_xor_si256(broadcast, right);
                bytes[row] = _mm256_add_epi8(bytes[row], popcount_bytes(bits));
            }
        }
        for (size_t row = 0; row < num_rows; row++) {
            const __m256i pairs = _mm256_maddubs_epi16(bytes[row], _mm256_set1_epi8(1));
            sums[row] = _mm256_add_epi32(sums[row], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
    }
    for (size_t row = 0; row < num_rows; row++) _mm256_storeu_si256((__m256i *)(counts + row * BB_PANEL), sums[row]);
}

BB_INLINE void count_rows(bb_rows rows, size_t num_words, const uint32_t *panel, const bool mask, uint32_t *counts) {
    for (size_t column = 0; column < BB_PANEL; column += 8) {
        size_t row = 0;
        for (; row + TILE_ROWS <= rows.num_rows; row += TILE_ROWS)
            count_tile(rows.words + row * rows.stride, rows.stride, TILE_ROWS, num_words, panel + column, mask, counts + row * BB_PANEL + column);
        for (; row < rows.num_rows; row++)
            count_tile(rows.words + row * rows.stride, rows.stride, 1, num_words, panel + column, mask, counts + row * BB_PANEL + column);
    }
}

static void count(bb_rows rows, size_t num_words, const uint32_t *panel, bool mask, uint32_t *counts) {
    if (mask)
        count_rows(rows, num_words, panel, true, counts);
    else
        count_rows(rows, num_words, panel, false, counts);
}

static double spin(size_t rounds) {
    __m256i sums[8];
    const __m256i word = _mm256_set1_epi32((int32_t)rounds);
    for (int i = 0; i < 8; i++) sums[i] = _mm256_set1_epi32(i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < 8; i++) sums[i] = _mm256_add_epi8(sums[i], popcount_bytes(_mm256_xor_si256(sums[i], word)));
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "x"(sums[i])); /* the sums are wanted, as far as the compiler knows */
    return (double)rounds * 8 * 256;
}

const bb_kernels bb_avx2_kernels = {.name = "avx2", .count = count, .spin = spin, BB_ELEMENTWISE};

BB_TARGET_END
#endif
