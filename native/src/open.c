/* Reading a packed checkpoint: config.json and model.safetensors, both checked as untrusted input. */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bitbert.h"
#include "error.h"
#include "json.h"
#include "model.h"

enum { MAX_HEADER_BYTES = 100 << 20 };

static int find_size(const bb_json *json, const char *key, int32_t *value) {
    const size_t node = bb_json_find(json, 0, key);
    uint64_t number;
    if (!node || !bb_json_unsigned(json, node, &number) || number > INT32_MAX)
        return bb_fail("config.json: %s is missing or is not a whole number; copy the checkpoint again", key);
    *value = (int32_t)number;
    return 0;
}

static int find_choice(const bb_json *json, const char *key, const char *const *choices, size_t num_choices, int32_t *value) {
    const size_t node = bb_json_find(json, 0, key);
    for (size_t choice = 0; node && choice < num_choices; choice++)
        if (bb_json_is(json, node, choices[choice])) {
            *value = (int32_t)choice;
            return 0;
        }
    return bb_fail("config.json: %s is missing or is not one that this version knows; export the model again or update bitbert", key);
}

#define CHOICES(...) (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)

/* Adds the digits at *at to *value; returns how many there are. */
static int read_digits(const char **at, double *value) {
    int count = 0;
    for (; **at >= '0' && **at <= '9'; ++*at, ++count) *value = *value * 10 + (**at - '0');
    return count;
}

/* The value of a JSON number. strtod would read it with the decimal sign of the program's locale. Exact up to 15 digits and powers
 * of ten up to 22, off by a rounding or two beyond. */
static bool read_decimal(const char *at, double *value) {
    const bool negative = *at == '-';
    double digits = 0, power = 0;
    at += negative;
    if (!read_digits(&at, &digits)) return false;
    int shift = 0;
    if (*at == '.' && !(at++, shift = -read_digits(&at, &digits))) return false;
    if (*at == 'e' || *at == 'E') {
        const bool falls = *++at == '-';
        at += falls || *at == '+';
        if (!read_digits(&at, &power)) return false;
        if (power > 400) power = 400; /* 0 or infinity either way */
        shift += falls ? -(int)power : (int)power;
    }
    double ten = 1;
    for (int i = shift < 0 ? -shift : shift; i; i--) ten *= 10;
    *value = (negative ? -1 : 1) * (shift < 0 ? digits / ten : digits * ten);
    return !*at;
}

static int read_eps(const bb_json *json, double *eps) {
    char text[72];
    const size_t node = bb_json_find(json, 0, "layer_norm_eps");
    if (!node || json->nodes[node].kind != BB_JSON_NUMBER) return bb_fail("config.json: layer_norm_eps is missing or is not a number; copy the checkpoint again");
    snprintf(text, sizeof text, "%.*s", (int)json->nodes[node].length, json->nodes[node].text);
    return read_decimal(text, eps) ? 0 : bb_fail("config.json: layer_norm_eps is '%s', wanted a number; copy the checkpoint again", text);
}

/* Labels of a classification head; the config counts its outputs by them. */
static int count_labels(const bb_json *json, int32_t *count) {
    const size_t labels = bb_json_find(json, 0, "labels");
    if (!labels || json->nodes[labels].kind != BB_JSON_ARRAY) return bb_fail("config.json: labels are missing or are not a list; copy the checkpoint again");
    *count = 0;
    for (size_t node = labels + 1; node < json->nodes[labels].next; node = json->nodes[node].next) ++*count;
    return 0;
}

static int read_config(const bb_json *json, bitbert_config *config) {
    enum { NONE, NSP, CLASSIFICATION, REGRESSION, PAIR_CLASSIFICATION, PAIR_REGRESSION };
    static const int32_t heads[] = {BITBERT_HEAD_NONE, BITBERT_HEAD_NSP, BITBERT_HEAD_CLASSIFIER, BITBERT_HEAD_CLASSIFIER, BITBERT_HEAD_PAIRS, BITBERT_HEAD_PAIRS};
    const size_t format = bb_json_find(json, 0, "format"), version = bb_json_find(json, 0, "format_version");
    uint64_t number = 0;
    if (!format || !bb_json_is(json, format, "bitbert-packed") || !version || !bb_json_unsigned(json, version, &number) || number != 2)
        return bb_fail("config.json: is not of format bitbert-packed version 2; export the model again or update bitbert");
    const struct { const char *key; int32_t *value; } sizes[] = {
        {"vocab_size", &config->vocab_size}, {"hidden_size", &config->hidden_size}, {"num_hidden_layers", &config->num_hidden_layers},
        {"num_attention_heads", &config->num_attention_heads}, {"intermediate_size", &config->intermediate_size},
        {"max_position_embeddings", &config->max_position_embeddings}, {"type_vocab_size", &config->type_vocab_size},
        {"residual_rank", &config->residual_rank},
    };
    for (size_t index = 0; index < sizeof sizes / sizeof *sizes; index++)
        if (find_size(json, sizes[index].key, sizes[index].value)) return -1;
    int32_t head = NONE;
    if (find_choice(json, "attention", CHOICES("softmax", "bi", "bi_strict"), &config->attention) ||
        find_choice(json, "residual_estimators", CHOICES("shared", "per_head"), &config->residual_estimators) ||
        find_choice(json, "hidden_act", CHOICES("gelu", "relu"), &config->hidden_act) ||
        find_choice(json, "ffn_input", CHOICES("signed", "unsigned"), &config->ffn_input) ||
        find_choice(json, "pooler", CHOICES("plain", "residual_norm"), &config->pooler) ||
        find_choice(json, "weight_scale", CHOICES("tensor", "channel"), &config->channel_scale) ||
        find_choice(json, "head", CHOICES("none", "nsp", "classification", "regression", "pair_classification", "pair_regression"), &head) ||
        read_eps(json, &config->layer_norm_eps) || count_labels(json, &config->num_outputs))
        return -1;
    config->head = heads[head];
    if (head != CLASSIFICATION && head != PAIR_CLASSIFICATION) config->num_outputs = head == NSP ? 2 : head != NONE;
    return 0;
}

/* What the header says of one tensor: where its bytes are, and that they are as many as dtype and shape ask for. */
static int read_tensor(const bb_json *json, size_t entry, const char *name, uint64_t data_bytes, uint64_t range[2]) {
    const size_t dtype = bb_json_find(json, entry, "dtype"), shape = bb_json_find(json, entry, "shape");
    const size_t offsets = bb_json_find(json, entry, "data_offsets");
    if (!dtype || !shape || !offsets || json->nodes[shape].kind != BB_JSON_ARRAY || json->nodes[offsets].kind != BB_JSON_ARRAY ||
        json->nodes[offsets].next != offsets + 3)
        return bb_fail("model.safetensors: tensor %.100s has no dtype, shape and two data_offsets; copy the checkpoint again", name);
    const bool is_bits = bb_json_is(json, dtype, "U8");
    if (!is_bits && !bb_json_is(json, dtype, "F32"))
        return bb_fail("model.safetensors: tensor %.100s is of type %.*s, wanted F32 or U8", name, (int)json->nodes[dtype].length, json->nodes[dtype].text);
    uint64_t num_bytes = is_bits ? 1 : 4;
    for (size_t node = shape + 1; node < json->nodes[shape].next; node = json->nodes[node].next) {
        uint64_t size;
        if (!bb_json_unsigned(json, node, &size) || (size && num_bytes > data_bytes / size))
            return bb_fail("model.safetensors: the shape of tensor %.100s is not one that fits the file; copy the checkpoint again", name);
        num_bytes *= size;
    }
    if (!bb_json_unsigned(json, offsets + 1, &range[0]) || !bb_json_unsigned(json, offsets + 2, &range[1]) || range[0] > range[1] ||
        range[1] > data_bytes || range[1] - range[0] != num_bytes)
        return bb_fail("model.safetensors: the bytes of tensor %.100s do not lie in the file or are not as many as its shape asks for", name);
    const size_t length = strlen(name);
    const bool named_bits = length > 12 && !strcmp(name + length - 12, ".weight_bits");
    if (named_bits != is_bits || range[0] % 4) return bb_fail("model.safetensors: tensor %.100s is of the wrong type or not aligned to 4 bytes", name);
    return 0;
}

typedef struct {
    uint64_t begin, end;
} byte_range;

static int compare_ranges(const void *a, const void *b) {
    const byte_range *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

/* Tensors of a parsed header; `names` receives a copy of the header whose names end in zeros. */
static int list_tensors(const bb_json *json, const char *header, char *names, const char *data, uint64_t data_bytes, bitbert_tensor *tensors,
                        byte_range *ranges, size_t *count) {
    if (json->nodes[0].kind != BB_JSON_OBJECT) return bb_fail("model.safetensors: the header is not an object; copy the checkpoint again");
    *count = 0;
    for (size_t key = 1; key < json->count; key = json->nodes[key + 1].next) {
        if (bb_json_is(json, key, "__metadata__")) continue;
        char *name = names + (json->nodes[key].text - header);
        name[json->nodes[key].length] = 0;
        uint64_t range[2];
        if (read_tensor(json, key + 1, name, data_bytes, range)) return -1;
        ranges[*count] = (byte_range){range[0], range[1]};
        tensors[(*count)++] = (bitbert_tensor){.name = name, .data = data + range[0], .num_bytes = (size_t)(range[1] - range[0])};
    }
    qsort(ranges, *count, sizeof *ranges, compare_ranges);
    uint64_t covered = 0;
    for (size_t index = 0; index < *count && ranges[index].begin == covered; index++) covered = ranges[index].end;
    if (covered != data_bytes) return bb_fail("model.safetensors: tensors overlap or leave bytes unused near byte %zu; copy the checkpoint again", (size_t)covered);
    return 0;
}

static bitbert_model *open_tensors(const bitbert_config *config, const unsigned char *weights, size_t num_bytes, const char *isa) {
    uint64_t header_bytes = 0;
    for (size_t i = 8; i-- > 0;) header_bytes = header_bytes << 8 | (num_bytes < 8 ? 255 : weights[i]);
    if (num_bytes < 8 || header_bytes > num_bytes - 8 || header_bytes > MAX_HEADER_BYTES) {
        bb_fail("model.safetensors: %zu bytes are too few for its header; copy the checkpoint again", num_bytes);
        return NULL;
    }
    const char *header = (const char *)weights + 8, *data = header + header_bytes;
    const size_t data_bytes = num_bytes - 8 - (size_t)header_bytes;
    bb_json json;
    if (bb_json_parse(header, (size_t)header_bytes, "the header of model.safetensors", &json)) return NULL;
    char *names = malloc((size_t)header_bytes + 1);
    void *aligned = NULL; /* floats must be aligned; a header of an odd length would shift them */
    if ((uintptr_t)data % 4 && data_bytes && (aligned = malloc(data_bytes))) data = memcpy(aligned, data, data_bytes);
    bitbert_tensor *tensors = calloc(json.count, sizeof *tensors);
    byte_range *ranges = calloc(json.count, sizeof *ranges);
    bitbert_model *model = NULL;
    size_t count = 0;
    if (!names || !tensors || !ranges || (uintptr_t)data % 4)
        bb_fail("no memory for the names of %zu tensors; close other programs", json.count);
    else if (!list_tensors(&json, header, memcpy(names, header, (size_t)header_bytes), data, data_bytes, tensors, ranges, &count))
        model = bb_create(config, tensors, count, isa, true);
    free(json.nodes);
    free(names);
    free(aligned);
    free(tensors);
    free(ranges);
    return model;
}

bitbert_model *bitbert_open_memory(const char *config_text, size_t config_bytes, const void *weights, size_t weight_bytes, const char *isa) {
    bitbert_config config = {0};
    bb_json json;
    if (bb_json_parse(config_text, config_bytes, "config.json", &json)) return NULL;
    const int failure = read_config(&json, &config);
    free(json.nodes);
    return failure ? NULL : open_tensors(&config, weights, weight_bytes, isa);
}

/* Maps a file of the folder for reading; *bytes is NULL for an empty one. */
static int map_file(const char *folder, const char *name, void **bytes, size_t *num_bytes) {
    char path[4096];
    struct stat status;
    *bytes = NULL;
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) return bb_fail("the path of %s is longer than %zu bytes", name, sizeof path);
    const int file = open(path, O_RDONLY);
    if (file < 0) return bb_fail("'%s' cannot be read (%s); give the folder of a packed checkpoint", path, strerror(errno));
    const bool usable = !fstat(file, &status) && S_ISREG(status.st_mode);
    *num_bytes = usable ? (size_t)status.st_size : 0;
    if (*num_bytes) *bytes = mmap(NULL, *num_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    close(file);
    if (*bytes == MAP_FAILED) *bytes = NULL;
    return *bytes ? 0 : bb_fail("'%s' is empty or not a file; copy the checkpoint again", path);
}

bitbert_model *bitbert_open(const char *folder, const char *isa) {
    void *config = NULL, *weights = NULL;
    size_t config_bytes = 0, weight_bytes = 0;
    bitbert_model *model = NULL;
    if (!map_file(folder, "config.json", &config, &config_bytes) && !map_file(folder, "model.safetensors", &weights, &weight_bytes))
        model = bitbert_open_memory(config, config_bytes, weights, weight_bytes, isa);
    if (config) munmap(config, config_bytes);
    if (weights) munmap(weights, weight_bytes);
    return model;
}
