/* Reading and writing the variable-length integers of bulk objects.
 *
 * A varint is LEB128: seven bits a byte, the lowest first, the high bit set on all but the last; at
 * most ten bytes, and never longer than needed (one number has one encoding). Signed deltas are
 * zigzag-coded first.
 *
 * The reader never reads outside of its view and its error is sticky: after anything that does not
 * fit, `bad` is set, every later read gives 0, and the decoder looks once, at the end of a loop's
 * turn. */
#pragma once

#include "common/buf.h"
#include "common/bytes.h"
#include "common/err.h"

enum { VARINT_MAX = 10 }; /* bytes of the longest varint */

static inline size_t varint_put(uint8_t *out, uint64_t v) {
    size_t n = 0;
    while (v >= 0x80) {
        out[n++] = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    out[n++] = (uint8_t)v;
    return n;
}

static inline size_t varint_size(uint64_t v) {
    size_t n = 1;
    while (v >= 0x80) {
        v >>= 7;
        n++;
    }
    return n;
}

static inline void varint_append(struct buf *b, uint64_t v) {
    uint8_t bytes[VARINT_MAX];
    buf_append(b, bytes, varint_put(bytes, v));
}

static inline uint64_t zigzag(int64_t v) {
    return ((uint64_t)v << 1) ^ (v < 0 ? UINT64_MAX : 0);
}

static inline int64_t unzigzag(uint64_t v) {
    return (int64_t)((v >> 1) ^ ((v & 1) ? UINT64_MAX : 0));
}

struct reader {
    const uint8_t *data; /* borrowed */
    size_t len;
    size_t pos; /* <= len */
    bool bad;
};

static inline struct reader reader_of(struct view v) {
    return (struct reader){.data = v.data, .len = v.len};
}

static inline size_t reader_left(const struct reader *r) {
    return r->bad ? 0 : r->len - r->pos;
}

static inline uint8_t reader_u8(struct reader *r) {
    if (r->bad || r->pos == r->len) {
        r->bad = true;
        return 0;
    }
    return r->data[r->pos++];
}

static inline uint64_t reader_varint(struct reader *r) {
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        uint8_t b = reader_u8(r);
        uint64_t bits = b & 0x7f;
        if (shift == 63 && bits > 1)
            break;
        v |= bits << shift;
        if (!(b & 0x80)) {
            if (b == 0 && shift > 0)
                break; /* longer than needed */
            return r->bad ? 0 : v;
        }
    }
    r->bad = true;
    return 0;
}

/* A varint that must be <= max. */
static inline uint64_t reader_varint_max(struct reader *r, uint64_t max) {
    uint64_t v = reader_varint(r);
    if (v > max) {
        r->bad = true;
        return 0;
    }
    return v;
}

/* len bytes, borrowed from the view; NULL when there are fewer. */
static inline const uint8_t *reader_bytes(struct reader *r, size_t len) {
    if (r->bad || len > r->len - r->pos) {
        r->bad = true;
        return NULL;
    }
    const uint8_t *p = r->data + r->pos;
    r->pos += len;
    return p;
}

static inline bool bytes_are_zero(const uint8_t *p, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (p[i] != 0)
            return false;
    return true;
}
