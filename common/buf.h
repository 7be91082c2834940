/* A growable buffer of owned bytes. Zero-initialised is empty and valid. */
#pragma once

#include "common/mem.h"
#include "common/view.h"

struct buf {
    uint8_t *data; /* owned */
    size_t len;    /* bytes in use */
    size_t cap;    /* bytes allocated */
};

void buf_release(struct buf *b);              /* frees; b is empty again */
void buf_clear(struct buf *b);                /* len = 0, memory stays */
void buf_reserve(struct buf *b, size_t more); /* room for `more` bytes behind len */
uint8_t *buf_extend(struct buf *b,
                    size_t more); /* len += more; the new bytes are not initialised */
void buf_append(struct buf *b, const void *data, size_t len);
void buf_append_str(struct buf *b, const char *s);
void buf_printf(struct buf *b, const char *fmt, ...)
    PRINTF_LIKE(2, 3);               /* no NUL is counted in len */
const char *buf_cstr(struct buf *b); /* NUL-terminates behind len; borrowed until the next change */

static inline struct view buf_view(const struct buf *b) {
    return view_of(b->data, b->len);
}

#define CLEANUP_BUF CLEANUP(buf_release)
