#define _POSIX_C_SOURCE 200809L
#include "scratch.h"

#include <stdlib.h>
#include <string.h>

#include "bits.h"
#include "error.h"
#include "pairs.h"

enum { SHARED_BLOCKS = 14, WORKER_BLOCKS = 14 };

/* 64-byte aligned zeros with a spare vector at the end, so that kernels may load whole vectors. */
static void *allocate(bb_scratch *scratch, size_t count, size_t size) {
    void *block = NULL;
    const size_t num_bytes = bb_round_up(count * size, 64) + 128;
    if (posix_memalign(&block, 64, num_bytes)) return NULL;
    scratch->blocks[scratch->num_blocks++] = block;
    return memset(block, 0, num_bytes);
}

void bb_scratch_free(bb_scratch *scratch) {
    if (!scratch) return;
    for (size_t index = 0; index < scratch->num_blocks; index++) free(scratch->blocks[index]);
    free(scratch->blocks);
    free(scratch);
}

static bool make_worker(const bitbert_model *model, bb_scratch *scratch, bb_worker *worker) {
    const size_t rows = BB_BLOCK_ROWS, groups = (scratch->longest + BB_PANEL - 1) / BB_PANEL;
    const size_t words = model->hidden_words > model->inner_words ? model->hidden_words : model->inner_words;
    const size_t count_rows = groups * BB_QUERY_TILE > rows ? groups * BB_QUERY_TILE : rows;
    worker->counts = allocate(scratch, count_rows * BB_PANEL, sizeof(uint32_t));
    worker->bases = allocate(scratch, rows, sizeof(int32_t));
    worker->context = allocate(scratch, rows * model->hidden_words, sizeof(uint32_t));
    worker->inner = allocate(scratch, rows * model->inner_words, sizeof(uint32_t));
    worker->scores = allocate(scratch, groups * BB_PANEL, sizeof(float));
    worker->score_residual = allocate(scratch, BB_QUERY_TILE * groups * BB_PANEL, sizeof(float));
    worker->factors = allocate(scratch, BB_QUERY_TILE * groups * BB_PANEL, sizeof(float));
    worker->query_factors = allocate(scratch, (size_t)model->config.residual_rank, sizeof(float));
    worker->attended = allocate(scratch, BB_QUERY_TILE * groups, sizeof(uint32_t));
    worker->head_queries = allocate(scratch, BB_QUERY_TILE * bb_row_words(model->head_size), sizeof(uint32_t));
    if (model->kernels->multiply) worker->bytes = allocate(scratch, bb_product_bytes(rows, words), 1);
    bool made = worker->counts && (worker->bytes || !model->kernels->multiply) && worker->bases && worker->context && worker->inner &&
                worker->scores && worker->score_residual && worker->factors && worker->query_factors && worker->attended && worker->head_queries;
    for (size_t s = 0; s < 3; s++) {
        worker->bits[s] = allocate(scratch, rows * model->hidden_words, sizeof(uint32_t));
        made = made && worker->bits[s];
    }
    return made;
}

static bool make(const bitbert_model *model, bb_scratch *scratch) {
    const size_t rows = scratch->num_rows, groups = scratch->num_groups, factors = model->num_factors, sets = model->num_estimator_sets;
    const size_t head_words = (model->head_size + 31) / 32 * (size_t)model->config.num_attention_heads;
    scratch->blocks = calloc(SHARED_BLOCKS + WORKER_BLOCKS * scratch->num_workers, sizeof *scratch->blocks);
    if (!scratch->blocks) return false;
    scratch->sequences = allocate(scratch, scratch->num_sequences, sizeof(bb_sequence));
    scratch->sequence_of_row = allocate(scratch, rows, sizeof(size_t));
    scratch->hidden = allocate(scratch, rows * model->hidden_stride, sizeof(float));
    scratch->query_bits = allocate(scratch, rows * model->hidden_words, sizeof(uint32_t));
    scratch->key_bits = allocate(scratch, rows * model->hidden_words, sizeof(uint32_t));
    scratch->value_bits = allocate(scratch, rows * model->hidden_words, sizeof(uint32_t));
    scratch->key_panels = allocate(scratch, groups * head_words * BB_PANEL, sizeof(uint32_t));
    scratch->value_panels = allocate(scratch, groups * head_words * BB_PANEL, sizeof(uint32_t));
    scratch->estimates = allocate(scratch, rows * (4 * factors + sets), sizeof(float));
    scratch->key_estimates = allocate(scratch, (2 * factors + sets) * groups * BB_PANEL, sizeof(float));
    scratch->pooler_bits = allocate(scratch, scratch->num_sequences * model->hidden_words, sizeof(uint32_t));
    scratch->pooled = allocate(scratch, scratch->num_sequences * model->hidden_stride, sizeof(float));
    scratch->pair = allocate(scratch, BB_PAIR_PARTS * model->hidden_stride, sizeof(float));
    scratch->workers = allocate(scratch, scratch->num_workers, sizeof(bb_worker));
    if (scratch->num_blocks < SHARED_BLOCKS) return false; /* an allocation that failed is not counted */
    for (size_t index = 0; index < scratch->num_workers; index++)
        if (!make_worker(model, scratch, &scratch->workers[index])) return false;
    return true;
}

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

int bb_scratch_prepare(bitbert_model *model, size_t num_rows, size_t num_groups, size_t longest, size_t num_sequences) {
    bb_scratch *old = model->scratch;
    if (old && old->num_rows >= num_rows && old->num_groups >= num_groups && old->longest >= longest && old->num_sequences >= num_sequences)
        return 0;
    bb_scratch *scratch = calloc(1, sizeof *scratch);
    if (!scratch) return bb_fail("no memory for a run; close other programs");
    *scratch = (bb_scratch){.num_rows = num_rows, .num_groups = num_groups, .longest = longest, .num_sequences = num_sequences,
                            .num_workers = bb_pool_size(model->pool)};
    if (old) {
        scratch->num_rows = larger(num_rows, old->num_rows);
        scratch->num_groups = larger(num_groups, old->num_groups);
        scratch->longest = larger(longest, old->longest);
        scratch->num_sequences = larger(num_sequences, old->num_sequences);
    }
    bb_scratch_free(old);
    model->scratch = NULL;
    if (!make(model, scratch)) {
        bb_scratch_free(scratch);
        return bb_fail("no memory for a batch of %zu tokens; use smaller batches", num_rows);
    }
    model->scratch = scratch;
    return 0;
}
