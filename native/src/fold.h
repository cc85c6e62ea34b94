/* Folding a layer's scale, bias, activation and the next layer's threshold into thresholds on counts. */
#ifndef BB_FOLD_H
#define BB_FOLD_H

#include <stdbool.h>
#include <stdint.h>

typedef enum { BB_IDENTITY, BB_GELU, BB_RELU } bb_activation;

/* How one output channel of a linear layer becomes a bit of the next layer's input. */
typedef struct {
    int32_t base;   /* products are base - 2 count, for counts from 0 to base */
    float scale;    /* > 0 */
    float bias;
    bb_activation activation;
    float shift;    /* added before the threshold */
    bool mask;      /* false: bit = [value < 0]; true: bit = [value > half_step] */
    float half_step;
} bb_channel;

/* Finds offset and width such that the bit of every count c is (c - offset) <= width in unsigned arithmetic. */
void bb_fold_channel(const bb_channel *channel, uint32_t *offset, uint32_t *width);

#endif
