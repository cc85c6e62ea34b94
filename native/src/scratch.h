/* Memory of a run: what all threads see, and what each thread has for itself. */
#ifndef BB_SCRATCH_H
#define BB_SCRATCH_H

#include "model.h"

/* Rows that one pass over a layer's weights serves at most: the weights do not stay in the second-level cache. */
#define BB_BLOCK_ROWS 128

/* Rows that attention handles together: a tile of the kernels. */
#define BB_QUERY_TILE 8

/* One sequence of the batch. Keys are padded to whole panels, so that each sequence starts on its own. */
typedef struct {
    size_t first_row, num_rows;
    size_t first_group, num_groups; /* of 32 keys */
} bb_sequence;

/* A thread's own. `rows` below is BB_BLOCK_ROWS, `keys` the longest sequence padded to panels. */
typedef struct {
    uint32_t *counts;         /* (rows, 32), or (keys / 32, tile, 32) in attention */
    int8_t *bytes;            /* of a product, where the kernels want them; see kernels.h */
    int32_t *bases;           /* (rows) */
    uint32_t *context;        /* (rows, hidden_words) */
    uint32_t *inner;          /* (rows, inner_words) */
    uint32_t *bits[3];        /* (rows, hidden_words): the hidden states, with the shifts of up to three linears */
    float *scores;            /* (keys) */
    float *score_residual;    /* (tile, keys): E of each query, or zeros */
    float *factors;           /* (tile, keys): what E contributes to the weights of attention */
    float spans[BB_QUERY_TILE]; /* of the logarithms of each query's factors */
    float *query_factors;     /* (rank) */
    uint32_t *attended;       /* (tile, keys / 32) */
    uint32_t *head_queries;   /* (tile, words of a head) */
} bb_worker;

struct bb_scratch {
    size_t num_rows, num_groups, longest, num_sequences; /* what the memory is enough for */
    size_t num_workers;
    bb_sequence *sequences;
    size_t *sequence_of_row;
    float *hidden;            /* (rows, hidden_stride) */
    uint32_t *query_bits, *key_bits, *value_bits; /* (rows, hidden_words) */
    uint32_t *key_panels;     /* of a sequence: (heads, groups, words of a head, 32) */
    uint32_t *value_panels;   /* of a sequence: (heads, words of a head, groups, 32) */
    float *estimates;         /* (rows, 4 factors + sets) */
    float *key_estimates;     /* (2 factors + sets, 32 * groups): k_p, k_m, r_v with the keys side by side */
    uint32_t *pooler_bits;    /* (sequences, hidden_words) */
    float *pooled;            /* (sequences, hidden_stride) */
    float *pair;              /* (BB_PAIR_PARTS, hidden_stride): what a head for pairs sees; see pairs.h */
    bb_worker *workers;
    void **blocks;
    size_t num_blocks;
};

/* Makes the model's scratch memory large enough; -1 and a sentence when memory is short. */
int bb_scratch_prepare(bitbert_model *model, size_t num_rows, size_t num_groups, size_t longest, size_t num_sequences);

#endif
