/* Payload buffers that are used again and again. A free one holds the list's node in its own first
 * bytes. Larger ones than the largest class come from and go to the allocator. */
#include "portalbd/nbd/buffers.h"

#include <stdlib.h>

#include "common/mem.h"

enum { SMALLEST = 4096, FACTOR = 4 };

static size_t class_of(size_t len, size_t *ret_size) {
    size_t size = SMALLEST, class = 0;
    while (class < NBD_BUFFER_CLASSES && size < len) {
        size *= FACTOR;
        class ++;
    }
    *ret_size = class < NBD_BUFFER_CLASSES ? size : len;
    return class;
}

void nbd_buffers_init(struct nbd_buffers *b) {
    b->cached = 0;
    for (size_t i = 0; i < NBD_BUFFER_CLASSES; i++)
        list_init(&b->spares[i]);
}

void nbd_buffers_release(struct nbd_buffers *b) {
    for (size_t i = 0; i < NBD_BUFFER_CLASSES; i++) {
        struct list_node *n;
        while ((n = list_pop_front(&b->spares[i])))
            free(n);
    }
    b->cached = 0;
}

uint8_t *nbd_buffers_get(struct nbd_buffers *b, size_t len) {
    CHECK(len > 0);
    size_t size, class = class_of(len, &size);
    struct list_node *n = class < NBD_BUFFER_CLASSES ? list_pop_front(&b->spares[class]) : NULL;
    if (!n)
        return xmalloc(size);
    b->cached -= size;
    return (uint8_t *)n;
}

void nbd_buffers_put(struct nbd_buffers *b, uint8_t *data, size_t len) {
    size_t size, class = class_of(len, &size);
    if (class == NBD_BUFFER_CLASSES || b->cached + size > NBD_BUFFERS_CACHED_MAX) {
        free(data);
        return;
    }
    struct list_node *n = (struct list_node *)(void *)data;
    *n = (struct list_node){0};
    list_push_front(&b->spares[class], n);
    b->cached += size;
}
