/* Answers token ids from a packed checkpoint: answer FOLDER ID [ID ...] [-- ID ...]
 *
 * Prints the head's logits, or for a checkpoint without head the first values of the pooled output. Tokenizing is
 * the caller's: the ids have [CLS] and [SEP] in place. Those behind -- are of a second text.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitbert.h"

static int report(void) {
    fprintf(stderr, "error: %s\n", bitbert_error());
    return 2;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s FOLDER ID [ID ...] [-- ID ...]\n", argv[0]);
        return 2;
    }
    bitbert_model *model = bitbert_open(argv[1], NULL);
    if (!model) return report();

    int32_t length = 0, is_second = 0, *ids = malloc((size_t)argc * sizeof *ids), *types = malloc((size_t)argc * sizeof *types);
    const bitbert_config *config = bitbert_get_config(model);
    const int has_head = config->head != BITBERT_HEAD_NONE, width = has_head ? config->num_outputs : config->hidden_size;
    float *values = malloc((size_t)width * sizeof *values);
    if (!ids || !types || !values) return 1;
    for (int i = 2; i < argc; i++) {
        if (!strcmp(argv[i], "--")) {
            is_second = 1;
            continue;
        }
        ids[length] = (int32_t)strtol(argv[i], NULL, 10);
        types[length++] = is_second;
    }

    const bitbert_batch batch = {.input_ids = ids, .token_type_ids = types, .lengths = &length, .num_sequences = 1};
    const bitbert_outputs outputs = {.logits = has_head ? values : NULL, .pooled = has_head ? NULL : values};
    const int failure = bitbert_run(model, &batch, &outputs) ? report() : 0;
    for (int i = 0; !failure && i < width && i < 8; i++) printf("%.6f\n", (double)values[i]);

    free(values);
    free(ids);
    free(types);
    bitbert_close(model);
    return failure;
}
