/* Products of packed matrices for callers that bring their own bits, and the processor's peak. */
#define _POSIX_C_SOURCE 200809L
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bitbert.h"
#include "bits.h"
#include "dispatch.h"
#include "error.h"

struct bitbert_matrix {
    const bb_kernels *kernels;
    size_t num_rows, num_words, num_bits, num_panels, panel_bytes; /* words of 32 bits */
    unsigned char *panels;
};

bitbert_matrix *bitbert_matrix_create(const uint64_t *rows, size_t num_rows, size_t num_words, size_t num_bits, const char *isa) {
    const bb_kernels *kernels = bb_find_kernels(isa);
    if (!kernels) return NULL;
    if (num_bits > 64 * num_words) {
        bb_fail("rows of %zu bits in %zu words, wanted at most 64 bits a word", num_bits, num_words);
        return NULL;
    }
    bitbert_matrix *matrix = calloc(1, sizeof *matrix);
    if (!matrix) goto no_memory;
    *matrix = (bitbert_matrix){.kernels = kernels, .num_rows = num_rows, .num_words = 2 * num_words, .num_bits = num_bits,
                               .num_panels = (num_rows + BB_PANEL - 1) / BB_PANEL, .panel_bytes = kernels->weight_panel_bytes(2 * num_words)};
    if (posix_memalign((void **)&matrix->panels, 64, bb_round_up(matrix->num_panels * matrix->panel_bytes, 64) + 64)) goto no_memory;
    const uint32_t *words = (const uint32_t *)rows;
    for (size_t panel = 0; panel < matrix->num_panels; panel++) {
        const size_t first = panel * BB_PANEL, rest = num_rows - first;
        kernels->pack_weight_panel(words + first * matrix->num_words, matrix->num_words, rest < BB_PANEL ? rest : BB_PANEL, matrix->num_words,
                                   matrix->panels + panel * matrix->panel_bytes);
    }
    return matrix;
no_memory:
    free(matrix);
    bb_fail("no memory for a matrix of %zu rows; use a smaller one", num_rows);
    return NULL;
}

void bitbert_matrix_free(bitbert_matrix *matrix) {
    if (!matrix) return;
    free(matrix->panels);
    free(matrix);
}

void bitbert_matrix_multiply(const bitbert_matrix *matrix, const uint64_t *left, size_t num_left, int mask, int32_t *out) {
    enum { BLOCK = 128 };
    uint32_t counts[BLOCK * BB_PANEL] __attribute__((aligned(64)));
    const uint32_t *words = (const uint32_t *)left;
    const size_t block = matrix->kernels->rows_per_block < BLOCK ? matrix->kernels->rows_per_block : BLOCK;
    for (size_t first = 0; first < num_left; first += block) {
        const size_t rest = num_left - first, num_rows = rest < block ? rest : block;
        const bb_rows rows = {.words = words + first * matrix->num_words, .stride = matrix->num_words, .num_rows = num_rows};
        for (size_t panel = 0; panel < matrix->num_panels; panel++) {
            matrix->kernels->count_weights(rows, matrix->num_words, matrix->panels + panel * matrix->panel_bytes, mask != 0, counts);
            const size_t column = panel * BB_PANEL, columns = matrix->num_rows - column < BB_PANEL ? matrix->num_rows - column : BB_PANEL;
            for (size_t row = 0; row < num_rows; row++) {
                const int32_t base = mask ? bb_count_ones(rows.words + row * rows.stride, matrix->num_words) : (int32_t)matrix->num_bits;
                for (size_t i = 0; i < columns; i++)
                    out[(first + row) * matrix->num_rows + column + i] = base - 2 * (int32_t)counts[row * BB_PANEL + i];
            }
        }
    }
}

int bitbert_products(const uint64_t *left, size_t num_left, const uint64_t *right, size_t num_right, size_t num_words, size_t num_bits,
                     int mask, const char *isa, int32_t *out) {
    bitbert_matrix *matrix = bitbert_matrix_create(right, num_right, num_words, num_bits, isa);
    if (!matrix) return -1;
    bitbert_matrix_multiply(matrix, left, num_left, mask, out);
    bitbert_matrix_free(matrix);
    return 0;
}
