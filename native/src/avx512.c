/* AVX-512 with VPOPCNTDQ: sixteen columns a register. */
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#include "kernels.h"
#include "target.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,popcnt")

#include "avx512.h"

static double spin(size_t rounds) {
    __m512i sums[16];
    const __m512i word = _mm512_set1_epi32((int32_t)rounds);
    for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_epi32(i);
    for (size_t round = 0; round < rounds; round++)
        for (int i = 0; i < 16; i++) sums[i] = _mm512_add_epi32(sums[i], _mm512_popcnt_epi32(_mm512_xor_si512(sums[i], word)));
    for (int i = 0; i < 16; i++) __asm__ volatile("" : : "v"(sums[i])); /* the sums are wanted, as far as the compiler knows */
    return (double)rounds * 16 * 512;
}

const bb_kernels bb_avx512_kernels = {.name = "avx512", .count = count_words, .spin = spin, BB_ELEMENTWISE};

BB_TARGET_END
#endif
