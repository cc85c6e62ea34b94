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
        _mm512_mask_storeu_ps(job->out + at, lanes, _mm512_mul_ps(gradient, gelu_slope(x, normal_cdf(x))));
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
