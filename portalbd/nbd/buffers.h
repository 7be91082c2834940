/* Payload buffers that are used again and again: a few sizes, a list of free ones for each, and a
 * cap on what lies unused. Owner thread. */
#pragma once

#include "common/list.h"

enum {
    NBD_BUFFER_CLASSES = 5,                    /* 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB */
    NBD_BUFFERS_CACHED_MAX = 16 * 1024 * 1024, /* bytes that lie unused */
};

struct nbd_buffers {
    struct list_node spares[NBD_BUFFER_CLASSES];
    size_t cached; /* bytes */
};

void nbd_buffers_init(struct nbd_buffers *b);
void nbd_buffers_release(struct nbd_buffers *b);
/* len > 0. The bytes are not initialised. */
uint8_t *nbd_buffers_get(struct nbd_buffers *b, size_t len);
/* With the len it was got for. */
void nbd_buffers_put(struct nbd_buffers *b, uint8_t *data, size_t len);
