/* The frame of every JSON object of format 1, and strict access to its members.
 *
 * An object is {"format": 1, "type": "...", ..., "crc": n}, dumped compactly with sorted keys; crc
 * is the CRC32C of the same dump without the crc member. Decoders refuse what they do not know:
 * another format (-ERR_UNSUPPORTED), unknown, missing or duplicate members, numbers that are not
 * integers in [0, 2^63), nesting deeper than JSON_DEPTH_MAX (-ERR_CORRUPT). Pure; any thread. */
#pragma once

#include <jansson.h>

#include "portalbd/format/ids_internal.h"

enum { JSON_DEPTH_MAX = 6, JSON_FORMAT = 1 };
#define JSON_INTEGER_MAX ((uint64_t)INT64_MAX)

/* --- writing --- */

/* An object being made. What cannot be written (a number >= 2^63, a string that is not UTF-8) sets
 * `bad`, which json_finish turns into an error. */
struct json_writer {
    json_t *object; /* owned until json_finish */
    bool bad;
};
void json_start(struct json_writer *w, const char *type);
void json_release(struct json_writer *w);
/* value: taken over; NULL sets bad. */
void json_put(struct json_writer *w, const char *name, json_t *value);
void json_put_u64(struct json_writer *w, const char *name, uint64_t v);
void json_put_bool(struct json_writer *w, const char *name, bool v);
void json_put_string(struct json_writer *w, const char *name, const char *v); /* NULL: "" */
void json_put_id(struct json_writer *w, const char *name, const struct random_id *id);
/* Appends a value to an array; NULL sets bad. */
void json_add(struct json_writer *w, json_t *array, json_t *value);
json_t *json_of_u64(uint64_t v); /* NULL when >= 2^63 */
json_t *json_of_id(const struct random_id *id);
/* Appends the finished bytes. -ERR_OVERLOAD when they are more than size_max, -ERR_INVALID when
 * something could not be written. */
int json_finish(struct json_writer *w, struct buf *out, size_t size_max, struct err *e);

/* --- reading --- */

/* Parses and verifies; *ret is owned by the caller (json_decref). */
int json_parse(json_t **ret, struct view in, const char *type, size_t size_max, struct err *e);

/* Members of one object. The first failure sticks: later reads give zero values. */
struct json_reader {
    const json_t *object; /* borrowed */
    const char *type;     /* for messages */
    size_t used;
    int rc;
    struct err *e;
};
struct json_reader json_reader_of(const json_t *object, const char *type, struct err *e);
/* A nested object, as a reader of its own; `used` of the parent counts it. */
const json_t *json_member(struct json_reader *r, const char *name);
uint64_t json_get_u64(struct json_reader *r, const char *name, uint64_t max);
bool json_get_bool(struct json_reader *r, const char *name);
const char *json_get_string(struct json_reader *r, const char *name,
                            size_t len_max); /* borrowed; never NULL */
void json_get_id(struct json_reader *r, const char *name, struct random_id *ret);
void json_get_volume_key(struct json_reader *r, const char *name, enum id_kind kind,
                         struct volume_key *ret);
/* An array of at most count_max; NULL after a failure. */
const json_t *json_get_array(struct json_reader *r, const char *name, size_t count_max,
                             size_t *ret_count);
/* Marks the object as damaged: `what` is wrong. */
int json_bad(struct json_reader *r, const char *what);
/* 0, or the first failure; also refuses members that nobody asked for. */
int json_end(struct json_reader *r);

/* Values of arrays. False when they are something else. */
bool json_value_u64(const json_t *value, uint64_t max, uint64_t *ret);
bool json_value_id(const json_t *value, struct random_id *ret);
bool json_value_is(const json_t *value, const char *text);

static inline void json_decrefp_(json_t **p) {
    json_decref(*p);
}
#define CLEANUP_JSON CLEANUP(json_decrefp_)
