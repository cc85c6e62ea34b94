/* Heads for two texts: each text of a pair is a sequence of its own, and the head sees what the two say. */
#ifndef BB_PAIRS_H
#define BB_PAIRS_H

#include "scratch.h"

/* What such a head sees of the texts' vectors u and v: u, v, |u - v| and u v, side by side. */
enum { BB_PAIR_PARTS = 4 };

/* The texts of a batch of pairs as a batch of their own, first and second in turns; bb_free_texts() frees it. */
typedef struct {
    bitbert_batch batch;
    int32_t *ids, *lengths;
} bb_texts;

/* -1 and a sentence where a sequence is no pair, or memory is short. The batch has been checked. */
int bb_split_pairs(const bitbert_batch *pairs, bb_texts *texts);
void bb_free_texts(bb_texts *texts);

/* Logits of the pairs, from the states that a run over their texts left in the scratch memory. */
void bb_answer_pairs(const bitbert_model *model, size_t num_pairs, float *logits);

#endif
