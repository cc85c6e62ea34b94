/* Fuzz target: the bytes of a packed checkpoint, as the loader sees them.
 *
 * An input is the length of config.json (4 bytes, little-endian), config.json, then model.safetensors. Whatever it
 * holds, loading must end in a model that runs or in a sentence; sanitizers watch for anything else.
 *
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -DBITBERT_LIBFUZZER ...   coverage-guided
 *   cc -g -O1 -fsanitize=address,undefined ...                                 the mutator below
 *
 * The second is run as: fuzz_packed SEED_FILE SECONDS [RANDOM_SEED]. benchmarks/fuzz_packed.py builds and runs it.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bitbert.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 4) return 0;
    const size_t config_bytes = data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16;
    if (config_bytes > size - 4) return 0;
    /* Copies of the exact size, so that reading one byte too far is seen. */
    char *config = malloc(config_bytes + 1);
    const size_t weight_bytes = size - 4 - config_bytes;
    char *weights = malloc(weight_bytes + 1);
    if (!config || !weights) abort();
    config = realloc(memcpy(config, data + 4, config_bytes), config_bytes ? config_bytes : 1);
    weights = realloc(memcpy(weights, data + 4 + config_bytes, weight_bytes), weight_bytes ? weight_bytes : 1);
    bitbert_model *model = bitbert_open_memory(config, config_bytes, weights, weight_bytes, NULL);
    if (model) {
        const bitbert_config *found = bitbert_get_config(model);
        const int32_t ids[2] = {0, found->vocab_size - 1}, types[2] = {0, found->type_vocab_size > 1}, length = found->max_position_embeddings > 1 ? 2 : 1;
        const bitbert_batch batch = {.input_ids = ids, .token_type_ids = types, .lengths = &length, .num_sequences = 1};
        const int answers = found->head != BITBERT_HEAD_NONE && (found->head != BITBERT_HEAD_PAIRS || length == 2);
        float *pooled = malloc((size_t)found->hidden_size * sizeof *pooled), *logits = malloc((size_t)found->num_outputs * sizeof *logits + 1);
        if (!pooled || !logits || bitbert_run(model, &batch, &(bitbert_outputs){.pooled = pooled, .logits = answers ? logits : NULL})) abort();
        free(pooled);
        free(logits);
    } else if (!*bitbert_error()) {
        abort();
    }
    bitbert_close(model);
    free(config);
    free(weights);
    return 0;
}

#ifndef BITBERT_LIBFUZZER
static uint64_t state;

static uint64_t next_random(uint64_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return limit ? state % limit : 0;
}

/* Changes bytes, numbers in text, or lengths; most often in the two texts, where structure is. */
static size_t mutate(uint8_t *data, size_t size, size_t text_bytes) {
    static const char *const numbers[] = {"0", "-1", "9999999999", "4294967296", "1e9", "2147483647", "65"};
    for (uint64_t change = 0, changes = 1 + next_random(4); change < changes && size > 8; change++) {
        const size_t at = next_random(next_random(4) ? text_bytes : size) % size;
        switch (next_random(6)) {
            case 0: data[at] ^= (uint8_t)(1u << next_random(8)); break;
            case 1: data[at] = (uint8_t)next_random(256); break;
            case 2: data[at] = (uint8_t)"0123456789{}[]\",:\\"[next_random(18)]; break;
            case 3: { /* overwrite with a number */
                const char *number = numbers[next_random(sizeof numbers / sizeof *numbers)];
                for (size_t i = 0; number[i] && at + i < size; i++) data[at + i] = (uint8_t)number[i];
                break;
            }
            case 4: size -= next_random(size - 4); break; /* cut off */
            case 5: {                                      /* copy a piece elsewhere */
                const size_t from = next_random(size), room = size - (at > from ? at : from), count = next_random(room < 64 ? room : 64);
                memmove(data + at, data + from, count);
                break;
            }
        }
    }
    return size;
}

int main(int argc, char **argv) {
    FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
    if (!file) {
        fprintf(stderr, "usage: %s SEED_FILE SECONDS [RANDOM_SEED]\n", argv[0]);
        return 2;
    }
    fseek(file, 0, SEEK_END);
    const size_t size = (size_t)ftell(file);
    uint8_t *seed = malloc(size), *data = malloc(size);
    rewind(file);
    if (!seed || !data || fread(seed, 1, size, file) != size || size < 12) return 2;
    fclose(file);
    state = argc > 3 ? strtoull(argv[3], NULL, 10) * 2654435761u + 1 : 1;
    const size_t config_bytes = seed[0] | (size_t)seed[1] << 8 | (size_t)seed[2] << 16;
    const uint8_t *header = seed + 4 + config_bytes;
    const size_t text_bytes = 4 + config_bytes + 8 + (header[0] | (size_t)header[1] << 8 | (size_t)header[2] << 16);
    const time_t end = time(NULL) + strtol(argv[2], NULL, 10);
    size_t runs = 0, loaded = 0;
    while (time(NULL) < end) {
        const size_t length = mutate(memcpy(data, seed, size), size, text_bytes < size ? text_bytes : size);
        LLVMFuzzerTestOneInput(data, length);
        loaded += length == size;
        runs++;
    }
    LLVMFuzzerTestOneInput(seed, size);
    printf("%zu inputs, %zu of full length, no failure\n", runs, loaded);
    free(seed);
    free(data);
    return runs ? 0 : 1;
}
#endif
