/* Products of many rows with many panels, on whatever the kernels multiply best. */
#ifndef BB_MULTIPLY_H
#define BB_MULTIPLY_H

#include "kernels.h"

/* Hands the counts of every panel to `consume`, in blocks of rows. */
void bb_multiply(const bb_kernels *kernels, const bb_product *product, bb_consume *consume, void *context);

#endif
