/* Rows of bits in 32-bit words: bit i of a row is bit i % 32 of word i / 32, as in the packed file. */
#ifndef BB_BITS_H
#define BB_BITS_H

#include <stddef.h>
#include <stdint.h>

static inline size_t bb_round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

/* 32-bit words of a packed row: the file pads rows to 64 bits. */
static inline size_t bb_row_words(size_t num_bits) { return bb_round_up(num_bits, 64) / 32; }

/* Bits [offset, offset + count) of a row, 1 <= count <= 32. */
static inline uint32_t bb_get_bits(const uint32_t *row, size_t offset, size_t count) {
    const size_t word = offset / 32, shift = offset % 32;
    uint32_t bits = row[word] >> shift;
    if (shift + count > 32) bits |= row[word + 1] << (32 - shift);
    return count == 32 ? bits : bits & ((1u << count) - 1);
}

/* Sets bits that are 0 so far to the low `count` bits of `bits`. */
static inline void bb_put_bits(uint32_t *row, size_t offset, size_t count, uint32_t bits) {
    const size_t word = offset / 32, shift = offset % 32;
    if (count < 32) bits &= (1u << count) - 1;
    row[word] |= bits << shift;
    if (shift + count > 32) row[word + 1] |= bits >> (32 - shift);
}

static inline int32_t bb_count_ones(const uint32_t *row, size_t num_words) {
    int32_t ones = 0;
    for (size_t word = 0; word < num_words; word++) ones += __builtin_popcount(row[word]);
    return ones;
}

/* Bit j of word i becomes bit i of word j. */
static inline void bb_transpose_32(uint32_t words[32]) {
    uint32_t mask = 0x0000ffffu;
    for (unsigned width = 16; width; width >>= 1, mask ^= mask << width)
        for (unsigned i = 0; i < 32; i = ((i | width) + 1) & ~width) {
            uint32_t swapped = (words[i] >> width ^ words[i | width]) & mask;
            words[i] ^= swapped << width;
            words[i | width] ^= swapped;
        }
}

#endif
