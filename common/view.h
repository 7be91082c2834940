/* Borrowed bytes. Who hands out a view says until when it may be read. */
#pragma once

#include <string.h>

#include "common/base.h"

struct view {
    const uint8_t *data; /* borrowed; may be NULL when len is 0 */
    size_t len;          /* bytes */
};

static inline struct view view_of(const void *data, size_t len) {
    return (struct view){.data = data, .len = len};
}

static inline struct view view_of_str(const char *s) {
    return view_of(s, strlen(s));
}

static inline bool view_equal(struct view a, struct view b) {
    return a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0);
}

/* The part [off, off + len) of v, which must lie inside it. */
static inline struct view view_part(struct view v, size_t off, size_t len) {
    CHECK(off <= v.len && len <= v.len - off);
    return view_of(v.data + off, len);
}
