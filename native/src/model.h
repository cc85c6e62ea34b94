/* A model in memory: weights in panels, thresholds folded, float rows padded.
 *
 * Float arrays over the hidden size are padded with zeros to `hidden_stride` and those over a linear layer's outputs
 * to whole panels, so that kernels need no scalar remainders.
 */
#ifndef BB_MODEL_H
#define BB_MODEL_H

#include <pthread.h>

#include "bitbert.h"
#include "kernels.h"
#include "pool.h"

typedef struct {
    size_t num_inputs, num_outputs;
    size_t num_words;   /* 32-bit words of an input row */
    size_t num_panels;
    uint32_t *panels;   /* the weights; see panels.h */
    bool mask;          /* inputs are {0, 1} instead of signs */
    float half_step;    /* of the input's binarizer: the threshold of {0, 1} inputs */
    float *limit;       /* (inputs): -shift; x + shift < 0 where x < limit, and that does not round */
    float *scale, *bias;
    uint32_t *offset, *width; /* thresholds of the outputs' bits, or NULL where the output stays float */
} bb_linear;

typedef struct {
    float *weight, *bias;
} bb_affine;

typedef struct {
    bb_linear query, key, value, attention_output, intermediate, output;
    bb_affine attention_norm, output_norm;
    float query_key_step, probability_step, probability_value_step;
    bb_weights *weights;     /* of attention; NULL where they would span too much */
    float *estimator_weight; /* (4 factors + sets, hidden_stride): q_p, k_p, q_m, k_m, then r_v; NULL without */
    float *estimator_bias;
} bb_layer;

/* Memory that runs reuse; grows on demand. See forward.c. */
typedef struct bb_scratch bb_scratch;

struct bitbert_model {
    bitbert_config config;
    const bb_kernels *kernels;
    bb_pool *pool;
    bb_scratch *scratch;
    pthread_mutex_t turn;   /* runs take turns: they share the scratch memory */
    size_t num_estimator_sets; /* 1, or one a head */
    size_t num_factors;        /* sets times rank */
    size_t head_size, hidden_stride, hidden_words, inner_words;
    const uint32_t *word_bits;
    const float *word_scale, *type_rows, *position_rows;
    bb_affine embedding_norm, pooler_norm;
    bb_layer *layers;
    bb_linear pooler;
    float *head_weight, *head_bias;
    void **blocks;          /* everything allocated, freed together */
    size_t num_blocks, block_capacity;
};

/* As bitbert_create(); tensors `from_file` hold all layers' and need not outlive the call. */
bitbert_model *bb_create(const bitbert_config *config, const bitbert_tensor *tensors, size_t num_tensors, const char *isa, bool from_file);

/* Zeroed and aligned to 64 bytes; freed with the model. NULL when memory is short. */
void *bb_model_allocate(bitbert_model *model, size_t num_bytes);

void bb_scratch_free(bb_scratch *scratch);

#endif
