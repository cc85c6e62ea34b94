/* Sixteen lanes of AVX-512, and how operands of products are loaded and stored. Included inside a target region. */
#ifndef BB_TRAINING_VECTORS_H
#define BB_TRAINING_VECTORS_H

#include <immintrin.h>

#include "training.h"

#define BB_LANES 16
#define BB_INLINE static inline __attribute__((always_inline, unused))

/* Lanes that lie inside of `width` from `first` on; a whole vector but for the end of a row. */
BB_INLINE __mmask16 lanes_inside(size_t first, size_t width) {
    return width - first >= BB_LANES ? 0xffff : (__mmask16)((1u << (width - first)) - 1);
}

BB_INLINE __m512 load_floats(const float *address, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, address); }

/* `type` is a constant where this is inlined. */
BB_INLINE __m512 load_operand(const void *base, size_t index, int type, __mmask16 lanes) {
    if (type == BB_FLOAT32) return _mm512_maskz_loadu_ps(lanes, (const float *)base + index);
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, (const uint16_t *)base + index);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

BB_INLINE void store_operand(void *base, size_t index, int type, __mmask16 lanes, __m512 value) {
    if (type == BB_FLOAT32) {
        _mm512_mask_storeu_ps((float *)base + index, lanes, value);
        return;
    }
    if (type == BB_INT8) {
        _mm_mask_storeu_epi8((int8_t *)base + index, lanes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
        return;
    }
    /* To the nearest bfloat16, ties to even. */
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    _mm256_mask_storeu_epi16((uint16_t *)base + index, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

BB_INLINE void store_flags(uint8_t *address, __mmask16 lanes, __mmask16 flags) {
    _mm_mask_storeu_epi8(address, lanes, _mm_maskz_set1_epi8(flags, 1));
}

BB_INLINE __mmask16 load_flags(const uint8_t *address, __mmask16 lanes) {
    return _mm_cmpneq_epi8_mask(_mm_maskz_loadu_epi8(lanes, address), _mm_setzero_si128());
}

/* Bit i: random[i] >= limit. */
BB_INLINE __mmask16 kept_lanes(const int16_t *random, int16_t limit, __mmask16 lanes) {
    return _mm256_mask_cmpge_epi16_mask(lanes, _mm256_maskz_loadu_epi16(lanes, random), _mm256_set1_epi16(limit));
}

/* What code_of compares with; the same for a whole tensor. */
typedef struct {
    __m512 step, half, lowest, highest;
} code_limits;

BB_INLINE code_limits limits_of(float step, float lowest, float highest) {
    return (code_limits){_mm512_set1_ps(step), _mm512_set1_ps(step * 0.5f), _mm512_set1_ps(lowest), _mm512_set1_ps(highest)};
}

/* Codes of t and which lanes are inside of the window, for each kind of training.h; `kind` is a constant where this is inlined. */
BB_INLINE __m512 code_of(__m512 t, code_limits limits, const int kind, __mmask16 *inside) {
    const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1.0f);
    if (kind == BB_LEVELS) {
        const __m512 ratio = _mm512_div_ps(t, limits.step);
        *inside = _mm512_cmp_ps_mask(ratio, limits.lowest, _CMP_GE_OQ) & _mm512_cmp_ps_mask(ratio, limits.highest, _CMP_LE_OQ);
        const __m512 nearest = _mm512_roundscale_ps(ratio, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        return _mm512_min_ps(_mm512_max_ps(nearest, limits.lowest), limits.highest);
    }
    if (kind == BB_SIGNED) {
        *inside = _mm512_cmp_ps_mask(_mm512_abs_ps(t), limits.step, _CMP_LE_OQ);
        return _mm512_mask_mov_ps(_mm512_set1_ps(-1.0f), _mm512_cmp_ps_mask(t, zero, _CMP_GE_OQ), one);
    }
    if (kind == BB_UNSIGNED) {
        *inside = _mm512_cmp_ps_mask(t, zero, _CMP_GE_OQ) & _mm512_cmp_ps_mask(t, limits.step, _CMP_LE_OQ);
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(t, limits.half, _CMP_GT_OQ), one);
    }
    *inside = _mm512_cmp_ps_mask(_mm512_abs_ps(t), limits.step, _CMP_LT_OQ);
    const __mmask16 high = kind == BB_BOOL ? _mm512_cmp_ps_mask(t, zero, _CMP_GE_OQ) : _mm512_cmp_ps_mask(t, zero, _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(high, one);
}

/* exp of lanes up to 0 or a little above, relative error below 2e-7; below -87 the result stays near 1e-38.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, and the polynomial is the series of exp to r^6.
 */
BB_INLINE __m512 lanes_exp(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.0f));
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(1.38888889e-3f), _mm512_set1_ps(8.33333333e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.16666667e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.66666667e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* erfc(z), relative error below 4e-7 near 0 and 3e-6 in the tail, for z of any sign.
 *
 * erfc(z) = t exp(-z^2 + P(t)) with t = 1 / (1 + z / 2) for z >= 0; P is a Chebyshev fit of log(erfcx(z) / t) on
 * 0.06 <= t <= 1. Never 0: the tail of GELU keeps its sign.
 */
BB_INLINE __m512 lanes_erfc(__m512 z) {
    static const float fit[] = {-1.26551354f,   1.00008082f,  0.373245209f,  0.10291163f,   -0.211165816f,
                                0.339376718f, -1.22522891f, 1.56874156f, -0.861461818f, 0.179014191f};
    const __m512 a = _mm512_min_ps(_mm512_abs_ps(z), _mm512_set1_ps(9.0f));
    const __m512 t = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_fmadd_ps(a, _mm512_set1_ps(0.5f), _mm512_set1_ps(1.0f)));
    __m512 p = _mm512_set1_ps(fit[9]);
    for (int i = 8; i >= 0; i--) p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(fit[i]));
    const __m512 tail = _mm512_mul_ps(t, lanes_exp(_mm512_fnmadd_ps(a, a, p)));
    const __mmask16 negative = _mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_sub_ps(tail, negative, _mm512_set1_ps(2.0f), tail);
}

BB_INLINE __m512 normal_cdf(__m512 x) {
    return _mm512_mul_ps(lanes_erfc(_mm512_mul_ps(x, _mm512_set1_ps(-0.707106781f))), _mm512_set1_ps(0.5f));
}

/* gelu'(x) = Phi(x) + x phi(x), given Phi(x). */
BB_INLINE __m512 gelu_slope(__m512 x, __m512 cdf) {
    const __m512 bell = lanes_exp(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f)));
    return _mm512_fmadd_ps(x, _mm512_mul_ps(bell, _mm512_set1_ps(0.398942280f)), cdf);
}

#endif
