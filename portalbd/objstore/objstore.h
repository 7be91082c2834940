/* The object store as everything above sees it: four verbs, asynchronous, on the owner thread of an
 * env.
 *
 * Implementations: memory, file, s3. Layers wrap any store and are stores themselves: retry, stats,
 * limit, fault. Keys are relative to the pool's prefix. Every PUT is conditional ("If-None-Match:
 * *"): objects are immutable, and each body carries a random nonce, so that a PUT whose answer was
 * lost can be settled by reading back.
 *
 * Outcomes that callers act on (rc):
 *
 * 0: done; of a PUT: the object at that key is this body, put by this request. Layers may have sent
 * the request more than once, and a copy that nobody waits for any more takes effect when the store
 * comes to it: what a DELETE took away behind the PUT may be there once more.
 *
 * -ERR_EXISTS, PUT: somebody else's object is there. The retry layer decided so by reading it back:
 * `body` holds up to OBJ_READ_BACK_MAX bytes from its start, object_size is its size.
 *
 * -ERR_STALE, PUT: refused, then gone when read back. The outcome is unknown: look again from the
 * newest.
 *
 * -ERR_NOT_FOUND, GET: a clean "no such key"; never a missing bucket, a short body or a timeout.
 *
 * -ERR_CORRUPT, GET: larger than size_max, or the range does not begin inside the object.
 *
 * -ERR_CANCELLED: cancelled; a PUT or DELETE may or may not take effect, also much later.
 *
 * Below the retry layer also: -ERR_TRANSIENT, -ERR_TIMEOUT, -ERR_DENIED, -ERR_NO_BUCKET, -ERR_IO,
 * -ERR_OVERLOAD, -ERR_CONFIG, and a PUT's -ERR_EXISTS may be one's own.
 *
 * Keys: 1 to OBJ_KEY_MAX bytes, no NUL, at most OBJ_KEY_DEPTH_MAX parts between slashes, none of
 * them empty, "." or ".."; no key is another key plus "/...". */
#pragma once

#include "common/buf.h"
#include "common/env.h"
#include "common/err.h"

enum {
    OBJ_KEY_MAX = 512,               /* bytes of a key, its prefix in the pool included */
    OBJ_KEY_DEPTH_MAX = 32,          /* parts of a key */
    OBJ_LIST_MAX = 1000,             /* keys in one page of a LIST, and in one DELETE */
    OBJ_PUT_PARTS_MAX = 4096,        /* views in the body of one PUT */
    OBJ_READ_BACK_MAX = 64 * 1024,   /* bytes of an existing object that a refused PUT returns */
    OBJ_SIZE_MAX = 64 * 1024 * 1024, /* bytes of any object */
};

enum obj_verb { OBJ_GET, OBJ_PUT, OBJ_LIST, OBJ_DELETE };

struct obj_entry {
    char *key;     /* owned; relative to the pool's prefix */
    uint64_t size; /* bytes */
};

struct obj_request {
    enum obj_verb verb;
    const char *key; /* GET, PUT: the object. LIST: the prefix of the keys. Borrowed until done. */

    /* GET: [off, off + len), or with suffix the last len bytes, or with len 0 the whole. A range
     * that does not begin inside the object is -ERR_CORRUPT (but off 0 of an empty object gives
     * the empty answer); one that ends behind it, or a suffix longer than the object, gives what
     * there is. */
    uint64_t off;
    size_t len;
    bool suffix;
    size_t size_max; /* bytes; a larger answer is refused */

    /* PUT: the body, in parts. Borrowed until done. */
    const struct view *parts;
    size_t part_count;

    /* LIST: one page, in the order of the bytes of the keys, of those > start_after (NULL: from the
     * first on). */
    const char *start_after;
    unsigned keys_max; /* 1..OBJ_LIST_MAX */

    /* DELETE: 1..OBJ_LIST_MAX keys; one that does not exist is deleted already. Borrowed until
     * done. */
    const char *const *keys;
    size_t key_count;

    bool background; /* merges, GC, read-ahead: goes last where requests wait for room */

    /* Called once, on the owner thread, never inside objstore_submit or objstore_cancel. */
    void (*done)(struct obj_request *req);

    /* The answer. */
    int rc;
    struct err err;            /* what went wrong, for people: names verb and key */
    struct buf body;           /* GET (and refused PUT, see above); owned by the request */
    uint64_t object_size;      /* GET: the size of the whole object */
    struct obj_entry *entries; /* LIST; owned by the request */
    size_t entry_count;
    bool more;               /* LIST: there are keys behind this page */
    uint64_t retry_after_us; /* below the retry layer: the store asks for this pause; 0: it said
                                nothing */

    /* The store's own. */
    struct list_node node;
    struct env_event event;
    void *priv;
};

/* Frees what the answer owns and clears the answer: the request may be submitted again. */
void obj_request_release(struct obj_request *req);

const char *obj_verb_name(enum obj_verb verb); /* "get", "put", "list", "delete" */

/* Bytes of a PUT's body, all parts together. */
size_t obj_request_body_len(const struct obj_request *req);

struct objstore;

struct objstore_ops {
    void (*submit)(struct objstore *store, struct obj_request *req);
    void (*cancel)(struct objstore *store, struct obj_request *req);
    void (*close)(struct objstore *store);
};

struct objstore {
    const struct objstore_ops *ops;
    struct env *env;
};

/* The request stays alive and unchanged until done. Owner thread. */
static inline void objstore_submit(struct objstore *store, struct obj_request *req) {
    store->ops->submit(store, req);
}

/* Makes a submitted request end soon, if it has not ended yet: normally with -ERR_CANCELLED. done
 * is still called. May be repeated until then. */
static inline void objstore_cancel(struct objstore *store, struct obj_request *req) {
    store->ops->cancel(store, req);
}

/* Frees the store, and for a layer also the store below. No request may be under way. */
static inline void objstore_close(struct objstore *store) {
    store->ops->close(store);
}
