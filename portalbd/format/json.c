/* JSON objects of format 1: parse, verify, dump.
 *
 * I1  Nesting is looked at before the parser sees the bytes: it recurses, and fibers have small
 *     stacks.
 * I2  What is dumped parses to the same dump. */
#include "portalbd/format/json_internal.h"

#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"

enum { DUMP_FLAGS = JSON_COMPACT | JSON_SORT_KEYS };

/* --- writing --- */

void json_start(struct json_writer *w, const char *type) {
    *w = (struct json_writer){.object = json_object()};
    json_put_u64(w, "format", JSON_FORMAT);
    json_put_string(w, "type", type);
}

void json_release(struct json_writer *w) {
    json_decref(w->object);
    w->object = NULL;
}

void json_put(struct json_writer *w, const char *name, json_t *value) {
    if (!value || json_object_set_new(w->object, name, value) != 0)
        w->bad = true;
}

json_t *json_of_u64(uint64_t v) {
    return v <= JSON_INTEGER_MAX ? json_integer((json_int_t)v) : NULL;
}

json_t *json_of_id(const struct random_id *id) {
    char hex[RANDOM_ID_HEX];
    random_id_to_hex(id, hex);
    return json_string(hex);
}

void json_put_u64(struct json_writer *w, const char *name, uint64_t v) {
    json_put(w, name, json_of_u64(v));
}

void json_put_bool(struct json_writer *w, const char *name, bool v) {
    json_put(w, name, json_boolean(v));
}

void json_put_string(struct json_writer *w, const char *name, const char *v) {
    json_put(w, name, json_string(v ? v : ""));
}

void json_put_id(struct json_writer *w, const char *name, const struct random_id *id) {
    json_put(w, name, json_of_id(id));
}

void json_add(struct json_writer *w, json_t *array, json_t *value) {
    if (!value || json_array_append_new(array, value) != 0)
        w->bad = true;
}

static uint32_t dump_crc(const json_t *object) {
    char *text = json_dumps(object, DUMP_FLAGS);
    CHECK(text);
    uint32_t crc = crc32c(view_of_str(text));
    free(text);
    return crc;
}

int json_finish(struct json_writer *w, struct buf *out, size_t size_max, struct err *e) {
    if (w->bad)
        return err_set(e, -ERR_INVALID, "a number is too large or a text is not UTF-8");
    json_put_u64(w, "crc", dump_crc(w->object));
    CHECK(!w->bad);
    char *text = json_dumps(w->object, DUMP_FLAGS);
    CHECK(text);
    size_t len = strlen(text);
    if (len <= size_max)
        buf_append(out, text, len);
    free(text);
    if (len > size_max)
        return err_set(e, -ERR_OVERLOAD, "%zu bytes are more than the %zu of format 1", len,
                       size_max);
    return 0;
}

/* --- reading --- */

/* How deep arrays and objects nest, strings apart. An unbalanced text is the parser's matter. */
static bool too_deep(struct view in) {
    size_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < in.len; i++) {
        uint8_t c = in.data[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            if (++depth > JSON_DEPTH_MAX)
                return true;
        } else if ((c == ']' || c == '}') && depth > 0) {
            depth--;
        }
    }
    return false;
}

static int check_frame(json_t *object, const char *type, struct err *e) {
    uint64_t format, crc;
    if (!json_value_u64(json_object_get(object, "format"), JSON_INTEGER_MAX, &format))
        return err_set(e, -ERR_CORRUPT, "%s: there is no format version", type);
    if (format != JSON_FORMAT)
        return err_set(e, -ERR_UNSUPPORTED, "%s: format %llu was written by a newer portalbd", type,
                       (unsigned long long)format);
    if (!json_value_u64(json_object_get(object, "crc"), UINT32_MAX, &crc))
        return err_set(e, -ERR_CORRUPT, "%s: there is no checksum", type);
    json_object_del(object, "crc");
    if (dump_crc(object) != crc)
        return err_set(e, -ERR_CORRUPT, "%s: the checksum does not match", type);
    if (!json_value_is(json_object_get(object, "type"), type))
        return err_set(e, -ERR_CORRUPT, "%s: this object is something else", type);
    json_object_del(object, "format");
    json_object_del(object, "type");
    return 0;
}

int json_parse(json_t **ret, struct view in, const char *type, size_t size_max, struct err *e) {
    if (in.len > size_max)
        return err_set(e, -ERR_CORRUPT, "%s: %zu bytes are more than the %zu of format 1", type,
                       in.len, size_max);
    if (in.len == 0 || too_deep(in))
        return err_set(e, -ERR_CORRUPT, "%s: it is empty or nests too deep", type);
    json_error_t error;
    CLEANUP_JSON json_t *object =
        json_loadb((const char *)in.data, in.len, JSON_REJECT_DUPLICATES, &error);
    if (!object)
        return err_set(e, -ERR_CORRUPT, "%s: byte %d: %s", type, error.position, error.text);
    if (!json_is_object(object))
        return err_set(e, -ERR_CORRUPT, "%s: it is no object", type);
    int rc = check_frame(object, type, e);
    if (rc < 0)
        return rc;
    *ret = object;
    object = NULL;
    return 0;
}

struct json_reader json_reader_of(const json_t *object, const char *type, struct err *e) {
    CHECK(object);
    return (struct json_reader){.object = object, .type = type, .e = e};
}

int json_bad(struct json_reader *r, const char *what) {
    if (r->rc == 0)
        r->rc = err_set(r->e, -ERR_CORRUPT, "%s: %s is missing or wrong", r->type, what);
    return r->rc;
}

const json_t *json_member(struct json_reader *r, const char *name) {
    const json_t *value = json_object_get(r->object, name);
    if (value)
        r->used++;
    else
        json_bad(r, name);
    return value;
}

bool json_value_u64(const json_t *value, uint64_t max, uint64_t *ret) {
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    uint64_t v = (uint64_t)json_integer_value(value);
    if (v > max)
        return false;
    *ret = v;
    return true;
}

bool json_value_id(const json_t *value, struct random_id *ret) {
    return json_is_string(value) && random_id_from_hex(ret, json_string_value(value), NULL) == 0;
}

bool json_value_is(const json_t *value, const char *text) {
    return json_is_string(value) && strcmp(json_string_value(value), text) == 0;
}

uint64_t json_get_u64(struct json_reader *r, const char *name, uint64_t max) {
    uint64_t v = 0;
    if (!json_value_u64(json_member(r, name), max, &v))
        json_bad(r, name);
    return v;
}

bool json_get_bool(struct json_reader *r, const char *name) {
    const json_t *value = json_member(r, name);
    if (!json_is_boolean(value))
        json_bad(r, name);
    return json_is_true(value);
}

const char *json_get_string(struct json_reader *r, const char *name, size_t len_max) {
    const json_t *value = json_member(r, name);
    if (!json_is_string(value) || json_string_length(value) > len_max) {
        json_bad(r, name);
        return "";
    }
    return json_string_value(value);
}

void json_get_id(struct json_reader *r, const char *name, struct random_id *ret) {
    *ret = (struct random_id){0};
    if (!json_value_id(json_member(r, name), ret))
        json_bad(r, name);
}

void json_get_volume_key(struct json_reader *r, const char *name, enum id_kind kind,
                         struct volume_key *ret) {
    *ret = (struct volume_key){0};
    const char *text = json_get_string(r, name, ID_MAX - 1);
    if (!volume_key_valid(text, kind))
        json_bad(r, name);
    else
        memcpy(ret->text, text, strlen(text));
}

const json_t *json_get_array(struct json_reader *r, const char *name, size_t count_max,
                             size_t *ret_count) {
    const json_t *value = json_member(r, name);
    *ret_count = 0;
    if (!json_is_array(value) || json_array_size(value) > count_max) {
        json_bad(r, name);
        return NULL;
    }
    *ret_count = json_array_size(value);
    return value;
}

int json_end(struct json_reader *r) {
    if (r->rc == 0 && r->used != json_object_size(r->object))
        r->rc = err_set(r->e, -ERR_CORRUPT, "%s: a member that format 1 does not have", r->type);
    return r->rc;
}
