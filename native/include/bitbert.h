/* BitBERT: answers from packed 1-bit BERT checkpoints, in C. README.md beside this folder is the guide.
 *
 * Every function that can fail returns NULL or a non-zero number; bitbert_error() then says in one sentence what was
 * got, what was wanted and what to do. A model may be used from several threads: runs take turns. In a process that was
 * forked while no run was under way a model answers with one thread, until bitbert_set_threads() is called there.
 */
#ifndef BITBERT_H
#define BITBERT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define BITBERT_API __declspec(dllexport)
#else
#define BITBERT_API __attribute__((visibility("default")))
#endif

/* Raised with every incompatible change of this header. */
#define BITBERT_ABI_VERSION 2
BITBERT_API int bitbert_abi_version(void);

/* The last failure of the calling thread; "" when there was none. */
BITBERT_API const char *bitbert_error(void);

/* Instruction sets that this processor runs, best first, separated by spaces: e.g. "avx512 avx2 portable". */
BITBERT_API const char *bitbert_instruction_sets(void);

typedef enum { BITBERT_GELU = 0, BITBERT_RELU = 1 } bitbert_activation;
typedef enum { BITBERT_SIGNED = 0, BITBERT_UNSIGNED = 1 } bitbert_input;
typedef enum { BITBERT_POOLER_PLAIN = 0, BITBERT_POOLER_RESIDUAL_NORM = 1 } bitbert_pooler;
typedef enum { BITBERT_SOFTMAX = 0, BITBERT_BI = 1, BITBERT_BI_STRICT = 2 } bitbert_attention;
typedef enum { BITBERT_SHARED = 0, BITBERT_PER_HEAD = 1 } bitbert_estimators;
typedef enum { BITBERT_HEAD_NONE = 0, BITBERT_HEAD_NSP = 1, BITBERT_HEAD_CLASSIFIER = 2, BITBERT_HEAD_PAIRS = 3 } bitbert_head;

/* What config.json of a packed checkpoint says; docs/format.md explains the fields. */
typedef struct {
    int32_t vocab_size, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size;
    int32_t max_position_embeddings, type_vocab_size, residual_rank;
    int32_t attention;      /* bitbert_attention */
    int32_t residual_estimators; /* bitbert_estimators */
    int32_t hidden_act;     /* bitbert_activation */
    int32_t ffn_input;      /* bitbert_input */
    int32_t pooler;         /* bitbert_pooler */
    int32_t head;           /* bitbert_head */
    int32_t num_outputs;    /* logits of the head; 0 for BITBERT_HEAD_NONE */
    int32_t channel_scale;  /* 1: one scale an output channel; 0: one a matrix */
    double layer_norm_eps;
} bitbert_config;

/* A named tensor of the checkpoint: little-endian float32 or packed bits, C order. */
typedef struct {
    const char *name;
    const void *data;
    size_t num_bytes;
} bitbert_tensor;

typedef struct bitbert_model bitbert_model;

/* Reads `config.json` and `model.safetensors` of a packed checkpoint folder. Both are checked as untrusted input;
 * the hashes in SHA256SUMS are for `sha256sum -c`. `isa` forces an instruction set; NULL reads the environment
 * variable BITBERT_ISA and, where that is unset, takes the fastest. */
BITBERT_API bitbert_model *bitbert_open(const char *folder, const char *isa);

/* The same from the bytes of the two files, which need not outlive the call. */
BITBERT_API bitbert_model *bitbert_open_memory(const char *config, size_t config_bytes, const void *weights, size_t weight_bytes, const char *isa);

/* The same from tensors in memory, "bitbert.layers.N.KIND" for each layer N. The layers are repacked; the embedding tables are used where they lie, so the
 * tensors must stay until bitbert_close(). */
BITBERT_API bitbert_model *bitbert_create(const bitbert_config *config, const bitbert_tensor *tensors, size_t num_tensors, const char *isa);

BITBERT_API void bitbert_close(bitbert_model *model);

BITBERT_API const bitbert_config *bitbert_get_config(const bitbert_model *model);
BITBERT_API const char *bitbert_get_isa(const bitbert_model *model);

/* 1 to 256 threads; 1 unless this is called. Results are the same bits for any number. */
BITBERT_API int bitbert_set_threads(bitbert_model *model, int num_threads);

/* Sequences laid end to end, without padding. */
typedef struct {
    const int32_t *input_ids;
    const int32_t *token_type_ids; /* NULL: all 0 */
    const int32_t *lengths;        /* tokens of each sequence, 1 to max_position_embeddings */
    size_t num_sequences;
} bitbert_batch;

/* Where results go; a NULL pointer leaves that result out. Row-major float32. */
typedef struct {
    float *states;  /* (num_hidden_layers + 1, tokens, hidden): the embeddings' output, then each layer's */
    float *last;    /* (tokens, hidden): the last layer's output */
    float *pooled;  /* (num_sequences, hidden) */
    float *logits;  /* (num_sequences, num_outputs); with BITBERT_HEAD_PAIRS each sequence is a pair, by its token types */
} bitbert_outputs;

BITBERT_API int bitbert_run(bitbert_model *model, const bitbert_batch *batch, const bitbert_outputs *outputs);

/* The products of one forward pass over a sequence of `num_tokens` tokens and nothing else: every linear layer's and
 * attention's counts, in the same blocks, left in the cache. Returns the seconds they took; a measure of how much of
 * bitbert_run is multiplication. 0 and a sentence on failure. */
BITBERT_API double bitbert_time_products(bitbert_model *model, size_t num_tokens);

/* Products of packed matrices, for code that only wants the bits multiplied. Rows are `num_words` 64-bit words; a
 * matrix is a right operand laid out once for many products, as a layer's weights are.
 *   mask = 0: out[i][j] = num_bits - 2 popcount(left[i] XOR row[j])            (signs times signs)
 *   mask = 1: out[i][j] = popcount(left[i]) - 2 popcount(left[i] AND row[j])   ({0, 1} times signs) */
typedef struct bitbert_matrix bitbert_matrix;
BITBERT_API bitbert_matrix *bitbert_matrix_create(const uint64_t *rows, size_t num_rows, size_t num_words, size_t num_bits, const char *isa);
BITBERT_API int bitbert_matrix_multiply(const bitbert_matrix *matrix, const uint64_t *left, size_t num_left, int mask, int32_t *out);
BITBERT_API void bitbert_matrix_free(bitbert_matrix *matrix);

/* Multiply-accumulates a second that the instructions of `isa` reach on registers alone (xor + popcount + add, or tiles): the
 * fastest of 20 short runs; 0 and a sentence where the processor does not run them. */
BITBERT_API double bitbert_peak(const char *isa);

#ifdef __cplusplus
}
#endif

#endif
