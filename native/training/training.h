/* The element-wise work of a 1-bit training step, fused: one pass over memory where separate operations take ten.
 *
 * Products stay with the framework; these functions turn floats into codes before a product and gradients into
 * what the next product wants after it. All arrays are dense and row-major. Formulas: bitbert/model/binarize.py,
 * bitbert/model/attention.py and bitbert/model/layers.py, whose torch code computes the same.
 *
 * A call shares its rows among the threads of `pool`. Sums that cross rows are folded in the order of the blocks,
 * not of the threads: any number of threads gives the same bits.
 */
#ifndef BITBERT_TRAINING_H
#define BITBERT_TRAINING_H

#include <stddef.h>
#include <stdint.h>

#define BB_TRAINING_API __attribute__((visibility("default")))
#define BB_TRAINING_ABI_VERSION 6

/* How an operand of a product is stored. */
enum { BB_INT8, BB_BFLOAT16, BB_FLOAT32 };
/* What a value t becomes, and the window outside of which its gradient is 0:
 *   BB_SIGNED       1 where t >= 0, else -1              |t| <= step
 *   BB_UNSIGNED     1 where t > step / 2, else 0         0 <= t <= step
 *   BB_LEVELS       t / step rounded, halves to even     lowest <= t / step <= highest, to which codes are cut as well
 *   BB_BOOL         1 where t >= 0, else 0               |t| < step
 *   BB_STRICT_BOOL  1 where t > 0, else 0                |t| < step */
enum { BB_SIGNED, BB_UNSIGNED, BB_LEVELS, BB_BOOL, BB_STRICT_BOOL };

/* What comes before that: f(x) is x, x * Phi(x), or max(x, 0). */
enum { BB_IDENTITY, BB_GELU, BB_RELU };

typedef struct bb_pool bb_pool;

BB_TRAINING_API int bb_training_abi_version(void);

/* Whether this processor has the instructions; nothing else may be called where it has not. */
BB_TRAINING_API int bb_training_supported(void);

BB_TRAINING_API bb_pool *bb_training_pool(size_t num_threads);
BB_TRAINING_API void bb_training_pool_free(bb_pool *pool);

/* A matrix (rows, width) of activations that is binarized, or quantized; t = f(x) + shift. */
typedef struct {
    const float *x;
    const float *shift; /* (width), or NULL */
    float step;
    int kind;              /* BB_SIGNED, BB_UNSIGNED or BB_LEVELS */
    float lowest, highest; /* codes of BB_LEVELS, within int8 */
    int activation;        /* f */
    size_t rows, width;
} bb_activations;

/* codes (rows, width) of type `codes_type`, window (rows, width) of 0 or 1. */
BB_TRAINING_API void bb_training_binarize(bb_pool *pool, const bb_activations *activations, int codes_type, void *codes, uint8_t *window);

/* dt = gradient * factor * window, dshift = sum of dt over rows, and dx = dt * f'(x); for
 * codes that are not BB_SIGNED also dstep = -sum(dt * t / step). gradient is BB_BFLOAT16 or BB_FLOAT32; dshift and dstep may be NULL. */
BB_TRAINING_API void bb_training_binarize_backward(bb_pool *pool, const bb_activations *activations, const void *gradient, int gradient_type,
                                                   float factor, const uint8_t *window, float *dx, float *dshift, float *dstep);

/* signs = 1 where weight >= threshold, else -1. */
BB_TRAINING_API void bb_training_signs(bb_pool *pool, const float *weight, float threshold, size_t count, int8_t *signs);

/* values (rows, width): int32 products in, float products * scale + bias out, in place. num_scales is 1 or width. */
BB_TRAINING_API void bb_training_scale_bias(bb_pool *pool, void *values, const float *scale, size_t num_scales, const float *bias, size_t rows,
                                            size_t width);

/* Whether this process may use AMX tiles of bytes, for bb_training_product. */
BB_TRAINING_API int bb_training_tiles(void);

/* out (rows, width) = (codes (rows, depth) @ signs (width, depth)^T) * scale + bias: a product and bb_training_scale_bias in
 * one. rows and width are multiples of 32, depth is one of 64. num_scales is 1 or width. */
BB_TRAINING_API void bb_training_product(bb_pool *pool, const int8_t *codes, const int8_t *signs, const float *scale, size_t num_scales,
                                         const float *bias, size_t rows, size_t depth, size_t width, float *out);

/* out = gradient * scale as BB_BFLOAT16 or BB_FLOAT32; dbias (width) = sum of gradient over rows. */
BB_TRAINING_API void bb_training_upstream(bb_pool *pool, const float *gradient, const float *scale, size_t num_scales, size_t rows, size_t width,
                                          int out_type, void *out, float *dbias);

/* out (width, rows) = in (rows, width) transposed, both bfloat16; rows is a multiple of 32, width one of 16. */
BB_TRAINING_API void bb_training_transpose(bb_pool *pool, const uint16_t *in, size_t rows, size_t width, uint16_t *out);

/* From the correlation (rows, width) of the scaled gradient with the codes, of type `type`: dweight = correlation * step /
 * scale of its row, and dstep = sum(correlation * signs). num_scales is 1 or rows. */
BB_TRAINING_API void bb_training_weight_gradient(bb_pool *pool, const void *correlation, int type, const int8_t *signs, const float *scale,
                                                 size_t num_scales, float step, size_t rows, size_t width, float *dweight, float *dstep);

/* y = x * Phi(x) with the sign of the tail kept, and its derivative. */
BB_TRAINING_API void bb_training_gelu(bb_pool *pool, const float *x, size_t count, float *y);
BB_TRAINING_API void bb_training_gelu_backward(bb_pool *pool, const float *gradient, const float *x, size_t count, float *dx);

/* Dropout with one 16-bit random number an element: kept where random >= limit.
 * y = x * factor where kept, else 0; kept (count) of 0 or 1. */
BB_TRAINING_API void bb_training_dropout(bb_pool *pool, const float *x, const int16_t *random, int16_t limit, float factor, size_t count,
                                         float *y, uint8_t *kept);

/* sum of weights[row] * (a - b)^2 over (rows, width), and da = 2 * gradient * weights[row] * (a - b). */
BB_TRAINING_API void bb_training_squares(bb_pool *pool, const float *a, const float *b, const float *weights, size_t rows, size_t width,
                                         float *sum);
BB_TRAINING_API void bb_training_squares_backward(bb_pool *pool, float gradient, const float *a, const float *b, const float *weights,
                                                  size_t rows, size_t width, float *da);

/* Scores (batch, heads, queries, keys) on their way to attended bits, or codes:
 * t = (score * factor + residual) * inverse_root + bias, of BB_UNSIGNED and BB_LEVELS (from 0) then the softmax over keys;
 * attended = the code of t, 0 where it is not kept. */
typedef struct {
    const void *scores; /* of type `type` */
    int type;
    float factor, inverse_root, step;
    int kind;              /* all but BB_SIGNED */
    float highest;         /* code of BB_LEVELS */
    const float *residual; /* (batch, num_sets, queries, keys), num_sets 1 or heads; or NULL */
    size_t num_sets;
    const float *bias;     /* (batch, keys), or NULL */
    const int16_t *random; /* of the scores' shape, or NULL */
    int16_t limit;
    size_t batch, heads, queries, keys;
} bb_attention_scores;

/* t in float, attended of type `type`, and gate: kept and inside of the window. All of the scores' shape. */
BB_TRAINING_API void bb_training_attend(bb_pool *pool, const bb_attention_scores *scores, float *t, void *attended, uint8_t *gate);

/* From the gradient of `attended` (of type `type`): that of the scores before `factor` and of the residual;
 * dstep is the part that does not arise where the caller multiplies by the step. */
BB_TRAINING_API void bb_training_attend_backward(bb_pool *pool, const bb_attention_scores *scores, const void *gradient, const float *t,
                                                 const uint8_t *gate, void *dscores, float *dresidual, float *dstep);

#endif
