/* Self-attention on bits.
 *
 *   scores    (a_q a_k (d - 2 popcount(q XOR k)) + E) / sqrt(d)
 *   attended  softmax(scores) > a_p / 2, a bit a key; exp(score) is a table's entry for the popcount times a factor that
 *             only depends on E, so that exponentials are taken once for all heads
 *             or, Bi-Attention: 2 popcount(q XOR k) <= d; strict: < d. Steps are above 0 and do not enter
 *   context   a_p a_v (popcount(p) - 2 popcount(p AND v)) + a_p sum_{p_j = 1} r_v[j], of which only the sign is kept
 *
 * The panels are those of the linear layers: keys are the columns of the first product, channels of the second.
 */
#include "attention.h"

#include <math.h>
#include <string.h>

#include "bits.h"

static size_t head_words(const bitbert_model *model) { return (model->head_size + 31) / 32; }

static uint32_t *sequence_panels(const bitbert_model *model, uint32_t *panels, const bb_sequence *sequence) {
    return panels + sequence->first_group * (size_t)model->config.num_attention_heads * head_words(model) * BB_PANEL;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

void bb_pack_keys(const bitbert_model *model, const bb_sequence *sequence, size_t group) {
    const bb_scratch *scratch = model->scratch;
    const size_t words = head_words(model), num_groups = sequence->num_groups, heads = (size_t)model->config.num_attention_heads;
    const size_t first = sequence->first_row + group * BB_PANEL, num_keys = smaller(BB_PANEL, sequence->num_rows - group * BB_PANEL);
    uint32_t *keys = sequence_panels(model, scratch->key_panels, sequence), *values = sequence_panels(model, scratch->value_panels, sequence);
    for (size_t head = 0; head < heads; head++)
        for (size_t word = 0; word < words; word++) {
            const size_t offset = head * model->head_size + word * 32, count = smaller(32, model->head_size - word * 32);
            uint32_t *key = keys + ((head * num_groups + group) * words + word) * BB_PANEL;
            uint32_t *value = values + ((head * words + word) * num_groups + group) * BB_PANEL;
            for (size_t k = 0; k < BB_PANEL; k++) {
                const bool inside = k < num_keys;
                key[k] = inside ? bb_get_bits(scratch->key_bits + (first + k) * model->hidden_words, offset, count) : 0;
                value[k] = inside ? bb_get_bits(scratch->value_bits + (first + k) * model->hidden_words, offset, count) : 0;
            }
            bb_transpose_32(value);
        }

    const size_t factors = model->num_factors, sets = model->num_estimator_sets;
    if (!factors) return;
    const size_t padded_keys = scratch->num_groups * BB_PANEL, column = (sequence->first_group + group) * BB_PANEL;
    for (size_t k = 0; k < BB_PANEL; k++) {
        const float *estimates = scratch->estimates + (first + k) * (4 * factors + sets);
        float *out = scratch->key_estimates + column + k;
        for (size_t factor = 0; factor < factors; factor++) {
            out[factor * padded_keys] = k < num_keys ? estimates[factors + factor] : 0;
            out[(factors + factor) * padded_keys] = k < num_keys ? estimates[3 * factors + factor] : 0;
        }
        for (size_t set = 0; set < sets; set++)
            out[(2 * factors + set) * padded_keys] = k < num_keys ? estimates[4 * factors + set] : 0;
    }
}

/* Adds up one set's factors of E's row and lets the kernels multiply them out. */
static void estimate_scores(const bitbert_model *model, bb_worker *worker, const bb_sequence *sequence, size_t set, size_t row, float *out) {
    const bb_scratch *scratch = model->scratch;
    const size_t rank = (size_t)model->config.residual_rank, factors = model->num_factors, stride = scratch->num_groups * BB_PANEL;
    const float *query = scratch->estimates + row * (4 * factors + model->num_estimator_sets) + set * rank;
    const float *keys = scratch->key_estimates + set * rank * stride + sequence->first_group * BB_PANEL;
    for (size_t r = 0; r < rank; r++) worker->query_factors[r] = query[2 * factors + r] + query[r];
    const bb_estimate estimate = {.rank = rank, .stride = stride, .both = worker->query_factors, .residual = query,
                                  .key_residual = keys, .key_binary = keys + factors * stride};
    model->kernels->estimate(&estimate, sequence->num_rows, out);
}

/* Bi-Attention: bits[row][group] of the keys whose score is at least, or strictly above, 0. */
static void threshold_scores(const bitbert_model *model, const bb_worker *worker, size_t num_rows, size_t num_keys, size_t num_groups,
                             bb_attended *results) {
    const uint32_t size = (uint32_t)model->head_size;
    uint32_t offset[BB_PANEL] = {0}, width[BB_PANEL];
    for (size_t k = 0; k < BB_PANEL; k++) width[k] = (model->config.attention == BITBERT_BI_STRICT ? size - 1 : size) / 2;
    const bb_thresholds limits = {.offset = offset, .width = width};
    for (size_t group = 0; group < num_groups; group++)
        model->kernels->threshold(worker->counts + group * num_rows * BB_PANEL, num_rows, limits, worker->attended + group, num_groups);
    const size_t last = num_keys - (num_groups - 1) * BB_PANEL;
    for (size_t i = 0; i < num_rows; i++) {
        uint32_t *bits = worker->attended + i * num_groups;
        if (last < BB_PANEL) bits[num_groups - 1] &= (1u << last) - 1;
        results[i] = (bb_attended){0};
        for (size_t group = 0; group < num_groups; group++) results[i].ones += __builtin_popcount(bits[group]);
    }
}

/* One head of up to eight rows of a sequence. */
static void attend_head(const bitbert_model *model, const bb_layer *layer, bb_worker *worker, const bb_sequence *sequence, size_t row,
                        size_t num_rows, size_t head, uint32_t *context) {
    const bb_scratch *scratch = model->scratch;
    const bb_kernels *kernels = model->kernels;
    const size_t words = head_words(model), num_groups = sequence->num_groups, size = model->head_size;
    const bool estimated = model->num_factors > 0, softmax = model->config.attention == BITBERT_SOFTMAX;
    const size_t set = head < model->num_estimator_sets ? head : 0;
    const size_t padded_keys = sequence->num_groups * BB_PANEL;
    const float inverse_root = (float)(1 / sqrt((double)model->head_size));
    for (size_t i = 0; i < num_rows && softmax && head == set; i++) {
        float *score_residual = worker->score_residual + i * padded_keys; /* stays 0 without estimators */
        if (estimated) estimate_scores(model, worker, sequence, set, row + i, score_residual);
        worker->spans[i] = model->kernels->factors(score_residual, sequence->num_rows, inverse_root, worker->factors + i * padded_keys);
    }

    for (size_t i = 0; i < num_rows; i++)
        for (size_t word = 0; word < words; word++)
            worker->head_queries[i * words + word] =
                bb_get_bits(scratch->query_bits + (row + i) * model->hidden_words, head * size + word * 32, smaller(32, size - word * 32));
    const bb_rows queries = {.words = worker->head_queries, .stride = words, .num_rows = num_rows};
    const uint32_t *keys = sequence_panels(model, scratch->key_panels, sequence) + head * num_groups * words * BB_PANEL;
    const size_t panel_stride = num_rows * BB_PANEL;
    for (size_t group = 0; group < num_groups; group++)
        kernels->count(queries, words, keys + group * words * BB_PANEL, false, worker->counts + group * panel_stride);

    bb_attended results[BB_QUERY_TILE];
    const size_t value_row = (2 * model->num_factors + set) * scratch->num_groups * BB_PANEL + sequence->first_group * BB_PANEL;
    bb_attention attention = {
        .panel_stride = panel_stride,
        .num_keys = sequence->num_rows,
        .head_size = (int32_t)size,
        .score_scale = layer->query_key_step,
        .inverse_root = inverse_root,
        .step = layer->probability_step,
        .half_step = layer->probability_step / 2,
        .value_residual = estimated ? scratch->key_estimates + value_row : NULL,
    };
    if (!softmax) threshold_scores(model, worker, num_rows, sequence->num_rows, num_groups, results);
    for (size_t i = 0; softmax && i < num_rows; i++) {
        attention.counts = worker->counts + i * BB_PANEL;
        attention.weights = worker->spans[i] <= BB_FACTOR_SPAN ? layer->weights : NULL;
        attention.factors = worker->factors + i * padded_keys;
        attention.score_residual = estimated ? worker->score_residual + i * padded_keys : NULL;
        results[i] = kernels->attend(&attention, worker->scores, worker->attended + i * num_groups);
    }

    const bb_rows attended = {.words = worker->attended, .stride = num_groups, .num_rows = num_rows};
    const uint32_t *values = sequence_panels(model, scratch->value_panels, sequence) + head * words * num_groups * BB_PANEL;
    for (size_t word = 0; word < words; word++) {
        const size_t channel = head * size + word * 32;
        kernels->count(attended, num_groups, values + word * num_groups * BB_PANEL, true, worker->counts);
        uint32_t bits[BB_QUERY_TILE];
        kernels->context(worker->counts, num_rows, results, layer->probability_value_step, layer->attention_output.limit + channel, bits);
        for (size_t i = 0; i < num_rows; i++)
            bb_put_bits(context + i * model->hidden_words, channel, smaller(32, size - word * 32), bits[i]);
    }
}

void bb_attend(const bitbert_model *model, const bb_layer *layer, bb_worker *worker, size_t first, size_t count) {
    const bb_scratch *scratch = model->scratch;
    memset(worker->context, 0, count * model->hidden_words * sizeof(uint32_t));
    for (size_t done = 0; done < count;) {
        const size_t row = first + done;
        const bb_sequence *sequence = &scratch->sequences[scratch->sequence_of_row[row]];
        const size_t rest = smaller(count - done, sequence->first_row + sequence->num_rows - row);
        const size_t num_rows = smaller(BB_QUERY_TILE, rest);
        for (size_t head = 0; head < (size_t)model->config.num_attention_heads; head++)
            attend_head(model, layer, worker, sequence, row, num_rows, head, worker->context + done * model->hidden_words);
        done += num_rows;
    }
}
