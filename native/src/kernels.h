/* What an instruction set provides: a table of functions on packed bits and float rows.
 *
 * Panels. The right operand of a product (weights, keys, values) is stored in panels of 32 columns: for each 32-bit
 * word of the common dimension, the 32 columns' words lie side by side. Counting then keeps columns in vector
 * lanes and broadcasts words of the left operand. Columns beyond the matrix are zero words. See panels.h.
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
typedef void bb_count(bb_rows rows, size_t num_words, const uint32_t *panel, bool mask, uint32_t *counts);

/* Rows multiplied with panels one after the other, and memory to do it in. */
typedef struct {
    bb_rows rows;
    size_t num_words;
    const uint32_t *panels;
    size_t num_panels;
    bool mask;
    uint32_t *counts; /* room for the rows, rounded up to 32, times 32 */
    int8_t *bytes;    /* room for bb_product_bytes() */
} bb_product;

/* Receives the counts of rows [first_row, first_row + num_rows) with a panel, 32 a row. */
typedef void bb_consume(void *context, size_t panel, size_t first_row, size_t num_rows, const uint32_t *counts);

/* Rows as bytes: whole groups of 16, and a vector a row beside them. */
static inline size_t bb_product_bytes(size_t num_rows, size_t num_words) { return (num_rows + 15) / 16 * 16 * (num_words * 32 + 64); }

/* Thresholds of one column: the output bit is (count - offset) <= width in unsigned 32-bit arithmetic,
 * which expresses every interval of counts and every complement of one. */
typedef struct {
    const uint32_t *offset;
    const uint32_t *width;
} bb_thresholds;

/* Layer normalisation of a row, and the bits that follow from it: bits[s][i] = [out[i] < limit[s][i]].
 * Arrays and rows are padded with zeros to a multiple of 64 entries. */
typedef struct {
    const float *weight;
    const float *bias;
    double eps;
    size_t width;
    size_t num_limits;
    const float *limit[3];
} bb_norm;

/* Every weight exp(score) is a product: of a table's entry for the count, and of a factor exp(E / sqrt(d)) for the key.
 * The largest of either is 2^50, and the logarithms span at most what is said here. So nothing overflows, and the key with
 * the largest factor weighs at least 2^100 exp(-120): no weight that matters beside it is a denormal float. */
#define BB_WEIGHT_UNIT 0x1p50f
#define BB_TABLE_SPAN 120.0f
#define BB_FACTOR_SPAN 86.0f

/* exp(-2 a_q a_k count / sqrt(d)) is low[count % 32] * high[count / 32]. */
typedef struct {
    float low[32], high[16];
} bb_weights;

/* One query row's attention over `num_keys` keys of one head. */
typedef struct {
    const uint32_t *counts;     /* of query XOR key: key k at counts[(k / 32) * panel_stride + k % 32] */
    size_t panel_stride;
    size_t num_keys;
    int32_t head_size;
    float score_scale;          /* a_q a_k */
    float inverse_root;         /* 1 / sqrt(head_size) */
    float step, half_step;      /* a_p, a_p / 2 */
    const bb_weights *weights;  /* NULL where the table or the factors would span too much */
    const float *factors;       /* exp(E[query] / sqrt(d)) but for a constant; 0 for the absent keys of the last panel */
    const float *score_residual; /* E[query], or NULL */
    const float *value_residual; /* r_v, or NULL; padded like the keys to a multiple of 32 */
} bb_attention;

/* What a query attends to: how many keys, and a_p times the sum of their r_v. */
typedef struct {
    int32_t ones;
    float residual;
} bb_attended;

/* Factors of a row of E = sum over ranks of (q_m + q_p) k_p, plus the sum of q_p k_m; keys lie `stride` floats apart a rank. */
typedef struct {
    size_t rank, stride;
    const float *both, *residual;              /* of the query: q_m + q_p and q_p */
    const float *key_residual, *key_binary;    /* k_p and k_m */
} bb_estimate;

typedef struct {
    const char *name;
    bb_count *count;
    /* As count() for all panels of a product with rows of an even number of words, from `multiply_from` rows on. NULL
     * where there is nothing better than counting panel by panel. */
    void (*multiply)(const bb_product *product, bb_consume *consume, void *context);
    size_t multiply_from;
    /* xor + popcount + add, or tile products, on registers alone, `rounds` times; returns the multiply-accumulates done. */
    double (*spin)(size_t rounds);
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
    /* A row of E; `num_keys` is rounded up to whole vectors. */
    void (*estimate)(const bb_estimate *estimate, size_t num_keys, float *out);
    /* exp((E - largest E) / sqrt(d)) in units of BB_WEIGHT_UNIT, 0 for the absent keys of the last panel; returns how far
     * E / sqrt(d) spans. */
    float (*factors)(const float *score_residual, size_t num_keys, float inverse_root, float *out);
    /* Writes the bits of softmax(scores) > a_p / 2; `scores` is scratch. */
    bb_attended (*attend)(const bb_attention *attention, float *scores, uint32_t *bits);
    /* Context bits of 32 channels for each row: [(ones - 2 count) * scale + residual < limit]. */
    void (*context)(const uint32_t *counts, size_t num_rows, const bb_attended *attended, float scale, const float *limit, uint32_t *bits);
} bb_kernels;

extern const bb_kernels bb_portable_kernels;
#if defined(__x86_64__)
extern const bb_kernels bb_avx2_kernels, bb_avx512_kernels, bb_amx_kernels;
#elif defined(__aarch64__)
extern const bb_kernels bb_neon_kernels;
#endif

#endif
