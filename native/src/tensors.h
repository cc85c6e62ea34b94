/* Looking up named tensors; the first one that is missing or of the wrong size is remembered as the failure. */
#ifndef BB_TENSORS_H
#define BB_TENSORS_H

#include <stdbool.h>

#include "bitbert.h"

typedef struct {
    const bitbert_tensor *tensors; /* sorted by name */
    size_t count;
    bool failed;
} bb_tensors;

/* The bytes of the tensor whose name the format makes, if it has exactly `num_bytes`; NULL after any failure. */
const void *bb_tensor(bb_tensors *tensors, size_t num_bytes, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
