/* A secret text (a key, a token, a password) in a type that cannot be printed by accident: it is no
 * char *, -Wformat refuses it, and its bytes are wiped before they are freed. Any thread, one at a
 * time. Zero-initialised is empty and valid. */
#pragma once

#include "common/view.h"

enum { SECRET_MAX = 16 * 1024 }; /* bytes; session tokens may be some KiB */

struct secret {
    struct {
        uint8_t *data; /* owned, NUL-terminated; NULL when empty */
        size_t len;    /* bytes without the NUL */
    } hidden;          /* only secret.c and the accessors below look in here */
};

void secret_release(struct secret *s);
/* A copy of v; false, and s becomes empty, when it is longer than SECRET_MAX or holds a NUL. */
bool secret_set(struct secret *s, struct view v);
void secret_copy(struct secret *to, const struct secret *from);
bool secret_equal(const struct secret *a, const struct secret *b); /* in constant time */
/* Overwrites memory; is not optimised away. */
void secret_wipe(void *p, size_t len);

static inline bool secret_empty(const struct secret *s) {
    return s->hidden.len == 0;
}

/* The bytes themselves, for who signs or sends; borrowed until s changes. Not for logs or errors.
 */
static inline struct view secret_reveal(const struct secret *s) {
    return view_of(s->hidden.data, s->hidden.len);
}

#define CLEANUP_SECRET CLEANUP(secret_release)
