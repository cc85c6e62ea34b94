/* What the AVX-512 and the AMX kernels share: the lane operations, and products of words by VPOPCNTDQ.
 *
 * Included between BB_TARGET_BEGIN and BB_TARGET_END; everything is static. The product's tile is 8 rows by 32 columns
 * in sixteen accumulators.
 */
#ifndef BB_AVX512_H
#define BB_AVX512_H

#define BB_NATIVE_LANES
#define BB_NATIVE_TABLE
#include "lanes.h"

BB_INLINE bb_floats lanes_max(bb_floats a, bb_floats b) { return (bb_floats)_mm512_max_ps((__m512)a, (__m512)b); }
BB_INLINE uint32_t lanes_less(bb_floats a, bb_floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
BB_INLINE uint32_t lanes_within(bb_words a, bb_words b) { return _mm512_cmple_epu32_mask((__m512i)a, (__m512i)b); }
BB_INLINE bb_floats lanes_keep(bb_floats v, uint32_t bits) { return (bb_floats)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)v); }

typedef struct {
    __m512 low[2], high;
} bb_table;

BB_INLINE bb_table lanes_table(const float low[32], const float high[16]) {
    return (bb_table){{_mm512_loadu_ps(low), _mm512_loadu_ps(low + 16)}, _mm512_loadu_ps(high)};
}

BB_INLINE bb_floats lanes_look_up(const bb_table *table, bb_words words) {
    const __m512i index = (__m512i)words; /* the permutations ignore its upper bits */
    const __m512 low = _mm512_permutex2var_ps(table->low[0], index, table->low[1]);
    return (bb_floats)_mm512_mul_ps(low, _mm512_permutexvar_ps(_mm512_srli_epi32(index, 5), table->high));
}

#include "elementwise.h"

/* `num_rows` and `mask` are constants where this is inlined, so the accumulators stay in registers. */
BB_INLINE void count_tile(const uint32_t *left, size_t stride, const size_t num_rows, size_t num_words, const uint32_t *panel,
                          const bool mask, uint32_t *counts) {
    __m512i low[8], high[8];
    for (size_t row = 0; row < num_rows; row++) low[row] = high[row] = _mm512_setzero_si512();
    for (size_t word = 0; word < num_words; word++, panel += BB_PANEL) {
        const __m512i first = _mm512_loadu_si512(panel), second = _mm512_loadu_si512(panel + 16);
        for (size_t row = 0; row < num_rows; row++) {
            const __m512i broadcast = _mm512_set1_epi32((int32_t)left[row * stride + word]);
            const __m512i a = mask ? _mm512_and_si512(broadcast, first) : _mm512_xor_si512(broadcast, first);
            const __m512i b = mask ? _mm512_and_si512(broadcast, second) : _mm512_xor_si512(broadcast, second);
            low[row] = _mm512_add_epi32(low[row], _mm512_popcnt_epi32(a));
            high[row] = _mm512_add_epi32(high[row], _mm512_popcnt_epi32(b));
        }
    }
    for (size_t row = 0; row < num_rows; row++, counts += BB_PANEL) {
        _mm512_storeu_si512(counts, low[row]);
        _mm512_storeu_si512(counts + 16, high[row]);
    }
}

BB_INLINE void count_rows(bb_rows rows, size_t num_words, const uint32_t *panel, const bool mask, uint32_t *counts) {
    const uint32_t *left = rows.words;
    size_t row = 0;
    for (; row + 8 <= rows.num_rows; row += 8) count_tile(left + row * rows.stride, rows.stride, 8, num_words, panel, mask, counts + row * BB_PANEL);
    for (; row + 4 <= rows.num_rows; row += 4) count_tile(left + row * rows.stride, rows.stride, 4, num_words, panel, mask, counts + row * BB_PANEL);
    for (; row < rows.num_rows; row++) count_tile(left + row * rows.stride, rows.stride, 1, num_words, panel, mask, counts + row * BB_PANEL);
}

static void count_words(bb_rows rows, size_t num_words, const uint32_t *panel, bool mask, uint32_t *counts) {
    if (mask)
        count_rows(rows, num_words, panel, true, counts);
    else
        count_rows(rows, num_words, panel, false, counts);
}

#endif
