/* For fuzzers of JSON objects: makes the checksum right, so that what lies behind it is reached. */
#pragma once

#include <jansson.h>
#include <stdlib.h>

#include "common/buf.h"
#include "common/crc32c.h"

/* Calls fn with the object, its crc member made right. Nothing when it is no JSON object. */
static inline void with_right_crc(struct view in, void (*fn)(struct view in)) {
    if (in.len == 0 || in.len > 64 * 1024)
        return;
    json_error_t error;
    json_t *object = json_loadb((const char *)in.data, in.len, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object)) {
        json_decref(object);
        return;
    }
    json_object_del(object, "crc");
    char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
    json_object_set_new(object, "crc", json_integer(crc32c(view_of_str(text))));
    free(text);
    text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS);
    fn(view_of_str(text));
    free(text);
    json_decref(object);
}
