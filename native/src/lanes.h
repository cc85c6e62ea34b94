/* Sixteen float lanes: one arithmetic for every instruction set.
 *
 * The compiler lowers these types to one AVX-512 register, two AVX2 or four SSE or NEON registers. Sums run over
 * sixteen partial sums that are folded in a fixed tree, and no product is fused into an addition (the build says
 * -ffp-contract=off), so every instruction set rounds alike and takes the same binary decisions.
 *
 * A file that defines BB_NATIVE_LANES provides lanes_max, lanes_less, lanes_within and lanes_keep with its own
 * instructions, one that defines BB_NATIVE_TABLE lanes_table and lanes_look_up: compilers lower the generic ones below
 * poorly.
 */
#ifndef BB_LANES_H
#define BB_LANES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BB_LANES 16

typedef float bb_floats __attribute__((vector_size(64)));
typedef int32_t bb_ints __attribute__((vector_size(64)));
typedef uint32_t bb_words __attribute__((vector_size(64)));

/* Always inlined: vectors in arguments would otherwise depend on the calling convention of the instruction set. */
#define BB_INLINE static inline __attribute__((always_inline, unused))

BB_INLINE bb_floats lanes_load(const float *address) {
    bb_floats vector;
    memcpy(&vector, address, sizeof vector);
    return vector;
}

BB_INLINE bb_words lanes_load_words(const uint32_t *address) {
    bb_words vector;
    memcpy(&vector, address, sizeof vector);
    return vector;
}

BB_INLINE void lanes_store(float *address, bb_floats vector) { memcpy(address, &vector, sizeof vector); }

BB_INLINE bb_floats lanes_spread(float value) { return value - (bb_floats){0}; }

/* Lanes of v in another order; GCC has clang's name for it since version 12. */
#if defined(__clang__) || __GNUC__ >= 12
#define BB_SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else
#define BB_SHUFFLE(v, ...) __builtin_shuffle(v, (bb_ints){__VA_ARGS__})
#endif

BB_INLINE float lanes_sum(bb_floats v) {
    v += BB_SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += BB_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += BB_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return v[0] + v[1];
}

#ifndef BB_NATIVE_TABLE

/* A table of a product: lanes_look_up gives low[word % 32] * high[word / 32], for words below 512. */
typedef struct {
    const float *low, *high;
} bb_table;

BB_INLINE bb_table lanes_table(const float low[32], const float high[16]) { return (bb_table){low, high}; }

BB_INLINE bb_floats lanes_look_up(const bb_table *table, bb_words words) {
    bb_floats low, high;
    for (int lane = 0; lane < BB_LANES; lane++) {
        low[lane] = table->low[words[lane] % 32];
        high[lane] = table->high[words[lane] / 32];
    }
    return low * high;
}

#endif

#ifndef BB_NATIVE_LANES

BB_INLINE bb_floats lanes_max(bb_floats a, bb_floats b) {
    bb_ints greater = a > b;
    return (bb_floats)(((bb_ints)a & greater) | ((bb_ints)b & ~greater));
}

BB_INLINE uint32_t lanes_mask_bits(bb_ints mask) {
    uint32_t bits = 0;
    for (int lane = 0; lane < BB_LANES; lane++) bits |= (uint32_t)(mask[lane] & 1) << lane;
    return bits;
}

/* Bit i: a[i] < b[i]. */
BB_INLINE uint32_t lanes_less(bb_floats a, bb_floats b) { return lanes_mask_bits(a < b); }

/* Bit i: a[i] <= b[i], unsigned. */
BB_INLINE uint32_t lanes_within(bb_words a, bb_words b) { return lanes_mask_bits((bb_ints)(a <= b)); }

/* Lanes whose bit is clear become 0. */
BB_INLINE bb_floats lanes_keep(bb_floats vector, uint32_t bits) {
    static const bb_words bit_of_lane = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    bb_ints kept = (bb_ints)((bits & bit_of_lane) != 0);
    return (bb_floats)((bb_ints)vector & kept);
}

#endif

#endif
