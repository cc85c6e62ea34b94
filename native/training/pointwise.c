/* GELU and dropout. */
#if defined(__x86_64__)
#include "training.h"

#include "../src/target.h"
#include "rows.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "vectors.h"

typedef struct {
    row_blocks blocks;
    const float *x, *gradient;
    const int16_t *random;
    int16_t limit;
    float factor, *out;
    uint8_t *kept;
} pointwise_job;

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

static void gelu_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const pointwise_job *job = context;
    const size_t end = block_end(job->blocks, index);
    for (size_t at = index * job->blocks.per_block; at < end; at += BB_LANES) {
        const __mmask16 lanes = lanes_inside(at, end);
        const __m512 x = load_floats(job->x + at, lanes);
        _mm512_mask_storeu_ps(job->out + at, lanes, _mm512_mul_ps(x, normal_cdf(x)));
    }
}

static void gelu_backward_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const pointwise_job *job = context;
    const size_t end = block_end(job->blocks, index);
    for (size_t at = index * job->blocks.per_block; at < end; at += BB_LANES) {
        const __mmask16 lanes = lanes_inside(at, end);
        const __m512 x = load_floats(job->x + at, lanes), gradient = load_floats(job->gradient + at, lanes);
        const __m512 bell = lanes_exp(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f)));
        const __m512 density = _mm512_mul_ps(bell, _mm512_set1_ps(0.398942280f));
        _mm512_mask_storeu_ps(job->out + at, lanes, _mm512_mul_ps(gradient, _mm512_fmadd_ps(x, density, normal_cdf(x))));
    }
}

static void dropout_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const pointwise_job *job = context;
    const size_t end = block_end(job->blocks, index);
    for (size_t at = index * job->blocks.per_block; at < end; at += BB_LANES) {
        const __mmask16 lanes = lanes_inside(at, end), kept = kept_lanes(job->random + at, job->limit, lanes);
        _mm512_mask_storeu_ps(job->out + at, lanes, _mm512_maskz_mul_ps(kept, load_floats(job->x + at, lanes), _mm512_set1_ps(job->factor)));
        store_flags(job->kept + at, lanes, kept);
    }
}

BB_TARGET_END

void bb_training_gelu(bb_pool *pool, const float *x, size_t count, float *y) {
    pointwise_job job = {.blocks = split_rows(count, 1), .x = x, .out = y};
    bb_pool_run(pool, job.blocks.count, gelu_block, &job);
}

void bb_training_gelu_backward(bb_pool *pool, const float *gradient, const float *x, size_t count, float *dx) {
    pointwise_job job = {.blocks = split_rows(count, 1), .x = x, .gradient = gradient, .out = dx};
    bb_pool_run(pool, job.blocks.count, gelu_backward_block, &job);
}

void bb_training_dropout(bb_pool *pool, const float *x, const int16_t *random, int16_t limit, float factor, size_t count, float *y, uint8_t *kept) {
    pointwise_job job = {.blocks = split_rows(count, 1), .x = x, .random = random, .limit = limit, .factor = factor, .out = y, .kept = kept};
    bb_pool_run(pool, job.blocks.count, dropout_block, &job);
}
#endif
