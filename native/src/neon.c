/* NEON: popcount a byte at a time; a tile of 4 rows by 8 columns of bytes, summed once per 31 words. */
#if defined(__aarch64__)
#include <arm_neon.h>

#include "elementwise.h"

#define TILE_ROWS 4
#define TILE_COLUMNS 8
#define BYTE_WORDS 31 /* a byte holds the sum of 31 popcounts of a byte */

/* `num_rows` and `mask` are constants where this is inlined, so the sums stay in registers. */
BB_INLINE void count_tile(const uint32_t *left, size_t stride, const size_t num_rows, size_t num_words, const uint32_t *panel,
                          const bool mask, uint32_t *counts) {
    uint32x4_t sums[TILE_ROWS][2];
    uint8x16_t bytes[TILE_ROWS][2];
    for (size_t row = 0; row < num_rows; row++) sums[row][0] = sums[row][1] = vdupq_n_u32(0);
    for (size_t first = 0; first < num_words; first += BYTE_WORDS) {
        const size_t end = first + BYTE_WORDS < num_words ? first + BYTE_WORDS : num_words;
        for (size_t row = 0; row < num_rows; row++) bytes[row][0] = bytes[row][1] = vdupq_n_u8(0);
        for (size_t word = first; word < end; word++)
            for (size_t half = 0; half < 2; half++) {
                const uint32x4_t right = vld1q_u32(panel + word * BB_PANEL + 4 * half);
                for (size_t row = 0; row < num_rows; row++) {
                    const uint32x4_t broadcast = vdupq_n_u32(left[row * stride + word]);
                    const uint32x4_t bits = mask ? vandq_u32(broadcast, right) : veorq_u32(broadcast, right);
                    bytes[row][half] = vaddq_u8(bytes[row][half], vcntq_u8(vreinterpretq_u8_u32(bits)));
                }
            }
        for (size_t row = 0; row < num_rows; row++)
            for (size_t half = 0; half < 2; half++) sums[row][half] = vpadalq_u16(sums[row][half], vpaddlq_u8(bytes[row][half]));
    }
    for (size_t row = 0; row < num_rows; row++)
        for (size_t half = 0; half < 2; half++) vst1q_u32(counts + row * BB_PANEL + 4 * half, sums[row][half]);
}

BB_INLINE void count_rows(bb_rows rows, size_t num_words, const uint32_t *panel, const bool mask, uint32_t *counts) {
    for (size_t column = 0; column < BB_PANEL; column += TILE_COLUMNS) {
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
    uint8x16_t sums[8];
    const uint8x16_t word = vdupq_n_u8((uint8_t)rounds);
    for (int i = 0; i < 8; i++) sums[i] = vdupq_n_u8((uint8_t)i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < 8; i++) sums[i] = vaddq_u8(sums[i], vcntq_u8(veorq_u8(sums[i], word)));
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "w"(sums[i])); /* the sums are wanted, as far as the compiler knows */
    return (double)rounds * 8 * 128;
}

const bb_kernels bb_neon_kernels = {.name = "neon", .count = count, .spin = spin, BB_ELEMENTWISE};
#endif
