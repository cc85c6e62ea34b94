/* A small JSON reader for headers and configs: a checked, flat list of nodes over the caller's text. */
#ifndef BB_JSON_H
#define BB_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { BB_JSON_OBJECT, BB_JSON_ARRAY, BB_JSON_STRING, BB_JSON_NUMBER, BB_JSON_WORD } bb_json_kind;

/* A value; in an object, keys and values alternate. Escapes in strings are checked but not replaced: no name that
 * this library looks for has one. */
typedef struct {
    bb_json_kind kind;
    const char *text; /* of a string without its quotes; of a number or word as written */
    size_t length;
    size_t next;      /* index of the node after this one and everything in it */
} bb_json_node;

typedef struct {
    bb_json_node *nodes; /* nodes[0] is the document; free() them */
    size_t count;
} bb_json;

/* 0, or -1 and a sentence in bitbert_error(); `what` names the text in it. Nothing beyond `length` is read. */
int bb_json_parse(const char *text, size_t length, const char *what, bb_json *json);

/* The value of `key` in the object at `object`; 0, which is never a value's index, when there is none. */
size_t bb_json_find(const bb_json *json, size_t object, const char *key);

bool bb_json_is(const bb_json *json, size_t node, const char *string);

/* Whether the node is a whole number from 0 to 2^53, and which. */
bool bb_json_unsigned(const bb_json *json, size_t node, uint64_t *value);

#endif
