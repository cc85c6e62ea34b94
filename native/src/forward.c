/* The forward pass: a batch of sequences laid end to end, layer by layer.
 *
 * A layer is two loops over independent pieces: laying out the keys (groups of 32), then everything else of a block
 * of rows up to the next layer's queries, keys and values. A row's arithmetic does not depend on which block or
 * thread it falls to, so any number of threads gives the same bits.
 */
#include <math.h>
#include <string.h>

#include "attention.h"
#include "bits.h"
#include "error.h"
#include "multiply.h"
#include "pairs.h"

typedef struct {
    bitbert_model *model;
    const bitbert_batch *batch;
    size_t num_rows;
    size_t block_rows; /* of the loops over rows: BB_BLOCK_ROWS, or less to give every thread some */
    size_t layer;
} run;

static void *row_of(void *rows, size_t row, size_t stride) { return (uint32_t *)rows + row * stride; }

/* Where the counts of a linear layer go. */
typedef struct {
    const bb_kernels *kernels;
    const bb_linear *linear;
    const int32_t *bases; /* (rows) */
    uint32_t *bits;
    float *floats;
    bool accumulate;
    size_t stride; /* of bits or floats */
} destination;

static void to_bits(void *context, size_t panel, size_t first, size_t num_rows, const uint32_t *counts) {
    const destination *d = context;
    const bb_thresholds limits = {.offset = d->linear->offset + panel * BB_PANEL, .width = d->linear->width + panel * BB_PANEL};
    d->kernels->threshold(counts, num_rows, limits, d->bits + first * d->stride + panel, d->stride);
}

static void to_floats(void *context, size_t panel, size_t first, size_t num_rows, const uint32_t *counts) {
    const destination *d = context;
    const size_t column = panel * BB_PANEL;
    d->kernels->scale_add(counts, num_rows, d->bases + first, d->linear->scale + column, d->linear->bias + column, d->accumulate,
                          d->floats + first * d->stride + column, d->stride);
}

static bb_product product_of(const bb_linear *linear, bb_rows rows, const bb_worker *worker) {
    return (bb_product){.rows = rows, .num_words = linear->num_words, .panels = linear->panels, .num_panels = linear->num_panels,
                        .mask = linear->mask, .counts = worker->counts, .bytes = worker->bytes};
}

/* Linear layer whose outputs are bits. */
static void linear_bits(const bb_kernels *kernels, const bb_linear *linear, bb_rows rows, bb_worker *worker, uint32_t *out, size_t stride) {
    destination d = {.kernels = kernels, .linear = linear, .bits = out, .stride = stride};
    const bb_product product = product_of(linear, rows, worker);
    bb_multiply(kernels, &product, to_bits, &d);
}

/* Linear layer whose float outputs are added to, or stored in, `out`. */
static void linear_floats(const bb_kernels *kernels, const bb_linear *linear, bb_rows rows, bb_worker *worker, bool accumulate, float *out,
                          size_t stride) {
    for (size_t row = 0; row < rows.num_rows; row++)
        worker->bases[row] = linear->mask ? bb_count_ones(rows.words + row * rows.stride, linear->num_words) : (int32_t)linear->num_inputs;
    destination d = {.kernels = kernels, .linear = linear, .bases = worker->bases, .floats = out, .accumulate = accumulate, .stride = stride};
    const bb_product product = product_of(linear, rows, worker);
    bb_multiply(kernels, &product, to_floats, &d);
}

/* LayerNorm of a block in place; worker->bits[s] receives the input bits of the linear layers with these limits. */
static void normalize(const bitbert_model *model, bb_worker *worker, const bb_affine *affine, size_t num_limits, float *const *limits,
                      float *rows, size_t num_rows) {
    bb_norm norm = {.weight = affine->weight, .bias = affine->bias, .eps = model->config.layer_norm_eps,
                    .width = (size_t)model->config.hidden_size, .num_limits = num_limits};
    for (size_t s = 0; s < num_limits; s++) norm.limit[s] = limits[s];
    for (size_t row = 0; row < num_rows; row++) {
        uint32_t *bits[3];
        for (size_t s = 0; s < num_limits; s++) bits[s] = row_of(worker->bits[s], row, model->hidden_words);
        model->kernels->normalize(&norm, rows + row * model->hidden_stride, bits);
    }
}

/* What follows the hidden states of a block: the next layer's queries, keys, values and estimates, or the pooler's bits. */
static void normalize_for_next(const bitbert_model *model, bb_worker *worker, const bb_affine *affine, size_t next, size_t first, size_t count) {
    const bb_scratch *scratch = model->scratch;
    const bb_kernels *kernels = model->kernels;
    float *hidden = scratch->hidden + first * model->hidden_stride;
    const size_t words = model->hidden_words;
    if (next == (size_t)model->config.num_hidden_layers) {
        normalize(model, worker, affine, 1, (float *const[]){model->pooler.limit}, hidden, count);
        for (size_t row = 0; row < count; row++) {
            const size_t sequence = scratch->sequence_of_row[first + row];
            if (scratch->sequences[sequence].first_row != first + row) continue;
            memcpy(scratch->pooler_bits + sequence * words, worker->bits[0] + row * words, words * sizeof(uint32_t));
        }
        return;
    }
    const bb_layer *layer = &model->layers[next];
    normalize(model, worker, affine, 3, (float *const[]){layer->query.limit, layer->key.limit, layer->value.limit}, hidden, count);
    const bb_linear *linears[] = {&layer->query, &layer->key, &layer->value};
    uint32_t *outputs[] = {scratch->query_bits, scratch->key_bits, scratch->value_bits};
    for (size_t s = 0; s < 3; s++) {
        const bb_rows rows = {.words = worker->bits[s], .stride = words, .num_rows = count};
        linear_bits(kernels, linears[s], rows, worker, outputs[s] + first * words, words);
    }
    const size_t num_estimates = 4 * model->num_factors + model->num_estimator_sets;
    for (size_t row = 0; layer->estimator_weight && row < count; row++)
        kernels->dot(hidden + row * model->hidden_stride, (size_t)model->config.hidden_size, layer->estimator_weight, model->hidden_stride,
                     layer->estimator_bias, num_estimates, scratch->estimates + (first + row) * num_estimates);
}

static size_t block_rows(const run *r, size_t block, size_t *first) {
    const size_t size = r->block_rows, rest = r->num_rows - block * size;
    *first = block * size;
    return rest < size ? rest : size;
}

static void embed_block(void *context, size_t worker_index, size_t block) {
    const run *r = context;
    const bitbert_model *model = r->model;
    const size_t width = (size_t)model->config.hidden_size, stride = model->hidden_stride;
    size_t first, count = block_rows(r, block, &first);
    for (size_t row = first; row < first + count; row++) {
        const size_t id = (size_t)r->batch->input_ids[row], type = r->batch->token_type_ids ? (size_t)r->batch->token_type_ids[row] : 0;
        const size_t position = row - model->scratch->sequences[model->scratch->sequence_of_row[row]].first_row;
        model->kernels->embed(model->word_bits + id * model->hidden_words, model->word_scale[id], model->type_rows + type * stride,
                              model->position_rows + position * stride, width, model->scratch->hidden + row * stride);
    }
    normalize_for_next(model, &model->scratch->workers[worker_index], &model->embedding_norm, 0, first, count);
}

static void pack_group(void *context, size_t worker_index, size_t index) {
    const run *r = context;
    const bb_scratch *scratch = r->model->scratch;
    (void)worker_index;
    size_t low = 0, high = r->batch->num_sequences; /* the sequence whose groups hold `index` */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (scratch->sequences[middle].first_group <= index)
            low = middle;
        else
            high = middle;
    }
    bb_pack_keys(r->model, &scratch->sequences[low], index - scratch->sequences[low].first_group);
}

static void layer_block(void *context, size_t worker_index, size_t block) {
    const run *r = context;
    const bitbert_model *model = r->model;
    const bb_kernels *kernels = model->kernels;
    const bb_layer *layer = &model->layers[r->layer];
    bb_worker *worker = &model->scratch->workers[worker_index];
    size_t first, count = block_rows(r, block, &first);
    float *hidden = model->scratch->hidden + first * model->hidden_stride;

    bb_attend(model, layer, worker, first, count);
    bb_rows rows = {.words = worker->context, .stride = model->hidden_words, .num_rows = count};
    linear_floats(kernels, &layer->attention_output, rows, worker, true, hidden, model->hidden_stride);
    normalize(model, worker, &layer->attention_norm, 1, (float *const[]){layer->intermediate.limit}, hidden, count);
    rows.words = worker->bits[0];
    linear_bits(kernels, &layer->intermediate, rows, worker, worker->inner, model->inner_words);
    rows = (bb_rows){.words = worker->inner, .stride = model->inner_words, .num_rows = count};
    linear_floats(kernels, &layer->output, rows, worker, true, hidden, model->hidden_stride);
    normalize_for_next(model, worker, &layer->output_norm, r->layer + 1, first, count);
}

/* pooled = tanh(linear), or tanh(LayerNorm(linear) + first token); logits = head * pooled + bias. */
static void pool(const run *r, const bitbert_outputs *outputs) {
    const bitbert_model *model = r->model;
    const bb_scratch *scratch = model->scratch;
    const size_t width = (size_t)model->config.hidden_size, stride = model->hidden_stride, block = BB_BLOCK_ROWS;
    bb_worker *worker = &scratch->workers[0];
    for (size_t first = 0; first < r->batch->num_sequences; first += block) {
        const size_t rest = r->batch->num_sequences - first, count = rest < block ? rest : block;
        const bb_rows rows = {.words = scratch->pooler_bits + first * model->hidden_words, .stride = model->hidden_words, .num_rows = count};
        float *pooled = scratch->pooled + first * stride;
        linear_floats(model->kernels, &model->pooler, rows, worker, false, pooled, stride);
        if (model->config.pooler == BITBERT_POOLER_RESIDUAL_NORM) normalize(model, worker, &model->pooler_norm, 0, NULL, pooled, count);
    }
    for (size_t sequence = 0; sequence < r->batch->num_sequences; sequence++) {
        float *pooled = scratch->pooled + sequence * stride;
        const float *token = scratch->hidden + scratch->sequences[sequence].first_row * stride;
        const bool residual = model->config.pooler == BITBERT_POOLER_RESIDUAL_NORM;
        for (size_t i = 0; i < width; i++) pooled[i] = tanhf(residual ? pooled[i] + token[i] : pooled[i]);
        if (outputs->pooled) memcpy(outputs->pooled + sequence * width, pooled, width * sizeof(float));
        if (outputs->logits)
            model->kernels->dot(pooled, width, model->head_weight, stride, model->head_bias, (size_t)model->config.num_outputs,
                                outputs->logits + sequence * (size_t)model->config.num_outputs);
    }
}

static void copy_states(const run *r, float *out) {
    const size_t width = (size_t)r->model->config.hidden_size;
    for (size_t row = 0; out && row < r->num_rows; row++)
        memcpy(out + row * width, r->model->scratch->hidden + row * r->model->hidden_stride, width * sizeof(float));
}

static int check_batch(const bitbert_model *model, const bitbert_batch *batch, size_t *num_rows, size_t *num_groups, size_t *longest) {
    const bitbert_config *config = &model->config;
    *num_rows = *num_groups = *longest = 0;
    for (size_t sequence = 0; sequence < batch->num_sequences; sequence++) {
        const int32_t length = batch->lengths[sequence];
        if (length < 1 || length > config->max_position_embeddings)
            return bb_fail("sequence of %d tokens, wanted 1 to %d", length, config->max_position_embeddings);
        *num_rows += (size_t)length;
        *num_groups += ((size_t)length + BB_PANEL - 1) / BB_PANEL;
        if ((size_t)length > *longest) *longest = (size_t)length;
    }
    for (size_t row = 0; row < *num_rows; row++) {
        const int32_t id = batch->input_ids[row], type = batch->token_type_ids ? batch->token_type_ids[row] : 0;
        if (id < 0 || id >= config->vocab_size) return bb_fail("token id %d, wanted 0 to %d", id, config->vocab_size - 1);
        if (type < 0 || type >= config->type_vocab_size) return bb_fail("token type id %d, wanted 0 to %d", type, config->type_vocab_size - 1);
    }
    return 0;
}

static void lay_out(const run *r) {
    bb_scratch *scratch = r->model->scratch;
    size_t row = 0, group = 0;
    for (size_t index = 0; index < r->batch->num_sequences; index++) {
        const size_t length = (size_t)r->batch->lengths[index], num_groups = (length + BB_PANEL - 1) / BB_PANEL;
        scratch->sequences[index] = (bb_sequence){.first_row = row, .num_rows = length, .first_group = group, .num_groups = num_groups};
        for (size_t i = 0; i < length; i++) scratch->sequence_of_row[row + i] = index;
        row += length;
        group += num_groups;
    }
}

/* A run over sequences of their own; the model's turn is the caller's. */
static int encode(bitbert_model *model, const bitbert_batch *batch, const bitbert_outputs *outputs) {
    run r = {.model = model, .batch = batch};
    size_t num_groups, longest;
    if (check_batch(model, batch, &r.num_rows, &num_groups, &longest)) return -1;
    if (bb_scratch_prepare(model, r.num_rows, num_groups, longest, batch->num_sequences)) return -1;
    lay_out(&r);
    const size_t share = bb_round_up((r.num_rows + bb_pool_size(model->pool) - 1) / bb_pool_size(model->pool), BB_QUERY_TILE);
    r.block_rows = share < BB_BLOCK_ROWS ? share : BB_BLOCK_ROWS;
    const size_t num_layers = (size_t)model->config.num_hidden_layers;
    const size_t num_blocks = (r.num_rows + r.block_rows - 1) / r.block_rows, state_size = r.num_rows * (size_t)model->config.hidden_size;
    bb_pool_run(model->pool, num_blocks, embed_block, &r);
    copy_states(&r, outputs->states);
    for (r.layer = 0; r.layer < num_layers; r.layer++) {
        bb_pool_run(model->pool, num_groups, pack_group, &r);
        bb_pool_run(model->pool, num_blocks, layer_block, &r);
        copy_states(&r, outputs->states ? outputs->states + (r.layer + 1) * state_size : NULL);
    }
    copy_states(&r, outputs->last);
    if (outputs->pooled || outputs->logits) pool(&r, outputs);
    return 0;
}

/* Logits of pairs whose texts are encoded apart. */
static int compare(bitbert_model *model, const bitbert_batch *pairs, float *logits) {
    size_t num_rows, num_groups, longest;
    bb_texts texts;
    if (check_batch(model, pairs, &num_rows, &num_groups, &longest) || bb_split_pairs(pairs, &texts)) return -1;
    const int failure = encode(model, &texts.batch, &(bitbert_outputs){0});
    if (!failure) bb_answer_pairs(model, pairs->num_sequences, logits);
    bb_free_texts(&texts);
    return failure;
}

int bitbert_run(bitbert_model *model, const bitbert_batch *batch, const bitbert_outputs *outputs) {
    if (outputs->logits && model->config.head == BITBERT_HEAD_NONE)
        return bb_fail("this checkpoint has no head and gives no logits; ask for the pooled output or the last states");
    if (!batch->num_sequences) return 0;
    const bool compares = outputs->logits && model->config.head == BITBERT_HEAD_PAIRS;
    const bitbert_outputs of_sequences = {.states = outputs->states, .last = outputs->last, .pooled = outputs->pooled, .logits = compares ? NULL : outputs->logits};
    int failure = 0;
    pthread_mutex_lock(&model->turn);
    if (!compares || of_sequences.states || of_sequences.last || of_sequences.pooled) failure = encode(model, batch, &of_sequences);
    if (compares && !failure) failure = compare(model, batch, outputs->logits);
    pthread_mutex_unlock(&model->turn);
    return failure;
}
