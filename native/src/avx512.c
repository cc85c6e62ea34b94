/* AVX-512 with VPOPCNTDQ: sixteen columns a register, a tile of 8 rows by 32 columns in sixteen accumulators. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "kernels.h"
#include "target.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")

#define BB_NATIVE_LANES
#include "lanes.h"

BB_INLINE bb_floats lanes_max(bb_floats a, bb_floats b) { return (bb_floats)_mm512_max_ps((__m512)a, (__m512)b); }
BB_INLINE uint32_t lanes_less(bb_floats a, bb_floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
BB_INLINE uint32_t lanes_within(bb_words a, bb_words b) { return _mm512_cmple_epu32_mask((__m512i)a, (__m512i)b); }
BB_INLINE bb_floats lanes_keep(bb_floats v, uint32_t bits) { return (bb_floats)_mm512_maskz_mov_ps((__mmask16)bits, (__m512)v); }

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

static void count(bb_rows rows, size_t num_words, const uint32_t *panel, bool mask, uint32_t *counts) {
    if (mask)
        count_rows(rows, num_words, panel, true, counts);
    else
        count_rows(rows, num_words, panel, false, counts);
}

static double spin(size_t rounds) {
    __m512i sums[16];
    const __m512i word = _mm512_set1_epi32((int32_t)rounds);
    for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_epi32(i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < 16; i++) sums[i] = _mm512_add_epi32(sums[i], _mm512_popcnt_epi32(_mm512_xor_si512(sums[i], word)));
    for (int i = 0; i < 16; i++) __asm__ volatile("" : : "v"(sums[i])); /* the sums are wanted, as far as the compiler knows */
    return (double)rounds * 16 * 512;
}

const bb_kernels bb_avx512_kernels = {.name = "avx512", .count = count, .spin = spin, BB_ELEMENTWISE};

BB_TARGET_END
#endif
