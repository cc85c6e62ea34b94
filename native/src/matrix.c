/* Products of packed matrices for callers that bring their own bits, and the processor's peak. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bitbert.h"
#include "bits.h"
#include "dispatch.h"
#include "error.h"
#include "multiply.h"
#include "panels.h"

struct bitbert_matrix {
    const bb_kernels *kernels;
    size_t num_rows, num_words, num_bits; /* words of 32 bits */
    uint32_t *panels;
};

bitbert_matrix *bitbert_matrix_create(const uint64_t *rows, size_t num_rows, size_t num_words, size_t num_bits, const char *isa) {
    const bb_kernels *kernels = bb_find_kernels(isa);
    if (!kernels) return NULL;
    if (num_bits > 64 * num_words) {
        bb_fail("rows of %zu bits in %zu words, wanted at most 64 bits a word", num_bits, num_words);
        return NULL;
    }
    bitbert_matrix *matrix = calloc(1, sizeof *matrix);
    const size_t num_bytes = bb_num_panels(num_rows) * BB_PANEL * 2 * num_words * sizeof(uint32_t) + 64;
    void *panels = NULL;
    if (!matrix || posix_memalign(&panels, 64, num_bytes)) {
        free(matrix);
        bb_fail("no memory for a matrix of %zu rows; use a smaller one", num_rows);
        return NULL;
    }
    *matrix = (bitbert_matrix){.kernels = kernels, .num_rows = num_rows, .num_words = 2 * num_words, .num_bits = num_bits,
                               .panels = memset(panels, 0, num_bytes)};
    bb_pack_panels((const uint32_t *)rows, num_rows, matrix->num_words, matrix->panels);
    return matrix;
}

void bitbert_matrix_free(bitbert_matrix *matrix) {
    if (!matrix) return;
    free(matrix->panels);
    free(matrix);
}

enum { BLOCK_ROWS = 128 };

/* Where the products of a block of rows go. */
typedef struct {
    const bitbert_matrix *matrix;
    bb_rows rows;
    bool mask;
    int32_t *out;
} products;

static void to_products(void *context, size_t panel, size_t first, size_t num_rows, const uint32_t *counts) {
    const products *p = context;
    const bitbert_matrix *matrix = p->matrix;
    const size_t column = panel * BB_PANEL, columns = matrix->num_rows - column < BB_PANEL ? matrix->num_rows - column : BB_PANEL;
    for (size_t row = 0; row < num_rows; row++) {
        const uint32_t *words = p->rows.words + (first + row) * p->rows.stride;
        const int32_t base = p->mask ? bb_count_ones(words, matrix->num_words) : (int32_t)matrix->num_bits;
        for (size_t i = 0; i < columns; i++)
            p->out[(first + row) * matrix->num_rows + column + i] = base - 2 * (int32_t)counts[row * BB_PANEL + i];
    }
}

int bitbert_matrix_multiply(const bitbert_matrix *matrix, const uint64_t *left, size_t num_left, int mask, int32_t *out) {
    const size_t block_rows = num_left < BLOCK_ROWS ? num_left : BLOCK_ROWS;
    const size_t count_bytes = bb_round_up(block_rows, 32) * BB_PANEL * sizeof(uint32_t);
    void *memory = NULL;
    if (posix_memalign(&memory, 64, count_bytes + bb_product_bytes(block_rows, matrix->num_words) + 64))
        return bb_fail("no memory for a product of %zu rows; use fewer", num_left);
    bb_product product = {.num_words = matrix->num_words, .panels = matrix->panels, .num_panels = bb_num_panels(matrix->num_rows),
                          .mask = mask != 0, .counts = memory, .bytes = (int8_t *)memory + count_bytes};
    products context = {.matrix = matrix, .mask = mask != 0, .out = out};
    for (size_t first = 0; first < num_left; first += BLOCK_ROWS) {
        const size_t rest = num_left - first;
        product.rows = (bb_rows){.words = (const uint32_t *)left + first * matrix->num_words, .stride = matrix->num_words,
                                 .num_rows = rest < BLOCK_ROWS ? rest : BLOCK_ROWS};
        context.rows = product.rows;
        context.out = out + first * matrix->num_rows;
        bb_multiply(matrix->kernels, &product, to_products, &context);
    }
    free(memory);
    return 0;
}

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

double bitbert_peak(const char *isa) {
    const bb_kernels *kernels = bb_find_kernels(isa);
    double best = 0;
    for (int repeat = 0; kernels && repeat < 20; repeat++) {
        const double start = now_s(), done = kernels->spin(20000), rate = done / (now_s() - start);
        if (rate > best) best = rate;
    }
    return best;
}
