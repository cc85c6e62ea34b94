/* Choice of kernels; see dispatch.c. */
#ifndef BB_DISPATCH_H
#define BB_DISPATCH_H

#include "kernels.h"

/* The kernels named `name`; for NULL or "" those that BITBERT_ISA names, else the fastest of this processor.
 * NULL and a sentence in bitbert_error() when the processor does not run them. */
const bb_kernels *bb_find_kernels(const char *name);

#endif
