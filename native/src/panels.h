/* Panels: how the right operand of a product lies in memory; kernels.h says why. */
#ifndef BB_PANELS_H
#define BB_PANELS_H

#include "kernels.h"

static inline size_t bb_num_panels(size_t num_columns) { return (num_columns + BB_PANEL - 1) / BB_PANEL; }

/* The words of panel `index` of a matrix whose columns have `num_words` words. */
static inline const uint32_t *bb_panel(const uint32_t *panels, size_t num_words, size_t index) { return panels + index * num_words * BB_PANEL; }

/* Lays `num_rows` rows of canonical words out as the columns of panels, which hold zeros so far. */
static inline void bb_pack_panels(const uint32_t *rows, size_t num_rows, size_t num_words, uint32_t *panels) {
    for (size_t row = 0; row < num_rows; row++) {
        uint32_t *column = panels + row / BB_PANEL * num_words * BB_PANEL + row % BB_PANEL;
        for (size_t word = 0; word < num_words; word++) column[word * BB_PANEL] = rows[row * num_words + word];
    }
}

#endif
