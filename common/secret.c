/* Secrets: owned, bounded, wiped. */
#include "common/secret.h"

#include <stdlib.h>

#include "common/mem.h"

void secret_wipe(void *p, size_t len) {
    if (len > 0)
        explicit_bzero(p, len);
}

void secret_release(struct secret *s) {
    secret_wipe(s->hidden.data, s->hidden.len);
    free(s->hidden.data);
    *s = (struct secret){0};
}

bool secret_set(struct secret *s, struct view v) {
    secret_release(s);
    if (v.len == 0)
        return true;
    if (v.len > SECRET_MAX || memchr(v.data, '\0', v.len))
        return false;
    s->hidden.data = xmalloc(v.len + 1);
    memcpy(s->hidden.data, v.data, v.len);
    s->hidden.data[v.len] = '\0';
    s->hidden.len = v.len;
    return true;
}

void secret_copy(struct secret *to, const struct secret *from) {
    if (to != from)
        CHECK(secret_set(to, secret_reveal(from)));
}

bool secret_equal(const struct secret *a, const struct secret *b) {
    if (a->hidden.len != b->hidden.len)
        return false;
    uint8_t differ = 0;
    for (size_t i = 0; i < a->hidden.len; i++)
        differ |= (uint8_t)(a->hidden.data[i] ^ b->hidden.data[i]);
    return differ == 0;
}
