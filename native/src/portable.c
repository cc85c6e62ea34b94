/* The reference: plain C, any processor, and the truth that the other files are tested against. */
#include "elementwise.h"

static uint32_t popcount(uint32_t word) {
    word -= word >> 1 & 0x55555555u;
    word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
    return ((word + (word >> 4)) & 0x0f0f0f0fu) * 0x01010101u >> 24;
}

static void count(bb_rows rows, size_t num_words, const uint32_t *panel, bool mask, uint32_t *counts) {
    for (size_t row = 0; row < rows.num_rows; row++, counts += BB_PANEL) {
        const uint32_t *left = rows.words + row * rows.stride, *right = panel;
        for (size_t column = 0; column < BB_PANEL; column++) counts[column] = 0;
        for (size_t word = 0; word < num_words; word++, right += BB_PANEL)
            for (size_t column = 0; column < BB_PANEL; column++)
                counts[column] += popcount(mask ? left[word] & right[column] : left[word] ^ right[column]);
    }
}

static double spin(size_t rounds) {
    uint32_t sums[BB_PANEL];
    for (uint32_t i = 0; i < BB_PANEL; i++) sums[i] = i;
    for (size_t round = 0; round < rounds; round++)
        for (size_t i = 0; i < BB_PANEL; i++) sums[i] += popcount(sums[i] ^ (uint32_t)rounds);
    volatile uint32_t wanted = sums[0]; /* the sums are wanted, as far as the compiler knows */
    return (double)rounds * BB_PANEL * 32 + (wanted & 0);
}

const bb_kernels bb_portable_kernels = {.name = "portable", .count = count, .spin = spin, BB_ELEMENTWISE};
