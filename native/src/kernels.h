/* What an instruction set provides: a table of functions on packed bits and float rows.
 *
 * Panels. The right operand of a product (weights, keys, values) is stored in panels of 32 columns: for each 32-bit
 * word of the common dimension, the 32 columns' words lie side by side. Counting then keeps columns in vector
 * lanes and broadcasts words of the left operand. Columns beyond the matrix are zero words.
 */
#ifndef BB_KERNELS_H
#define BB_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BB_PANEL 32

/* The left operand of a product: rows of 32-bit words, `stride` words apart. */
typedef struct {
    const uint32_t *words;
    size_t stride;
    size_t num_rows;
} bb_rows;

/* counts[row][column] = popcount(row XOR column), or popcount(row AND column) when `mask` is set,
 * over `num_words` words; counts has num_rows * 32 entries. */
typedef void bb_count(bb_rows rows, size_t num_words, const void *panel, bool mask, uint32_t *counts);

/* Thresholds of one column: the output bit is (count - offset) <= width in unsigned 32-bit arithmetic,
 * which expresses every interval of counts and every complement of one. */
typedef struct {
    const uint32_t *offset;
    const uint32_t *width;
} bb_thresholds;

/* Layer normalisation of a row, and the bits that follow from it.
 * bits[s][i] = [out[i] + shift[s][i] < 0]. Arrays are padded with zeros to a multiple of 16 entries. */
typedef struct {
    const float *weight;
    const float *bias;
    double eps;
    size_t width;
    size_t num_shifts;
    const float *shift[3];
} bb_norm;

/* One query row's attention over `num_keys` keys of one head. */
typedef struct {
    const uint32_t *counts;     /* of query XOR key: key k at counts[(k / 32) * panel_stride + k % 32] */
    size_t panel_stride;
    size_t num_keys;
    int32_t head_size;
    float score_scale;          /* a_q a_k */
    float inverse_root;         /* 1 / sqrt(head_size) */
    float half_step;            /* a_p / 2 */
    const float *score_residual; /* E[query], or NULL */
    const float *value_residual; /* r_v, or NULL; padded like the keys to a multiple of 16 */
} bb_attention;

typedef struct {
    const char *name;
    size_t rows_per_block;      /* rows that one pass over a layer's weights should serve */
    /* Bytes of a weight panel of `num_words` words, and its making from 32 rows of canonical words. */
    size_t (*weight_panel_bytes)(size_t num_words);
    void (*pack_weight_panel)(const uint32_t *rows, size_t stride, size_t num_rows, size_t num_words, void *panel);
    bb_count *count_weights;
    bb_count *count;            /* the same on plain panels, which attention builds on the fly */
    /* bits[row * stride] = 32 thresholded counts. */
    void (*threshold)(const uint32_t *counts, size_t num_rows, bb_thresholds limits, uint32_t *bits, size_t stride);
    /* out[row * stride + c] += float(bases[row] - 2 counts[row][c]) * scale[c] + bias[c], for 32 columns;
     * = instead of += when `accumulate` is false. */
    void (*scale_add)(const uint32_t *counts, size_t num_rows, const int32_t *bases, const float *scale, const float *bias,
                      bool accumulate, float *out, size_t stride);
    /* In place on `row`; bits[s] receives the bits of shift s. */
    void (*normalize)(const bb_norm *norm, float *row, uint32_t *const *bits);
    /* out[i] = sum(row * weights[i]) + bias[i]; weights are `stride` floats apart and padded with zeros. */
    void (*dot)(const float *row, size_t width, const float *weights, size_t stride, const float *bias, size_t num_outputs, float *out);
    /* out = +-scale by the bits, plus type plus position, over `width` floats. */
    void (*embed)(const uint32_t *bits, float scale, const float *type, const float *position, size_t width, float *out);
    /* Writes the bits of softmax(scores) > a_p / 2 and returns the sum of r_v over them; `scores` is scratch. */
    float (*attend)(const bb_attention *attention, float *scores, uint32_t *bits);
    /* One head's context bits: [(ones - 2 count) * scale + residual + shift < 0] for 32 channels. */
    uint32_t (*context)(const uint32_t *counts, int32_t ones, float scale, float residual, const float *shift);
} bb_kernels;

extern const bb_kernels bb_portable_kernels;
#if defined(__x86_64__)
extern const bb_kernels bb_avx2_kernels, bb_avx512_kernels, bb_amx_kernels;
#elif defined(__aarch64__)
extern const bb_kernels bb_neon_kernels;
#endif

#endif
