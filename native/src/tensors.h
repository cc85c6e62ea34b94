/* Looking up named tensors and checking them; the first that does not fit is remembered as the failure. */
#ifndef BB_TENSORS_H
#define BB_TENSORS_H

#include <stdbool.h>

#include "bitbert.h"

typedef struct {
    const bitbert_tensor *tensors; /* sorted by name */
    size_t count;
    size_t num_stacked; /* layers whose tensors lie in one, as in a file; 0: each layer's has its own name */
    size_t num_found;
    bool failed;
} bb_tensors;

typedef enum { BB_ANY_VALUE, BB_ABOVE_ZERO } bb_values;

/* `count` finite floats of the tensor whose name the format makes; NULL after any failure. */
const float *bb_float_tensor(bb_tensors *tensors, size_t count, bb_values values, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Packed rows of `num_bits` bits, zeros in the padding; NULL after any failure. */
const uint32_t *bb_bit_tensor(bb_tensors *tensors, size_t num_rows, size_t num_bits, const char *format, ...) __attribute__((format(printf, 4, 5)));

#endif
