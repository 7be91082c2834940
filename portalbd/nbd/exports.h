/* Where the server gets what it serves from: something that finds block devices by name. Owner
 * thread. */
#pragma once

#include "common/err.h"
#include "portalbd/blockdev/blockdev.h"
#include "portalbd/nbd/handshake.h"

struct nbd_exports;

/* One search. Lives until done has been called. */
struct nbd_lookup {
    const char *name; /* borrowed; valid UTF-8; "" asks for the default */
    void (*done)(struct nbd_lookup *l);

    /* The answer. */
    int rc;
    struct err err;          /* in words for the client */
    struct blockdev *dev;    /* borrowed until close */
    const char *description; /* borrowed until close; may be NULL; at most NBD_DESCRIPTION_MAX */
    void *handle;            /* for close */
};

struct nbd_listing {
    void (*done)(struct nbd_listing *l);

    int rc;
    struct err err;
    struct nbd_list_entry *entries; /* owned, strings too; at most NBD_LIST_MAX */
    size_t count;
};
void nbd_listing_add(struct nbd_listing *l, const char *name, const char *description);
void nbd_listing_release(struct nbd_listing *l);

struct nbd_exports_ops {
    /* Each calls done once, in a later turn. It may take its time: it may open a volume. */
    void (*open)(struct nbd_exports *x, struct nbd_lookup *l);
    void (*list)(struct nbd_exports *x, struct nbd_listing *l);
    /* For each successful open: no request of that user is under way. */
    void (*close)(struct nbd_exports *x, void *handle);
};

struct nbd_exports {
    const struct nbd_exports_ops *ops;
};
