/* The parts around the products, written once on sixteen lanes and compiled once an instruction set.
 *
 * Included by each file of kernels after its lane operations; everything is static, and BB_ELEMENTWISE names the
 * functions for the table of kernels.
 */
#ifndef BB_ELEMENTWISE_H
#define BB_ELEMENTWISE_H

#include <math.h>

#include "kernels.h"
#include "lanes.h"

BB_INLINE float lanes_largest(bb_floats v) {
    v = lanes_max(v, BB_SHUFFLE(v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = lanes_max(v, BB_SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = lanes_max(v, BB_SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    return v[0] > v[1] ? v[0] : v[1];
}

/* exp of lanes that are at most 0, relative error below 2e-7; below -86 the result stays near 4e-38.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds x / ln 2 to the integer n and leaves n in the low
 * mantissa bits, from where it is shifted into the exponent of the polynomial's value.
 */
BB_INLINE bb_floats lanes_exp(bb_floats x) {
    const float round_to_integer = 12582912.0f;
    x = lanes_max(x, lanes_spread(-86.0f));
    bb_floats shifted = x * 1.44269504f + round_to_integer;
    bb_floats n = shifted - round_to_integer;
    bb_floats r = x - n * 0.693145752f;
    r = r - n * 1.42860677e-6f;
    bb_floats p = r * 1.38888889e-3f + 8.33333333e-3f;
    p = p * r + 4.16666667e-2f;
    p = p * r + 1.66666667e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    return (bb_floats)((bb_words)p + ((bb_words)shifted << 23));
}

static void threshold_counts(const uint32_t *counts, size_t num_rows, bb_thresholds limits, uint32_t *bits, size_t stride) {
    const bb_words offset[2] = {lanes_load_words(limits.offset), lanes_load_words(limits.offset + BB_LANES)};
    const bb_words width[2] = {lanes_load_words(limits.width), lanes_load_words(limits.width + BB_LANES)};
    for (size_t row = 0; row < num_rows; row++, counts += BB_PANEL) {
        uint32_t low = lanes_within(lanes_load_words(counts) - offset[0], width[0]);
        uint32_t high = lanes_within(lanes_load_words(counts + BB_LANES) - offset[1], width[1]);
        bits[row * stride] = low | high << BB_LANES;
    }
}

BB_INLINE bb_floats counts_to_products(const uint32_t *counts, int32_t base) {
    bb_ints products = base - 2 * (bb_ints)lanes_load_words(counts);
    return __builtin_convertvector(products, bb_floats);
}

static void scale_add_counts(const uint32_t *counts, size_t num_rows, const int32_t *bases, const float *scale, const float *bias,
                             bool accumulate, float *out, size_t stride) {
    for (size_t row = 0; row < num_rows; row++)
        for (size_t column = 0; column < BB_PANEL; column += BB_LANES) {
            float *address = out + row * stride + column;
            bb_floats value = counts_to_products(counts + row * BB_PANEL + column, bases[row]);
            value = value * lanes_load(scale + column) + lanes_load(bias + column);
            lanes_store(address, accumulate ? lanes_load(address) + value : value);
        }
}

/* Bits of the lanes from `first` that lie within `width` entries. */
BB_INLINE uint32_t lanes_inside(size_t first, size_t width) {
    if (first >= width) return 0;
    return width - first >= BB_LANES ? 0xffffu : (1u << (width - first)) - 1;
}

static void normalize_row(const bb_norm *norm, float *row, uint32_t *const *bits) {
    const size_t width = norm->width;
    /* Rows are padded with zeros to 64 floats: four sums side by side hide the latency of an addition. */
    bb_floats sums[4] = {{0}};
    for (size_t i = 0; i < width; i += 4 * BB_LANES)
        for (size_t j = 0; j < 4; j++) sums[j] += lanes_load(row + i + j * BB_LANES);
    const float mean = lanes_sum((sums[0] + sums[1]) + (sums[2] + sums[3])) / (float)width;

    bb_floats squares[4] = {{0}};
    for (size_t i = 0; i < width; i += 4 * BB_LANES)
        for (size_t j = 0; j < 4; j++) {
            const size_t at = i + j * BB_LANES;
            bb_floats centred = lanes_load(row + at) - mean;
            if (width - i < 4 * BB_LANES) centred = lanes_keep(centred, lanes_inside(at, width));
            squares[j] += centred * centred;
        }
    const double variance = (double)lanes_sum((squares[0] + squares[1]) + (squares[2] + squares[3])) / (double)width;
    const float inverse = (float)(1.0 / sqrt(variance + norm->eps));

    const size_t num_limits = norm->num_limits;
    for (size_t i = 0; i < width; i += BB_LANES) {
        /* Weight, bias and limit are 0 in the padding, so a padded row stays 0 there and its bits too. */
        bb_floats value = (lanes_load(row + i) - mean) * inverse * lanes_load(norm->weight + i) + lanes_load(norm->bias + i);
        lanes_store(row + i, value);
        for (size_t s = 0; s < num_limits; s++) {
            uint16_t negative = (uint16_t)lanes_less(value, lanes_load(norm->limit[s] + i));
            memcpy((char *)bits[s] + i / 8, &negative, sizeof negative);
        }
    }
}

static void dot_row(const float *row, size_t width, const float *weights, size_t stride, const float *bias, size_t num_outputs, float *out) {
    size_t output = 0;
    for (; output + 4 <= num_outputs; output += 4, weights += 4 * stride) {
        bb_floats sums[4] = {{0}};
        for (size_t i = 0; i < width; i += BB_LANES)
            for (size_t j = 0; j < 4; j++) sums[j] += lanes_load(row + i) * lanes_load(weights + j * stride + i);
        for (size_t j = 0; j < 4; j++) out[output + j] = lanes_sum(sums[j]) + bias[output + j];
    }
    for (; output < num_outputs; output++, weights += stride) {
        bb_floats sum = {0};
        for (size_t i = 0; i < width; i += BB_LANES) sum += lanes_load(row + i) * lanes_load(weights + i);
        out[output] = lanes_sum(sum) + bias[output];
    }
}

static void embed_row(const uint32_t *bits, float scale, const float *type, const float *position, size_t width, float *out) {
    const bb_words lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const bb_ints magnitude = (bb_ints)lanes_spread(scale);
    for (size_t i = 0; i < width; i += BB_LANES) {
        bb_words signs = (bits[i / 32] >> i % 32) >> lane << 31;
        bb_floats word = (bb_floats)(magnitude | (bb_ints)signs);
        if (width - i < BB_LANES) word = lanes_keep(word, lanes_inside(i, width));
        lanes_store(out + i, word + lanes_load(type + i) + lanes_load(position + i));
    }
}

static void estimate_row(const bb_estimate *estimate, size_t num_keys, float *out) {
    const size_t rank = estimate->rank;
    for (size_t k = 0; k < num_keys; k += BB_LANES) {
        bb_floats with_residual = {0}, with_binary = {0};
        for (size_t r = 0; r < rank; r++) {
            with_residual += estimate->both[r] * lanes_load(estimate->key_residual + r * estimate->stride + k);
            with_binary += estimate->residual[r] * lanes_load(estimate->key_binary + r * estimate->stride + k);
        }
        lanes_store(out + k, with_residual + with_binary);
    }
}

static float estimate_factors(const float *score_residual, size_t num_keys, float inverse_root, float *out) {
    bb_floats highest = lanes_spread(-INFINITY), lowest = lanes_spread(-INFINITY); /* of E and of -E */
    for (size_t k = 0; k < num_keys; k += BB_LANES) {
        bb_floats scaled = lanes_load(score_residual + k) * inverse_root;
        lanes_store(out + k, scaled);
        if (num_keys - k < BB_LANES) {
            for (size_t lane = num_keys - k; lane < BB_LANES; lane++) out[k + lane] = out[k];
            scaled = lanes_load(out + k);
        }
        highest = lanes_max(highest, scaled);
        lowest = lanes_max(lowest, -scaled);
    }
    const float top = lanes_largest(highest);
    for (size_t k = 0; k < num_keys; k += BB_PANEL)
        for (size_t j = k; j < k + BB_PANEL; j += BB_LANES) {
            bb_floats factor = lanes_exp(lanes_load(out + j) - top) * BB_WEIGHT_UNIT;
            lanes_store(out + j, lanes_keep(factor, lanes_inside(j, num_keys)));
        }
    return top + lanes_largest(lowest);
}

/* Writes the weights of softmax but for a constant factor, as products of table and factor; returns their sum. */
static float weigh_by_table(const bb_attention *attention, float *weights) {
    const bb_table table = lanes_table(attention->weights->low, attention->weights->high);
    bb_floats sums[2] = {{0}};
    const uint32_t *counts = attention->counts;
    for (size_t k = 0; k < attention->num_keys; k += BB_PANEL, counts += attention->panel_stride)
        for (size_t j = 0; j < 2; j++) {
            bb_floats weight = lanes_look_up(&table, lanes_load_words(counts + j * BB_LANES));
            weight *= lanes_load(attention->factors + k + j * BB_LANES);
            lanes_store(weights + k + j * BB_LANES, weight);
            sums[j] += weight;
        }
    return lanes_sum(sums[0] + sums[1]);
}

/* The same by exponentials of scores, whatever they span. */
static float weigh_by_scores(const bb_attention *attention, float *scores) {
    const size_t num_keys = attention->num_keys;
    bb_floats largest = lanes_spread(-INFINITY);
    for (size_t k = 0; k < num_keys; k += BB_LANES) {
        const uint32_t *counts = attention->counts + k / BB_PANEL * attention->panel_stride + k % BB_PANEL;
        bb_floats score = counts_to_products(counts, attention->head_size) * attention->score_scale;
        if (attention->score_residual) score += lanes_load(attention->score_residual + k);
        score *= attention->inverse_root;
        lanes_store(scores + k, score);
        if (num_keys - k < BB_LANES) {
            for (size_t lane = num_keys - k; lane < BB_LANES; lane++) scores[k + lane] = -INFINITY;
            score = lanes_load(scores + k);
        }
        largest = lanes_max(largest, score);
    }
    const float top = lanes_largest(largest);
    bb_floats sum = {0};
    for (size_t k = 0; k < num_keys; k += BB_PANEL)
        for (size_t j = k; j < k + BB_PANEL; j += BB_LANES) {
            bb_floats weight = lanes_keep(lanes_exp(lanes_load(scores + j) - top), lanes_inside(j, num_keys));
            lanes_store(scores + j, weight);
            sum += weight;
        }
    return lanes_sum(sum);
}

static bb_attended attend_row(const bb_attention *attention, float *weights, uint32_t *bits) {
    const float sum = attention->weights ? weigh_by_table(attention, weights) : weigh_by_scores(attention, weights);
    /* p > a_p / 2 with p = weight / sum. */
    const bb_floats limit = lanes_spread(attention->half_step * sum);
    bb_floats residuals[2] = {{0}};
    bb_attended attended = {.ones = 0};
    for (size_t k = 0; k < attention->num_keys; k += BB_PANEL) {
        const uint32_t low = lanes_less(limit, lanes_load(weights + k)), high = lanes_less(limit, lanes_load(weights + k + BB_LANES));
        const uint32_t keys = low | high << BB_LANES;
        bits[k / BB_PANEL] = keys;
        attended.ones += __builtin_popcount(keys);
        if (!attention->value_residual) continue;
        residuals[0] += lanes_keep(lanes_load(attention->value_residual + k), low);
        residuals[1] += lanes_keep(lanes_load(attention->value_residual + k + BB_LANES), high);
    }
    if (attention->value_residual) attended.residual = lanes_sum(residuals[0] + residuals[1]) * attention->step;
    return attended;
}

static void context_rows(const uint32_t *counts, size_t num_rows, const bb_attended *attended, float scale, const float *limit, uint32_t *bits) {
    const bb_floats low_limit = lanes_load(limit), high_limit = lanes_load(limit + BB_LANES);
    for (size_t row = 0; row < num_rows; row++, counts += BB_PANEL) {
        bb_floats low = counts_to_products(counts, attended[row].ones) * scale + attended[row].residual;
        bb_floats high = counts_to_products(counts + BB_LANES, attended[row].ones) * scale + attended[row].residual;
        bits[row] = lanes_less(low, low_limit) | lanes_less(high, high_limit) << BB_LANES;
    }
}

#define BB_ELEMENTWISE \
    .threshold = threshold_counts, .scale_add = scale_add_counts, .normalize = normalize_row, .dot = dot_row, \
    .embed = embed_row, .estimate = estimate_row, .factors = estimate_factors, .attend = attend_row, \
    .context = context_rows

#endif
