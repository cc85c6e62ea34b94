#include "json.h"

#include <stdlib.h>
#include <string.h>

#include "error.h"

enum { MAX_DEPTH = 32 };

typedef struct {
    const char *text, *at, *end;
    const char *problem;
    bb_json *json;
    size_t capacity;
} parser;

static bool reject(parser *p, const char *problem) {
    if (!p->problem) p->problem = problem;
    return false;
}

/* Index of a new node; SIZE_MAX when memory is short. */
static size_t add(parser *p, bb_json_kind kind) {
    bb_json *json = p->json;
    if (json->count == p->capacity) {
        size_t capacity = p->capacity ? 2 * p->capacity : 256;
        bb_json_node *nodes = realloc(json->nodes, capacity * sizeof *nodes);
        if (!nodes) {
            reject(p, "it does not fit in memory");
            return SIZE_MAX;
        }
        json->nodes = nodes;
        p->capacity = capacity;
    }
    json->nodes[json->count] = (bb_json_node){.kind = kind, .text = p->at, .next = json->count + 1};
    return json->count++;
}

static char peek(parser *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n' || *p->at == '\r' || *p->at == '\t')) p->at++;
    return p->at < p->end ? *p->at : 0;
}

static bool parse_string(parser *p) {
    p->at++; /* the opening quote */
    size_t node = add(p, BB_JSON_STRING);
    if (node == SIZE_MAX) return false;
    const char *start = p->at;
    for (; p->at < p->end && *p->at != '"'; p->at++) {
        if ((unsigned char)*p->at < 32) return reject(p, "a string holds a control character");
        if (*p->at == '\\' && ++p->at == p->end) break;
    }
    if (p->at == p->end) return reject(p, "a string does not end");
    p->json->nodes[node].length = (size_t)(p->at - start);
    p->at++;
    return true;
}

static bool parse_scalar(parser *p) {
    const char *start = p->at;
    const bool is_number = *start == '-' || (*start >= '0' && *start <= '9');
    size_t node = add(p, is_number ? BB_JSON_NUMBER : BB_JSON_WORD);
    if (node == SIZE_MAX) return false;
    while (p->at < p->end && ((*p->at >= '0' && *p->at <= '9') || (*p->at >= 'a' && *p->at <= 'z') || strchr("+-.E", *p->at)) && *p->at) p->at++;
    const size_t length = p->json->nodes[node].length = (size_t)(p->at - start);
    if (is_number) return length <= 64 || reject(p, "a number has more than 64 characters");
    if ((length == 4 && !memcmp(start, "true", 4)) || (length == 5 && !memcmp(start, "false", 5)) || (length == 4 && !memcmp(start, "null", 4))) return true;
    return reject(p, "there is something that is not a value");
}

static bool parse_value(parser *p, int depth) {
    const char first = peek(p);
    if (first == '"') return parse_string(p);
    if (first != '{' && first != '[') return first ? parse_scalar(p) : reject(p, "it ends too early");
    if (depth == MAX_DEPTH) return reject(p, "it is nested too deeply");
    const char last = first == '{' ? '}' : ']';
    const size_t node = add(p, first == '{' ? BB_JSON_OBJECT : BB_JSON_ARRAY);
    if (node == SIZE_MAX) return false;
    p->at++;
    if (peek(p) == last) {
        p->at++;
        return true;
    }
    for (;;) {
        if (first == '{') {
            if (peek(p) != '"') return reject(p, "a key is not a string");
            if (!parse_string(p)) return false;
            if (peek(p) != ':') return reject(p, "a key has no value");
            p->at++;
        }
        if (!parse_value(p, depth + 1)) return false;
        const char after = peek(p);
        p->at += after != 0;
        if (after == last) break;
        if (after != ',') return reject(p, "a comma or closing bracket is missing");
    }
    p->json->nodes[node].next = p->json->count;
    return true;
}

int bb_json_parse(const char *text, size_t length, const char *what, bb_json *json) {
    *json = (bb_json){.count = 0};
    parser p = {.text = text, .at = text, .end = text + length, .json = json};
    if (parse_value(&p, 0) && (peek(&p) || p.at < p.end)) reject(&p, "something follows its end");
    if (!p.problem) return 0;
    free(json->nodes);
    *json = (bb_json){.count = 0};
    return bb_fail("%s is not valid JSON: %s, near byte %zu; copy the checkpoint again", what, p.problem, (size_t)(p.at - text));
}

bool bb_json_is(const bb_json *json, size_t node, const char *string) {
    const bb_json_node *found = &json->nodes[node];
    return found->kind == BB_JSON_STRING && found->length == strlen(string) && !memcmp(found->text, string, found->length);
}

size_t bb_json_find(const bb_json *json, size_t object, const char *key) {
    if (json->nodes[object].kind != BB_JSON_OBJECT) return 0;
    for (size_t node = object + 1; node < json->nodes[object].next; node = json->nodes[node + 1].next)
        if (bb_json_is(json, node, key)) return node + 1;
    return 0;
}

bool bb_json_unsigned(const bb_json *json, size_t node, uint64_t *value) {
    const bb_json_node *found = &json->nodes[node];
    if (found->kind != BB_JSON_NUMBER || found->length > 16) return false;
    *value = 0;
    for (size_t i = 0; i < found->length; i++) {
        if (found->text[i] < '0' || found->text[i] > '9') return false;
        *value = *value * 10 + (uint64_t)(found->text[i] - '0');
    }
    return *value <= (uint64_t)1 << 53;
}
