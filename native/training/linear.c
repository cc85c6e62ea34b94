/* Around the product of a binary linear layer. */
#if defined(__x86_64__)
#include <string.h>

#include "training.h"

#include "../src/target.h"
#include "rows.h"

BB_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,fma")
#include "vectors.h"

typedef struct {
    const bb_activations *a;
    row_blocks blocks;
    int type;
    void *codes;
    uint8_t *window;
    const void *gradient;
    float factor, *dx, *sums;
    double *step_sums;
} binarize_job;

/* t, given Phi(x) for GELU. `activation` and `kind` are constants where these are inlined. */
BB_INLINE __m512 shifted(const bb_activations *a, __m512 x, __m512 cdf, size_t column, __mmask16 lanes, const int activation) {
    const __m512 y = activation == BB_GELU ? _mm512_mul_ps(x, cdf) : activation == BB_RELU ? _mm512_max_ps(x, _mm512_setzero_ps()) : x;
    return a->shift ? _mm512_add_ps(y, load_floats(a->shift + column, lanes)) : y;
}

BB_INLINE void binarize_rows(const binarize_job *job, size_t index, const int type, const int kind, const int activation) {
    const bb_activations *a = job->a;
    const size_t begin = index * job->blocks.per_block, end = block_end(job->blocks, index);
    const code_limits limits = limits_of(a->step, a->lowest, a->highest);
    for (size_t row = begin; row < end; row++)
        for (size_t column = 0; column < a->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, a->width);
            const size_t at = row * a->width + column;
            const __m512 x = load_floats(a->x + at, lanes);
            const __m512 t = shifted(a, x, activation == BB_GELU ? normal_cdf(x) : x, column, lanes, activation);
            __mmask16 inside;
            store_operand(job->codes, at, type, lanes, code_of(t, limits, kind, &inside));
            store_flags(job->window + at, lanes, inside);
        }
}

/* Calls rows(job, index, type, kind, activation) with constants for the last three. */
#define WITH_ACTIVATION(rows, type, kind)                                         \
    do {                                                                          \
        switch (job->a->activation) {                                             \
            case BB_GELU: rows(job, index, type, kind, BB_GELU); break;           \
            case BB_RELU: rows(job, index, type, kind, BB_RELU); break;           \
            default: rows(job, index, type, kind, BB_IDENTITY);                   \
        }                                                                         \
    } while (0)
#define WITH_CONSTANTS(rows, type)                                                \
    do {                                                                          \
        switch (job->a->kind) {                                                   \
            case BB_SIGNED: WITH_ACTIVATION(rows, type, BB_SIGNED); break;        \
            case BB_UNSIGNED: WITH_ACTIVATION(rows, type, BB_UNSIGNED); break;    \
            default: WITH_ACTIVATION(rows, type, BB_LEVELS);                      \
        }                                                                         \
    } while (0)

static void binarize_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const binarize_job *job = context;
    if (job->type == BB_INT8)
        WITH_CONSTANTS(binarize_rows, BB_INT8);
    else if (job->type == BB_BFLOAT16)
        WITH_CONSTANTS(binarize_rows, BB_BFLOAT16);
    else
        WITH_CONSTANTS(binarize_rows, BB_FLOAT32);
}

void bb_training_binarize(bb_pool *pool, const bb_activations *activations, int codes_type, void *codes, uint8_t *window) {
    binarize_job job = {.a = activations, .blocks = split_rows(activations->rows, activations->width), .type = codes_type, .codes = codes, .window = window};
    bb_pool_run(pool, job.blocks.count, binarize_block, &job);
}

BB_INLINE void binarize_backward_rows(const binarize_job *job, size_t index, const int type, const int kind, const int activation) {
    const bb_activations *a = job->a;
    const size_t begin = index * job->blocks.per_block, end = block_end(job->blocks, index);
    const __m512 factor = _mm512_set1_ps(job->factor);
    double step_sum = 0;
    /* A block's sums lie in the first-level cache; visiting its rows in order is what the prefetchers follow. */
    float *sums = job->sums ? job->sums + index * a->width : NULL;
    if (sums) memset(sums, 0, a->width * sizeof *sums);
    for (size_t row = begin; row < end; row++) {
        __m512 ratios = _mm512_setzero_ps();
        for (size_t column = 0; column < a->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, a->width);
            const size_t at = row * a->width + column;
            const __mmask16 inside = load_flags(job->window + at, lanes);
            const __m512 gradient = load_operand(job->gradient, at, type, lanes);
            const __m512 dt = _mm512_maskz_mul_ps(inside, gradient, factor);
            if (sums) _mm512_mask_storeu_ps(sums + column, lanes, _mm512_add_ps(load_floats(sums + column, lanes), dt));
            const __m512 x = activation != BB_IDENTITY || kind != BB_SIGNED ? load_floats(a->x + at, lanes) : dt;
            const __m512 cdf = activation == BB_GELU ? normal_cdf(x) : x;
            if (kind != BB_SIGNED) ratios = _mm512_fmadd_ps(dt, shifted(a, x, cdf, column, lanes, activation), ratios);
            __m512 dx = dt;
            if (activation == BB_GELU) dx = _mm512_mul_ps(dt, gelu_slope(x, cdf));
            if (activation == BB_RELU) dx = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), dt);
            _mm512_mask_storeu_ps(job->dx + at, lanes, dx);
        }
        if (kind != BB_SIGNED) step_sum += _mm512_reduce_add_ps(ratios);
    }
    if (kind != BB_SIGNED) job->step_sums[index] = -step_sum / a->step;
}

static void binarize_backward_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const binarize_job *job = context;
    if (job->type == BB_BFLOAT16)
        WITH_CONSTANTS(binarize_backward_rows, BB_BFLOAT16);
    else
        WITH_CONSTANTS(binarize_backward_rows, BB_FLOAT32);
}

/* Sums of the blocks, one after the other, in double. */
static void fold_blocks(const float *sums, size_t count, size_t width, float *total) {
    for (size_t column = 0; column < width; column++) {
        double sum = 0;
        for (size_t block = 0; block < count; block++) sum += sums[block * width + column];
        total[column] = (float)sum;
    }
}

void bb_training_binarize_backward(bb_pool *pool, const bb_activations *activations, const void *gradient, int gradient_type, float factor,
                                   const uint8_t *window, float *dx, float *dshift, float *dstep) {
    const size_t width = activations->width;
    binarize_job job = {.a = activations, .blocks = split_rows(activations->rows, width), .type = gradient_type, .window = (uint8_t *)window,
                        .gradient = gradient, .factor = factor, .dx = dx};
    float *sums = malloc(job.blocks.count * width * sizeof *sums);
    job.step_sums = malloc(job.blocks.count * sizeof *job.step_sums);
    if (!sums || !job.step_sums) abort();
    job.sums = dshift ? sums : NULL;
    bb_pool_run(pool, job.blocks.count, binarize_backward_block, &job);
    if (dshift) fold_blocks(sums, job.blocks.count, width, dshift);
    if (dstep && activations->kind != BB_SIGNED) *dstep = add_up(job.step_sums, job.blocks.count);
    free(job.step_sums);
    free(sums);
}

typedef struct {
    row_blocks blocks;
    size_t width, num_scales;
    const float *in, *scale, *bias;
    float threshold;
    int type;
    void *out;
    float *sums;
} scale_job;

static void signs_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const scale_job *job = context;
    const __m512 threshold = _mm512_set1_ps(job->threshold);
    const size_t end = block_end(job->blocks, index);
    for (size_t at = index * job->blocks.per_block; at < end; at += BB_LANES) {
        const __mmask16 lanes = lanes_inside(at, end);
        const __mmask16 high = _mm512_cmp_ps_mask(load_floats(job->in + at, lanes), threshold, _CMP_GE_OQ);
        _mm_mask_storeu_epi8((int8_t *)job->out + at, lanes, _mm_mask_mov_epi8(_mm_set1_epi8(-1), high, _mm_set1_epi8(1)));
    }
}

void bb_training_signs(bb_pool *pool, const float *weight, float threshold, size_t count, int8_t *signs) {
    scale_job job = {.blocks = split_rows(count, 1), .in = weight, .threshold = threshold, .out = signs};
    bb_pool_run(pool, job.blocks.count, signs_block, &job);
}

static void scale_bias_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const scale_job *job = context;
    const __m512 spread = _mm512_set1_ps(job->scale[0]);
    for (size_t row = index * job->blocks.per_block; row < block_end(job->blocks, index); row++)
        for (size_t column = 0; column < job->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, job->width);
            float *address = (float *)job->out + row * job->width + column;
            const __m512 product = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(lanes, address));
            const __m512 scale = job->num_scales == 1 ? spread : load_floats(job->scale + column, lanes);
            /* Not fused: torch rounds the product before it adds. */
            _mm512_mask_storeu_ps(address, lanes, _mm512_add_ps(_mm512_mul_ps(product, scale), load_floats(job->bias + column, lanes)));
        }
}

void bb_training_scale_bias(bb_pool *pool, void *values, const float *scale, size_t num_scales, const float *bias, size_t rows, size_t width) {
    scale_job job = {.blocks = split_rows(rows, width), .width = width, .num_scales = num_scales, .scale = scale, .bias = bias, .out = values};
    bb_pool_run(pool, job.blocks.count, scale_bias_block, &job);
}

BB_INLINE void upstream_rows(const scale_job *job, size_t index, const int type) {
    const __m512 spread = _mm512_set1_ps(job->scale[0]);
    const size_t end = block_end(job->blocks, index);
    float *sums = job->sums + index * job->width;
    memset(sums, 0, job->width * sizeof *sums);
    for (size_t row = index * job->blocks.per_block; row < end; row++)
        for (size_t column = 0; column < job->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, job->width);
            const __m512 scale = job->num_scales == 1 ? spread : load_floats(job->scale + column, lanes);
            const size_t at = row * job->width + column;
            const __m512 gradient = load_floats(job->in + at, lanes);
            _mm512_mask_storeu_ps(sums + column, lanes, _mm512_add_ps(load_floats(sums + column, lanes), gradient));
            store_operand(job->out, at, type, lanes, _mm512_mul_ps(gradient, scale));
        }
}

static void upstream_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const scale_job *job = context;
    if (job->type == BB_BFLOAT16)
        upstream_rows(job, index, BB_BFLOAT16);
    else
        upstream_rows(job, index, BB_FLOAT32);
}

void bb_training_upstream(bb_pool *pool, const float *gradient, const float *scale, size_t num_scales, size_t rows, size_t width, int out_type,
                          void *out, float *dbias) {
    scale_job job = {.blocks = split_rows(rows, width), .width = width, .num_scales = num_scales, .in = gradient, .scale = scale, .type = out_type, .out = out};
    job.sums = malloc(job.blocks.count * width * sizeof *job.sums);
    if (!job.sums) abort();
    bb_pool_run(pool, job.blocks.count, upstream_block, &job);
    fold_blocks(job.sums, job.blocks.count, width, dbias);
    free(job.sums);
}

typedef struct {
    row_blocks blocks;
    size_t width, num_scales;
    const void *correlation;
    int type;
    const int8_t *signs;
    const float *scale;
    float step, *dweight;
    double *step_sums;
} weight_job;

BB_INLINE void weight_gradient_rows(const weight_job *job, size_t index, const int type) {
    double step_sum = 0;
    for (size_t row = index * job->blocks.per_block; row < block_end(job->blocks, index); row++) {
        const __m512 factor = _mm512_set1_ps(job->step / job->scale[job->num_scales == 1 ? 0 : row]);
        __m512 sum = _mm512_setzero_ps();
        for (size_t column = 0; column < job->width; column += BB_LANES) {
            const __mmask16 lanes = lanes_inside(column, job->width);
            const size_t at = row * job->width + column;
            const __m512 correlation = load_operand(job->correlation, at, type, lanes);
            const __m512 sign = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(lanes, job->signs + at)));
            sum = _mm512_fmadd_ps(correlation, sign, sum);
            _mm512_mask_storeu_ps(job->dweight + at, lanes, _mm512_mul_ps(correlation, factor));
        }
        step_sum += _mm512_reduce_add_ps(sum);
    }
    job->step_sums[index] = step_sum;
}

static void weight_gradient_block(void *context, size_t worker, size_t index) {
    (void)worker;
    const weight_job *job = context;
    if (job->type == BB_BFLOAT16)
        weight_gradient_rows(job, index, BB_BFLOAT16);
    else
        weight_gradient_rows(job, index, BB_FLOAT32);
}

void bb_training_weight_gradient(bb_pool *pool, const void *correlation, int type, const int8_t *signs, const float *scale, size_t num_scales,
                                 float step, size_t rows, size_t width, float *dweight, float *dstep) {
    weight_job job = {.blocks = split_rows(rows, width), .width = width, .num_scales = num_scales, .correlation = correlation, .type = type,
                      .signs = signs, .scale = scale, .step = step, .dweight = dweight};
    job.step_sums = malloc(job.blocks.count * sizeof *job.step_sums);
    if (!job.step_sums) abort();
    bb_pool_run(pool, job.blocks.count, weight_gradient_block, &job);
    *dstep = add_up(job.step_sums, job.blocks.count);
    free(job.step_sums);
}

BB_TARGET_END

int bb_training_supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

int bb_training_abi_version(void) { return BB_TRAINING_ABI_VERSION; }

bb_pool *bb_training_pool(size_t num_threads) { return bb_pool_create(num_threads); }

void bb_training_pool_free(bb_pool *pool) { bb_pool_free(pool); }
#endif
