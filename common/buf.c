/* A growable buffer of owned bytes. */
#include "common/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void buf_release(struct buf *b) {
    free(b->data);
    *b = (struct buf){0};
}

void buf_clear(struct buf *b) {
    b->len = 0;
}

void buf_reserve(struct buf *b, size_t more) {
    CHECK(more <= SIZE_MAX - b->len);
    size_t need = b->len + more;
    if (need <= b->cap)
        return;
    size_t cap = MAX(b->cap * 2, (size_t)64);
    b->cap = MAX(cap, need);
    b->data = xrealloc(b->data, b->cap);
}

uint8_t *buf_extend(struct buf *b, size_t more) {
    buf_reserve(b, more);
    uint8_t *p = b->data + b->len;
    b->len += more;
    return p;
}

void buf_append(struct buf *b, const void *data, size_t len) {
    if (len > 0)
        memcpy(buf_extend(b, len), data, len);
}

void buf_append_str(struct buf *b, const char *s) {
    buf_append(b, s, strlen(s));
}

void buf_printf(struct buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    CHECK(n >= 0);
    buf_reserve(b, (size_t)n + 1);
    vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, again);
    va_end(again);
    b->len += (size_t)n;
}

const char *buf_cstr(struct buf *b) {
    buf_reserve(b, 1);
    b->data[b->len] = '\0';
    return (const char *)b->data;
}
