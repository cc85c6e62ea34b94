/* One comparison of an integer replaces scaling, bias, activation, shift and threshold.
 *
 * The value that a channel's bit is taken of depends only on its count, so the counts whose bit is 1 can be found
 * when the model is loaded. y(c) = float(base - 2c) * scale + bias falls with c; the activations are monotone but for
 * GELU, which falls down to its minimum at y = -0.7518 and rises after it. So on either side of the minimum the bit
 * changes at most once, and binary search with the runtime's own arithmetic finds where: the folded threshold and
 * the unfolded formula cannot disagree.
 */
#include "fold.h"

#include <math.h>

static const float GELU_MINIMUM = -0.75179164f;

static float linear_output(const bb_channel *channel, int32_t count) {
    float product = (float)(channel->base - 2 * count);
    float scaled = product * channel->scale;
    return scaled + channel->bias;
}

/* Whether the value falls below its threshold: the bit of a signed input, the opposite bit of a {0, 1} input. */
static bool is_below(const bb_channel *channel, int32_t count) {
    float value = linear_output(channel, count);
    if (channel->activation == BB_RELU) value = value > 0 ? value : 0;
    /* erfc keeps the sign of the far tail, which 1 + erf rounds away. */
    if (channel->activation == BB_GELU) value = (float)(value * 0.5 * erfc((double)value * -0.70710678118654752440));
    value += channel->shift;
    return channel->mask ? !(value > channel->half_step) : value < 0;
}

static bool is_left_of_minimum(const bb_channel *channel, int32_t count) { return linear_output(channel, count) < GELU_MINIMUM; }

/* The first count in [first, end) for which `test` holds (or, with `wanted` false, fails); the test changes at most once there. */
static int32_t first_count(const bb_channel *channel, bool (*test)(const bb_channel *, int32_t), bool wanted, int32_t first, int32_t end) {
    while (first < end) {
        int32_t middle = first + (end - first) / 2;
        if (test(channel, middle) == wanted)
            end = middle;
        else
            first = middle + 1;
    }
    return first;
}

void bb_fold_channel(const bb_channel *channel, uint32_t *offset, uint32_t *width) {
    const int32_t end = channel->base + 1;
    int32_t minimum = end; /* counts from here on lie left of GELU's minimum */
    if (channel->activation == BB_GELU) minimum = first_count(channel, is_left_of_minimum, true, 0, end);
    const int32_t begin_below = first_count(channel, is_below, true, 0, minimum);
    const int32_t end_below = first_count(channel, is_below, false, minimum, end);

    /* The values below the threshold are those of the counts in [begin_below, end_below). */
    if (begin_below == end_below) { /* none: an interval that no count reaches, or all of them */
        *offset = channel->mask ? 0 : UINT32_MAX;
        *width = channel->mask ? UINT32_MAX : 0;
    } else if (channel->mask) { /* the complement, which wraps around */
        *offset = (uint32_t)end_below;
        *width = (uint32_t)(begin_below - end_below) - 1;
    } else {
        *offset = (uint32_t)begin_below;
        *width = (uint32_t)(end_below - begin_below) - 1;
    }
}
