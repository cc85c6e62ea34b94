/* Weighted squared differences of states and their gradient, a visit each. */
#if defined(__x86_64__)
#include "training.h"

#include "../src/target.h"
#include "rows.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "vectors.h"

typedef struct {
    row_blocks blocks;
    size_t width;
    const float *a, *b, *weights;
    float factor, *out;
    double *sums;
} squares_job;

static void squares_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const squares_job *job = context;
    double total = 0;
    for (size_t row = index * job->blocks.per_block; row < block_end(job->blocks, index); row++) {
        const float *a = job->a + row * job->width, *b = job->b + row * job->width;
        __m512 sum = _mm512_setzero_ps();
        for (size_t column = 0; column < job->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, job->width);
            const __m512 difference = _mm512_sub_ps(load_floats(a + column, lanes), load_floats(b + column, lanes));
            sum = _mm512_fmadd_ps(difference, difference, sum);
        }
        total += (double)_mm512_reduce_add_ps(sum) * job->weights[row];
    }
    job->sums[index] = total;
}

static void squares_backward_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const squares_job *job = context;
    for (size_t row = index * job->blocks.per_block; row < block_end(job->blocks, index); row++) {
        const float *a = job->a + row * job->width, *b = job->b + row * job->width;
        const __m512 factor = _mm512_set1_ps(job->factor * job->weights[row]);
        for (size_t column = 0; column < job->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, job->width);
            const __m512 difference = _mm512_sub_ps(load_floats(a + column, lanes), load_floats(b + column, lanes));
            _mm512_mask_storeu_ps(job->out + row * job->width + column, lanes, _mm512_mul_ps(difference, factor));
        }
    }
}

BB_TARGET_END

void bb_training_squares(bb_pool *pool, const float *a, const float *b, const float *weights, size_t rows, size_t width, float *sum) {
    squares_job job = {.blocks = split_rows(rows, width), .width = width, .a = a, .b = b, .weights = weights};
    job.sums = malloc(job.blocks.count * sizeof *job.sums);
    if (!job.sums) abort();
    bb_pool_run(pool, job.blocks.count, squares_block, &job);
    double total = 0;
    for (size_t block = 0; block < job.blocks.count; block++) total += job.sums[block];
    *sum = (float)total;
    free(job.sums);
}

void bb_training_squares_backward(bb_pool *pool, float gradient, const float *a, const float *b, const float *weights, size_t rows, size_t width,
                                  float *da) {
    squares_job job = {.blocks = split_rows(rows, width), .width = width, .a = a, .b = b, .weights = weights, .factor = 2 * gradient, .out = da};
    bb_pool_run(pool, job.blocks.count, squares_backward_block, &job);
}
#endif
