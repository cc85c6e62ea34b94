/* From a checkpoint's tensors to a model that runs. */
#define _POSIX_C_SOURCE 200809L
#include "model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "dispatch.h"
#include "error.h"
#include "fold.h"
#include "pairs.h"
#include "panels.h"
#include "tensors.h"

/* Everything that building needs; after a failure the builders do nothing, so that only the end is checked. */
typedef struct {
    bitbert_model *model;
    bb_tensors tensors;
    bool borrow; /* the caller keeps the tensors for as long as the model lives */
} builder;

void *bb_model_allocate(bitbert_model *model, size_t num_bytes) {
    if (model->num_blocks == model->block_capacity) {
        size_t capacity = model->block_capacity ? 2 * model->block_capacity : 256;
        void **blocks = realloc(model->blocks, capacity * sizeof *blocks);
        if (!blocks) return NULL;
        model->blocks = blocks;
        model->block_capacity = capacity;
    }
    const size_t size = bb_round_up(num_bytes ? num_bytes : 1, 64);
    void *block = NULL;
    if (posix_memalign(&block, 64, size)) return NULL;
    model->blocks[model->num_blocks++] = block;
    return memset(block, 0, size);
}

static void *allocate(builder *b, size_t count, size_t size) {
    if (b->tensors.failed) return NULL;
    void *block = count > SIZE_MAX / 2 / size ? NULL : bb_model_allocate(b->model, count * size);
    if (!block) {
        b->tensors.failed = true;
        bb_fail("no memory for %zu values of the model; close other programs or use a smaller model", count);
    }
    return block;
}

/* A table of 32-bit values as it lies, or a copy of it where the caller's may vanish. */
static const void *keep(builder *b, const void *table, size_t count) {
    if (b->borrow || !table) return table;
    void *copy = allocate(b, count, sizeof(uint32_t));
    return copy ? memcpy(copy, table, count * sizeof(uint32_t)) : NULL;
}

/* Copies rows of `width` floats to rows of `stride`, with zeros between. */
static float *copy_rows(builder *b, const float *source, size_t num_rows, size_t width, size_t stride) {
    float *rows = allocate(b, num_rows * stride + BB_PANEL, sizeof(float));
    if (!rows || !source) return NULL;
    for (size_t row = 0; row < num_rows; row++) memcpy(rows + row * stride, source + row * width, width * sizeof(float));
    return rows;
}

static const float *floats(builder *b, size_t count, const char *prefix, const char *part) {
    return bb_float_tensor(&b->tensors, count, BB_ANY_VALUE, "%s.%s", prefix, part);
}

static const float *scales(builder *b, size_t count, const char *prefix, const char *part) {
    return bb_float_tensor(&b->tensors, count, BB_ABOVE_ZERO, "%s.%s", prefix, part);
}

static float *copy_floats(builder *b, size_t count, size_t padded, const char *prefix, const char *part) {
    return copy_rows(b, floats(b, count, prefix, part), 1, count, padded);
}

static float step(builder *b, const char *prefix, const char *part) {
    const float *value = scales(b, 1, prefix, part);
    return value ? *value : 1;
}

static bb_affine affine(builder *b, const char *prefix) {
    const size_t width = (size_t)b->model->config.hidden_size, stride = b->model->hidden_stride;
    return (bb_affine){.weight = copy_floats(b, width, stride, prefix, "weight"), .bias = copy_floats(b, width, stride, prefix, "bias")};
}

static bb_linear linear(builder *b, const char *prefix, int32_t num_outputs, int32_t num_inputs, bool mask) {
    bb_linear made = {.num_inputs = (size_t)num_inputs, .num_outputs = (size_t)num_outputs, .mask = mask};
    made.num_words = bb_row_words(made.num_inputs);
    made.num_panels = bb_num_panels(made.num_outputs);
    const uint32_t *bits = bb_bit_tensor(&b->tensors, made.num_outputs, made.num_inputs, "%s.weight_bits", prefix);
    made.panels = allocate(b, made.num_panels * BB_PANEL * made.num_words, sizeof(uint32_t));
    const size_t padded = made.num_panels * BB_PANEL;
    const size_t num_scales = b->model->config.channel_scale ? made.num_outputs : 1;
    const float *scale = scales(b, num_scales, prefix, "weight_scale");
    const float input_step = step(b, prefix, "input_binarizer.alpha");
    made.half_step = input_step / 2;
    made.limit = copy_floats(b, made.num_inputs, bb_round_up(made.num_inputs, 64), prefix, "shift");
    made.bias = copy_floats(b, made.num_outputs, padded, prefix, "bias");
    made.scale = allocate(b, padded, sizeof(float));
    if (b->tensors.failed) return made;
    for (size_t input = 0; input < made.num_inputs; input++) made.limit[input] = -made.limit[input];
    for (size_t output = 0; output < made.num_outputs; output++) made.scale[output] = scale[num_scales == 1 ? 0 : output] * input_step;
    bb_pack_panels(bits, made.num_outputs, made.num_words, made.panels);
    return made;
}

/* Makes the outputs of `layer` bits: those of the signs, or those that `next` takes after the activation. */
static void fold(builder *b, bb_linear *layer, bb_activation activation, const bb_linear *next) {
    const size_t padded = layer->num_panels * BB_PANEL;
    layer->offset = allocate(b, padded, sizeof(uint32_t));
    layer->width = allocate(b, padded, sizeof(uint32_t));
    if (b->tensors.failed) return;
    bb_channel channel = {.base = (int32_t)layer->num_inputs, .activation = activation};
    if (next) {
        channel.mask = next->mask;
        channel.half_step = next->half_step;
    }
    for (size_t output = 0; output < padded; output++) {
        layer->offset[output] = UINT32_MAX; /* columns of padding: no count reaches this, the bit is 0 */
        if (output >= layer->num_outputs) continue;
        channel.scale = layer->scale[output];
        channel.bias = layer->bias[output];
        channel.shift = next ? -next->limit[output] : 0;
        bb_fold_channel(&channel, &layer->offset[output], &layer->width[output]);
    }
}

static void estimator(builder *b, bb_layer *layer, const char *prefix) {
    static const char *const names[] = {"query_residual", "key_residual", "query_binary", "key_binary", "value_residual"};
    const size_t sets = b->model->num_estimator_sets, num_factors = b->model->num_factors;
    const size_t width = (size_t)b->model->config.hidden_size, stride = b->model->hidden_stride;
    for (size_t part = 0; part < 5; part++) {
        const size_t num_rows = part == 4 ? sets : num_factors;
        const float *weight = bb_float_tensor(&b->tensors, num_rows * width, BB_ANY_VALUE, "%s.estimator.%s.weight", prefix, names[part]);
        const float *bias = bb_float_tensor(&b->tensors, num_rows, BB_ANY_VALUE, "%s.estimator.%s.bias", prefix, names[part]);
        if (part == 0) { /* only now is the rank known to be that of the file */
            layer->estimator_weight = allocate(b, (4 * num_factors + sets) * stride, sizeof(float));
            layer->estimator_bias = allocate(b, 4 * num_factors + sets, sizeof(float));
        }
        if (b->tensors.failed) return;
        memcpy(layer->estimator_bias + part * num_factors, bias, num_rows * sizeof(float));
        for (size_t row = 0; row < num_rows; row++)
            memcpy(layer->estimator_weight + (part * num_factors + row) * stride, weight + row * width, width * sizeof(float));
    }
}

/* The table of attention's weights, unless they span more than floats hold. */
static bb_weights *weights(builder *b, float query_key_step) {
    const double size = (double)b->model->head_size, slope = 2 * (double)query_key_step / sqrt(size);
    bb_weights *made = allocate(b, 1, sizeof *made);
    if (!made || size >= 512 || slope * size > (double)BB_TABLE_SPAN) return NULL;
    for (int i = 0; i < 32; i++) made->low[i] = (float)exp(-slope * i);
    for (int i = 0; i < 16 && 32 * i <= size; i++) made->high[i] = (float)exp(-slope * 32 * i) * BB_WEIGHT_UNIT;
    return made;
}

static void build_layer(builder *b, size_t index) {
    const bitbert_config *config = &b->model->config;
    const int32_t hidden = config->hidden_size, inner = config->intermediate_size;
    bb_layer *layer = &b->model->layers[index];
    char prefix[64], name[128];
    snprintf(prefix, sizeof prefix, "bitbert.layers.%zu", index);
#define NAMED(part) (snprintf(name, sizeof name, "%s." part, prefix), name)
    layer->query = linear(b, NAMED("attention.query"), hidden, hidden, false);
    layer->key = linear(b, NAMED("attention.key"), hidden, hidden, false);
    layer->value = linear(b, NAMED("attention.value"), hidden, hidden, false);
    layer->attention_output = linear(b, NAMED("attention_output"), hidden, hidden, false);
    layer->intermediate = linear(b, NAMED("intermediate"), inner, hidden, false);
    layer->output = linear(b, NAMED("output"), hidden, inner, config->ffn_input == BITBERT_UNSIGNED);
    layer->attention_norm = affine(b, NAMED("attention_norm"));
    layer->output_norm = affine(b, NAMED("output_norm"));
    const float value_step = step(b, NAMED("attention"), "value_binarizer.alpha");
    const float query_step = step(b, NAMED("attention"), "query_binarizer.alpha");
    layer->query_key_step = query_step * step(b, NAMED("attention"), "key_binarizer.alpha");
    layer->probability_step = step(b, NAMED("attention"), "probability_binarizer.alpha");
    layer->probability_value_step = layer->probability_step * value_step;
    layer->weights = weights(b, layer->query_key_step);
    if (config->residual_rank) estimator(b, layer, NAMED("attention"));
#undef NAMED
    fold(b, &layer->query, BB_IDENTITY, NULL);
    fold(b, &layer->key, BB_IDENTITY, NULL);
    fold(b, &layer->value, BB_IDENTITY, NULL);
    fold(b, &layer->intermediate, config->hidden_act == BITBERT_RELU ? BB_RELU : BB_GELU, &layer->output);
}

static void build(builder *b) {
    bitbert_model *model = b->model;
    const bitbert_config *config = &model->config;
    const size_t width = (size_t)config->hidden_size, stride = model->hidden_stride, vocabulary = (size_t)config->vocab_size;
    const char *embeddings = "bitbert.embeddings";
    const uint32_t *bits = bb_bit_tensor(&b->tensors, vocabulary, width, "%s.word_embeddings.weight_bits", embeddings);
    model->word_bits = keep(b, bits, vocabulary * model->hidden_words);
    model->word_scale = keep(b, scales(b, vocabulary, embeddings, "word_embeddings.weight_scale"), vocabulary);
    const size_t num_types = (size_t)config->type_vocab_size, num_positions = (size_t)config->max_position_embeddings;
    model->type_rows = copy_rows(b, floats(b, num_types * width, embeddings, "token_type_embeddings.weight"), num_types, width, stride);
    const float *positions = floats(b, num_positions * width, embeddings, "position_embeddings.weight");
    const bool padded = width == stride; /* as they lie, rows have the stride that the kernels want */
    model->position_rows = padded ? keep(b, positions, num_positions * width) : copy_rows(b, positions, num_positions, width, stride);
    model->embedding_norm = affine(b, "bitbert.embeddings.LayerNorm");
    model->layers = allocate(b, (size_t)config->num_hidden_layers, sizeof(bb_layer));
    for (size_t index = 0; index < (size_t)config->num_hidden_layers && !b->tensors.failed; index++) build_layer(b, index);
    model->pooler = linear(b, "bitbert.pooler.dense", config->hidden_size, config->hidden_size, false);
    if (config->pooler == BITBERT_POOLER_RESIDUAL_NORM) model->pooler_norm = affine(b, "bitbert.pooler.LayerNorm");
    if (config->head == BITBERT_HEAD_NONE) return;
    const char *head = config->head == BITBERT_HEAD_NSP ? "nsp_head" : "classifier";
    const size_t num_outputs = (size_t)config->num_outputs, num_rows = num_outputs * (config->head == BITBERT_HEAD_PAIRS ? BB_PAIR_PARTS : 1);
    model->head_weight = copy_rows(b, floats(b, num_rows * width, head, "weight"), num_rows, width, stride);
    model->head_bias = copy_floats(b, num_outputs, num_outputs, head, "bias");
}

static int check_config(const bitbert_config *config) {
    const struct { const char *name; int32_t value, lowest, highest; } checks[] = {
        {"vocab_size", config->vocab_size, 1, 1 << 28},
        {"hidden_size", config->hidden_size, 1, 1 << 20},
        {"num_hidden_layers", config->num_hidden_layers, 1, 1 << 12},
        {"num_attention_heads", config->num_attention_heads, 1, 1 << 20},
        {"intermediate_size", config->intermediate_size, 1, 1 << 22},
        {"max_position_embeddings", config->max_position_embeddings, 1, 1 << 20},
        {"type_vocab_size", config->type_vocab_size, config->head == BITBERT_HEAD_PAIRS ? 2 : 1, 1 << 20},
        {"residual_rank", config->residual_rank, 0, 1 << 12},
        {"attention", config->attention, BITBERT_SOFTMAX, BITBERT_BI_STRICT},
        {"residual_estimators", config->residual_estimators, BITBERT_SHARED, BITBERT_PER_HEAD},
        {"hidden_act", config->hidden_act, BITBERT_GELU, BITBERT_RELU},
        {"ffn_input", config->ffn_input, BITBERT_SIGNED, BITBERT_UNSIGNED},
        {"pooler", config->pooler, BITBERT_POOLER_PLAIN, BITBERT_POOLER_RESIDUAL_NORM},
        {"head", config->head, BITBERT_HEAD_NONE, BITBERT_HEAD_PAIRS},
        {"num_outputs", config->num_outputs, config->head != BITBERT_HEAD_NONE, 1 << 20},
        {"channel_scale", config->channel_scale, 0, 1},
    };
    for (size_t index = 0; index < sizeof checks / sizeof *checks; index++)
        if (checks[index].value < checks[index].lowest || checks[index].value > checks[index].highest)
            return bb_fail("%s is %d, wanted %d to %d", checks[index].name, checks[index].value, checks[index].lowest, checks[index].highest);
    if (config->hidden_size % config->num_attention_heads)
        return bb_fail("hidden_size %d is not a multiple of num_attention_heads %d", config->hidden_size, config->num_attention_heads);
    if (config->residual_rank && config->attention != BITBERT_SOFTMAX)
        return bb_fail("residual_rank is %d with Bi-Attention, wanted 0", config->residual_rank);
    if (!(config->layer_norm_eps >= 0 && config->layer_norm_eps < 1))
        return bb_fail("layer_norm_eps is %g, wanted a number in [0, 1)", config->layer_norm_eps);
    return 0;
}

static int compare_names(const void *a, const void *b) {
    return strcmp(((const bitbert_tensor *)a)->name, ((const bitbert_tensor *)b)->name);
}

bitbert_model *bb_create(const bitbert_config *config, const bitbert_tensor *tensors, size_t num_tensors, const char *isa, bool from_file) {
    if (check_config(config)) return NULL;
    const bb_kernels *kernels = bb_find_kernels(isa);
    if (!kernels) return NULL;
    bitbert_model *model = calloc(1, sizeof *model);
    bitbert_tensor *sorted = malloc((num_tensors ? num_tensors : 1) * sizeof *sorted);
    if (!model || !sorted) {
        free(model);
        free(sorted);
        bb_fail("no memory for a model; close other programs");
        return NULL;
    }
    memcpy(sorted, tensors, num_tensors * sizeof *sorted);
    qsort(sorted, num_tensors, sizeof *sorted, compare_names);
    pthread_mutex_init(&model->turn, NULL);
    model->config = *config;
    model->kernels = kernels;
    model->num_estimator_sets = config->residual_estimators == BITBERT_PER_HEAD ? (size_t)config->num_attention_heads : 1;
    model->num_factors = model->num_estimator_sets * (size_t)config->residual_rank;
    model->head_size = (size_t)(config->hidden_size / config->num_attention_heads);
    model->hidden_stride = bb_round_up((size_t)config->hidden_size, 64);
    model->hidden_words = bb_row_words((size_t)config->hidden_size);
    model->inner_words = bb_row_words((size_t)config->intermediate_size);
    builder b = {.model = model, .tensors = {.tensors = sorted, .count = num_tensors}, .borrow = !from_file};
    if (from_file) b.tensors.num_stacked = (size_t)config->num_hidden_layers;
    build(&b);
    if (!b.tensors.failed && b.tensors.num_found != num_tensors) {
        b.tensors.failed = true;
        bb_fail("there are %zu tensors, wanted %zu; the weights do not fit the config", num_tensors, b.tensors.num_found);
    }
    model->pool = b.tensors.failed ? NULL : bb_pool_create(1);
    free(sorted);
    if (!model->pool) {
        bitbert_close(model);
        return NULL;
    }
    return model;
}

bitbert_model *bitbert_create(const bitbert_config *config, const bitbert_tensor *tensors, size_t num_tensors, const char *isa) {
    return bb_create(config, tensors, num_tensors, isa, false);
}

void bitbert_close(bitbert_model *model) {
    if (!model) return;
    bb_pool_free(model->pool);
    bb_scratch_free(model->scratch);
    for (size_t index = 0; index < model->num_blocks; index++) free(model->blocks[index]);
    free(model->blocks);
    pthread_mutex_destroy(&model->turn);
    free(model);
}

const bitbert_config *bitbert_get_config(const bitbert_model *model) { return &model->config; }

const char *bitbert_get_isa(const bitbert_model *model) { return model->kernels->name; }

int bitbert_set_threads(bitbert_model *model, int num_threads) {
    if (num_threads < 1 || num_threads > 256) return bb_fail("number of threads is %d, wanted 1 to 256", num_threads);
    bb_pool *pool = bb_pool_create((size_t)num_threads);
    if (!pool) return bb_fail("%d threads could not be started; use fewer", num_threads);
    pthread_mutex_lock(&model->turn);
    bb_pool_free(model->pool);
    bb_scratch_free(model->scratch);
    model->pool = pool;
    model->scratch = NULL;
    pthread_mutex_unlock(&model->turn);
    return 0;
}
