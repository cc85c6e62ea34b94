/* Answers token ids from a packed checkpoint: answer FOLDER ID [ID ...]
 *
 * Prints the head's logits, or for a checkpoint without head the first values of the pooled output. Tokenizing is
 * the caller's: the ids have [CLS] and [SEP] in place.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bitbert.h"

static int report(void) {
    fprintf(stderr, "error: %s\n", bitbert_error());
    return 2;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s FOLDER ID [ID ...]\n", argv[0]);
        return 2;
    }
    bitbert_model *model = bitbert_open(argv[1], NULL);
    if (!model) return report();

    int32_t length = argc - 2, *ids = malloc((size_t)length * sizeof *ids);
    const bitbert_config *config = bitbert_get_config(model);
    const int has_head = config->head != BITBERT_HEAD_NONE, width = has_head ? config->num_outputs : config->hidden_size;
    float *values = malloc((size_t)width * sizeof *values);
    if (!ids || !values) return 1;
    for (int32_t i = 0; i < length; i++) ids[i] = (int32_t)strtol(argv[i + 2], NULL, 10);

    const bitbert_batch batch = {.input_ids = ids, .lengths = &length, .num_sequences = 1};
    const bitbert_outputs outputs = {.logits = has_head ? values : NULL, .pooled = has_head ? NULL : values};
    const int failure = bitbert_run(model, &batch, &outputs) ? report() : 0;
    for (int i = 0; !failure && i < width && i < 8; i++) printf("%.6f\n", (double)values[i]);

    free(values);
    free(ids);
    bitbert_close(model);
    return failure;
}
