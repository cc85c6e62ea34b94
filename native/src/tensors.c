#include "tensors.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "error.h"

enum { MAX_NAME = 160 };

static int compare_to_name(const void *name, const void *tensor) { return strcmp(name, ((const bitbert_tensor *)tensor)->name); }

/* Splits the name of a layer's tensor into the name of all layers' and the layer's index. */
static bool split_name(const char *name, char stacked[MAX_NAME], size_t *index) {
    static const char prefix[] = "bitbert.layers.";
    char *kind;
    if (strncmp(name, prefix, sizeof prefix - 1)) return false;
    *index = strtoul(name + sizeof prefix - 1, &kind, 10);
    snprintf(stacked, MAX_NAME, "%s%s", prefix, kind + 1);
    return true;
}

static const void *find(bb_tensors *tensors, size_t num_bytes, const char *name) {
    char stacked[MAX_NAME];
    size_t index = 0, num_parts = 1;
    if (tensors->num_stacked && split_name(name, stacked, &index)) {
        name = stacked;
        num_parts = tensors->num_stacked;
    }
    const bitbert_tensor *found = bsearch(name, tensors->tensors, tensors->count, sizeof *found, compare_to_name);
    tensors->failed = !found || found->num_bytes / num_parts != num_bytes || found->num_bytes % num_parts;
    if (!found)
        bb_fail("tensor %s is missing; the weights do not fit the config", name);
    else if (tensors->failed)
        bb_fail("tensor %s has %zu bytes, wanted %zu; the weights do not fit the config", name, found->num_bytes, num_parts * num_bytes);
    if (tensors->failed) return NULL;
    tensors->num_found += index == 0;
    return (const char *)found->data + index * num_bytes;
}

const float *bb_float_tensor(bb_tensors *tensors, size_t count, bb_values values, const char *format, ...) {
    if (tensors->failed) return NULL;
    char name[MAX_NAME];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const float *floats = find(tensors, count * sizeof(float), name);
    for (size_t i = 0; floats && i < count; i++)
        if (!isfinite(floats[i]) || (values == BB_ABOVE_ZERO && floats[i] <= 0)) {
            bb_fail("tensor %s holds %g, wanted finite values%s; the model diverged or the file is damaged", name, (double)floats[i],
                    values == BB_ABOVE_ZERO ? " above 0" : "");
            tensors->failed = true;
            return NULL;
        }
    return floats;
}

const uint32_t *bb_bit_tensor(bb_tensors *tensors, size_t num_rows, size_t num_bits, const char *format, ...) {
    if (tensors->failed) return NULL;
    char name[MAX_NAME];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const size_t num_words = bb_row_words(num_bits);
    const uint32_t *bits = find(tensors, num_rows * num_words * sizeof(uint32_t), name);
    uint32_t padding = 0;
    for (size_t row = 0; bits && row < num_rows; row++)
        for (size_t word = num_bits / 32; word < num_words; word++) {
            const uint32_t set = bits[row * num_words + word];
            padding |= word == num_bits / 32 ? set >> num_bits % 32 : set;
        }
    if (!padding) return bits;
    bb_fail("tensor %s has bits set beyond column %zu, wanted zeros; the file was not written by this format", name, num_bits);
    tensors->failed = true;
    return NULL;
}
