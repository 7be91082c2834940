/* The block device as protocols (nbd, fuse) see it and volumes implement it. Bytes and offsets,
 * asynchronous, on one owner thread. Layers wrap any device and are devices themselves: validate,
 * throttle, stats, record, delay, fault. */
#pragma once

#include "common/err.h"
#include "common/list.h"

enum bd_op {
    BD_READ,
    BD_WRITE,
    BD_FLUSH,
    BD_TRIM,
    BD_WRITE_ZEROES,
    BD_CACHE,
    BD_BLOCK_STATUS,
    BD_OPS
};

enum bd_flags {
    BD_FUA = 1,       /* WRITE, TRIM, WRITE_ZEROES: durable before it is answered */
    BD_NO_HOLE = 2,   /* WRITE_ZEROES: the range reads as allocated zeroes, not as a hole */
    BD_FAST_ZERO = 4, /* WRITE_ZEROES: only if it is fast (here it always is) */
    BD_REQ_ONE = 8,   /* BLOCK_STATUS: one extent is enough */
};

enum {
    BD_REQUEST_MAX = 64 * 1024 * 1024, /* bytes of one READ or WRITE */
    BD_STATUS_EXTENTS_MAX = 4096,      /* extents in one BLOCK_STATUS answer */
};

/* The values of NBD's base:allocation. */
enum { BD_EXTENT_HOLE = 1, BD_EXTENT_ZERO = 2 };
struct bd_extent {
    uint64_t len;   /* bytes, > 0 */
    uint32_t state; /* BD_EXTENT_x */
};

struct bd_request {
    enum bd_op op;
    unsigned flags; /* bd_flags */
    uint64_t off;   /* bytes; multiple of 512 */
    uint64_t len;   /* bytes; multiple of 512; 0 only for FLUSH */
    union {
        uint8_t *read_buf;         /* READ: len bytes, borrowed until done */
        const uint8_t *write_data; /* WRITE: len bytes, borrowed until done */
        struct { /* BLOCK_STATUS: filled from off on, at least one, together at most len bytes */
            struct bd_extent
                *items; /* room for BD_STATUS_EXTENTS_MAX (1 with REQ_ONE), borrowed until done */
            size_t count;
        } extents;
    };
    void (*done)(struct bd_request *req);
    int rc;            /* 0 or -ERR_x, once done */
    uint64_t start_us; /* layers' own */

    /* The device's own while the request is with it. */
    struct list_node node;
    void *priv;
    uint64_t dev_state[4];
};

struct blockdev;

struct blockdev_ops {
    bool (*submit)(struct blockdev *dev, struct bd_request *req);
    uint64_t (*size_bytes)(struct blockdev *dev);
    void (*close)(struct blockdev *dev); /* frees a layer and what is below; no request under way */
};

struct blockdev {
    const struct blockdev_ops *ops;
    bool read_only;
    uint32_t block_size_min;       /* bytes; what requests must be aligned to: 512 */
    uint32_t block_size_preferred; /* bytes: 4096 */
};

/* True: done on return, rc is set and done() is not called. False: done() is called later, once,
 * never inside bd_submit. FLUSH covers every WRITE, TRIM and WRITE_ZEROES that was done before it
 * was submitted, whoever submitted them. The request must lie inside the device and be aligned
 * (blockdev/validate.h checks what comes from outside). */
static inline bool bd_submit(struct blockdev *dev, struct bd_request *req) {
    return dev->ops->submit(dev, req);
}

/* Bytes, now; grows while the device is in use, never shrinks. */
static inline uint64_t bd_size_bytes(struct blockdev *dev) {
    return dev->ops->size_bytes(dev);
}
