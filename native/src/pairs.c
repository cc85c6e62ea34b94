#include "pairs.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

/* Tokens of a pair's first text: those in front of the first one of another type; 0 where there is no second text. */
static size_t first_length(const int32_t *types, size_t length) {
    size_t first = 0;
    while (types && first < length && !types[first]) first++;
    return first < length ? first : 0;
}

int bb_split_pairs(const bitbert_batch *pairs, bb_texts *texts) {
    size_t num_tokens = pairs->num_sequences; /* each second text gets the [CLS] of the first */
    for (size_t pair = 0; pair < pairs->num_sequences; pair++) num_tokens += (size_t)pairs->lengths[pair];
    *texts = (bb_texts){.ids = malloc(num_tokens * sizeof(int32_t)), .lengths = malloc(2 * pairs->num_sequences * sizeof(int32_t))};
    texts->batch = (bitbert_batch){.input_ids = texts->ids, .lengths = texts->lengths, .num_sequences = 2 * pairs->num_sequences};
    if (!texts->ids || !texts->lengths) {
        bb_free_texts(texts);
        return bb_fail("no memory for a batch of %zu tokens; use smaller batches", num_tokens);
    }
    const int32_t *from = pairs->input_ids, *types = pairs->token_type_ids;
    int32_t *to = texts->ids;
    for (size_t pair = 0; pair < pairs->num_sequences; pair++) {
        const size_t length = (size_t)pairs->lengths[pair], first = first_length(types, length);
        if (!first) {
            bb_free_texts(texts);
            return bb_fail("a sequence without a second text, wanted token types 0 and then 1: this checkpoint compares two texts");
        }
        texts->lengths[2 * pair] = (int32_t)first;
        texts->lengths[2 * pair + 1] = (int32_t)(length - first + 1);
        memcpy(to, from, first * sizeof *to);
        to[first] = from[0];
        memcpy(to + first + 1, from + first, (length - first) * sizeof *to);
        to += length + 1;
        from += length;
        types += length;
    }
    return 0;
}

void bb_free_texts(bb_texts *texts) {
    free(texts->ids);
    free(texts->lengths);
}

/* m / sqrt(mean(m^2) + eps) of m, the mean state of a text. */
static void vector_of(const bitbert_model *model, const bb_sequence *text, float *vector) {
    const size_t width = (size_t)model->config.hidden_size, stride = model->hidden_stride;
    const float *states = model->scratch->hidden + text->first_row * stride;
    memset(vector, 0, width * sizeof *vector);
    for (size_t row = 0; row < text->num_rows; row++)
        for (size_t i = 0; i < width; i++) vector[i] += states[row * stride + i];
    double squares = 0;
    for (size_t i = 0; i < width; i++) {
        vector[i] /= (float)text->num_rows;
        squares += (double)vector[i] * (double)vector[i];
    }
    const float scale = (float)(1 / sqrt(squares / (double)width + model->config.layer_norm_eps));
    for (size_t i = 0; i < width; i++) vector[i] *= scale;
}

void bb_answer_pairs(const bitbert_model *model, size_t num_pairs, float *logits) {
    const bb_scratch *scratch = model->scratch;
    const size_t width = (size_t)model->config.hidden_size, stride = model->hidden_stride, num_outputs = (size_t)model->config.num_outputs;
    float *first = scratch->pair, *second = first + stride, *difference = second + stride, *product = difference + stride;
    for (size_t pair = 0; pair < num_pairs; pair++) {
        vector_of(model, &scratch->sequences[2 * pair], first);
        vector_of(model, &scratch->sequences[2 * pair + 1], second);
        for (size_t i = 0; i < width; i++) {
            difference[i] = fabsf(first[i] - second[i]);
            product[i] = first[i] * second[i];
        }
        model->kernels->dot(first, BB_PAIR_PARTS * stride, model->head_weight, BB_PAIR_PARTS * stride, model->head_bias, num_outputs,
                            logits + pair * num_outputs);
    }
}
