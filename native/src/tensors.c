#include "tensors.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"

static int compare_to_name(const void *name, const void *tensor) { return strcmp(name, ((const bitbert_tensor *)tensor)->name); }

const void *bb_tensor(bb_tensors *tensors, size_t num_bytes, const char *format, ...) {
    if (tensors->failed) return NULL;
    char name[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const bitbert_tensor *found = bsearch(name, tensors->tensors, tensors->count, sizeof *found, compare_to_name);
    tensors->failed = !found || found->num_bytes != num_bytes;
    if (!found)
        bb_fail("tensor %s is missing; the weights do not fit the config", name);
    else if (tensors->failed)
        bb_fail("tensor %s has %zu bytes, wanted %zu; the weights do not fit the config", name, found->num_bytes, num_bytes);
    return tensors->failed ? NULL : found->data;
}
