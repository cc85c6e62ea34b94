/* Self-attention on bits; see attention.c. */
#ifndef BB_ATTENTION_H
#define BB_ATTENTION_H

#include "scratch.h"

/* Lays 32 keys of a sequence out for the kernels: key and value panels, and the keys' estimates. */
void bb_pack_keys(const bitbert_model *model, const bb_sequence *sequence, size_t group);

/* The context bits (the input of attention_output) of rows [first, first + count), into worker->context. */
void bb_attend(const bitbert_model *model, const bb_layer *layer, bb_worker *worker, size_t first, size_t count);

#endif
