/* Rows in blocks: what the threads share, and sums whose order does not depend on how many there are. */
#ifndef BB_TRAINING_ROWS_H
#define BB_TRAINING_ROWS_H

#include <stdlib.h>

#include "../src/pool.h"

/* Elements a block: enough to hide the waking of a thread, few enough to fill many. */
enum { BLOCK_ELEMENTS = 1 << 16 };

typedef struct {
    size_t rows, per_block, count;
} row_blocks;

static inline __attribute__((unused)) row_blocks split_rows(size_t rows, size_t width) {
    size_t per_block = width < BLOCK_ELEMENTS ? BLOCK_ELEMENTS / width : 1;
    return (row_blocks){rows, per_block, (rows + per_block - 1) / per_block};
}

static inline __attribute__((unused)) size_t block_end(row_blocks blocks, size_t index) {
    const size_t end = (index + 1) * blocks.per_block;
    return end < blocks.rows ? end : blocks.rows;
}

/* Gradients of steps are sums over all elements that nearly cancel: blocks keep theirs in double, row by row. */
static inline __attribute__((unused)) float add_up(const double *sums, size_t count) {
    double sum = 0;
    for (size_t block = 0; block < count; block++) sum += sums[block];
    return (float)sum;
}

#endif
