/* How long the products of a forward pass take on their own. */
#define _POSIX_C_SOURCE 200809L
#include <time.h>

#include "bits.h"
#include "error.h"
#include "multiply.h"
#include "scratch.h"

static double now_s(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static void leave(void *context, size_t panel, size_t first_row, size_t num_rows, const uint32_t *counts) {
    (void)context, (void)panel, (void)first_row, (void)num_rows, (void)counts;
}

static void multiply_linear(const bitbert_model *model, const bb_linear *linear, const uint32_t *words, size_t stride, size_t num_rows) {
    const bb_worker *worker = &model->scratch->workers[0];
    const bb_product product = {.rows = {.words = words, .stride = stride, .num_rows = num_rows}, .num_words = linear->num_words,
                                .panels = linear->panels, .num_panels = linear->num_panels, .mask = linear->mask,
                                .counts = worker->counts, .bytes = worker->bytes};
    bb_multiply(model->kernels, &product, leave, NULL);
}

static void multiply_attention(const bitbert_model *model, size_t num_groups, size_t num_rows) {
    const bb_scratch *scratch = model->scratch;
    const bb_worker *worker = &scratch->workers[0];
    const size_t words = (model->head_size + 31) / 32, head_panels = num_groups * words * BB_PANEL;
    const bb_rows queries = {.words = worker->head_queries, .stride = words, .num_rows = num_rows};
    const bb_rows attended = {.words = worker->attended, .stride = num_groups, .num_rows = num_rows};
    for (size_t head = 0; head < (size_t)model->config.num_attention_heads; head++) {
        const uint32_t *keys = scratch->key_panels + head * head_panels, *values = scratch->value_panels + head * head_panels;
        for (size_t group = 0; group < num_groups; group++)
            model->kernels->count(queries, words, keys + group * words * BB_PANEL, false, worker->counts + group * num_rows * BB_PANEL);
        for (size_t word = 0; word < words; word++)
            model->kernels->count(attended, num_groups, values + word * num_groups * BB_PANEL, true, worker->counts);
    }
}

double bitbert_time_products(bitbert_model *model, size_t num_tokens) {
    const size_t num_groups = (num_tokens + BB_PANEL - 1) / BB_PANEL, block = BB_BLOCK_ROWS;
    if (!num_tokens || num_tokens > (size_t)model->config.max_position_embeddings) {
        bb_fail("sequence of %zu tokens, wanted 1 to %d", num_tokens, model->config.max_position_embeddings);
        return 0;
    }
    pthread_mutex_lock(&model->turn);
    double seconds = 0;
    if (!bb_scratch_prepare(model, num_tokens, num_groups, num_tokens, 1)) {
        const bb_worker *worker = &model->scratch->workers[0];
        const double start = now_s();
        for (size_t index = 0; index < (size_t)model->config.num_hidden_layers; index++) {
            const bb_layer *layer = &model->layers[index];
            const bb_linear *linears[] = {&layer->query, &layer->key, &layer->value, &layer->attention_output, &layer->intermediate};
            for (size_t first = 0; first < num_tokens; first += block) {
                const size_t rest = num_tokens - first, num_rows = rest < block ? rest : block;
                for (size_t row = 0; row < num_rows; row += BB_QUERY_TILE)
                    multiply_attention(model, num_groups, num_rows - row < BB_QUERY_TILE ? num_rows - row : BB_QUERY_TILE);
                for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
                    multiply_linear(model, linears[i], worker->context, model->hidden_words, num_rows);
                multiply_linear(model, &layer->output, worker->inner, model->inner_words, num_rows);
            }
        }
        seconds = now_s() - start;
    }
    pthread_mutex_unlock(&model->turn);
    return seconds;
}
