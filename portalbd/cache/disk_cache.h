/* The disk cache: stored frames of objects on a local disk, keyed by the place that they have in
 * the store. Objects never change, so nothing is ever invalidated. What comes out is verified by
 * the frames' own checksums like what comes from the store.
 *
 * A log in a ring: what was read or written first is overwritten first. The index is in memory
 * alone, so what a process left behind is worth nothing: the medium is made anew each time. Trouble
 * of the medium is a reason to turn the cache off, for good, and is nobody else's trouble. Owner
 * thread. */
#pragma once

#include "common/buf.h"
#include "common/env.h"
#include "common/err.h"
#include "portalbd/format/ids.h"

/* Where the bytes lie. The functions block and run on workers, several at a time. */
struct disk_medium {
    uint64_t size; /* bytes; at least DISK_CACHE_SIZE_MIN */
    int (*read)(struct disk_medium *m, uint64_t off, uint8_t *buf, size_t len, struct err *e);
    int (*write)(struct disk_medium *m, uint64_t off, struct view data, struct err *e);
};

enum {
    DISK_CACHE_SIZE_MIN = 64 * 1024 * 1024,
    DISK_GRANULE = 64 * 1024, /* bytes of an object that one entry of the index covers at most */
    DISK_ENTRIES_MAX = 768 * 1024,          /* of the index: 34 MiB of memory */
    DISK_FILL_BYTES_MAX = 16 * 1024 * 1024, /* that wait to be written; beyond, nothing is kept */
};

struct disk_cache;

struct disk_cache *disk_cache_new(struct env *env, struct disk_medium *m); /* m: borrowed */
/* When nobody is in disk_fill_run and no read is under way. */
void disk_cache_free(struct disk_cache *c);

/* An object. */
struct disk_key {
    uint64_t volume; /* a hash of whose it is */
    uint64_t object;
};
struct disk_key disk_key_of(const struct volume_key *owner, const struct obj_ref *ref);

/* --- reading --- */

/* Are bytes [off, off + len) of the object there, in one piece? *ret_pos says where. */
bool disk_cache_find(struct disk_cache *c, const struct disk_key *key, uint32_t off, uint32_t len,
                     uint64_t *ret_pos);
/* Any thread; blocking. */
int disk_cache_read(const struct disk_cache *c, uint64_t pos, uint8_t *buf, size_t len,
                    struct err *e);
/* After the read: was it what `find` promised, or overwritten meanwhile? */
bool disk_cache_still_valid(const struct disk_cache *c, uint64_t pos);

/* --- filling --- */

struct disk_fill;

/* The bytes of an object from `off` on (taken over). NULL, and bytes freed: not now. */
struct disk_fill *disk_fill_new(struct disk_cache *c, const struct disk_key *key, uint32_t off,
                                struct buf *bytes);
/* `count` frames that follow each other from `off` on. */
void disk_fill_frames(struct disk_fill *f, uint32_t off, const uint16_t *lens, size_t count);
/* fiber. Writes and frees it; what was named can then be found. After an error the caller turns the
 * cache off: what the index says may not be there any more. */
int disk_fill_run(struct disk_fill *f, struct err *e);

/* --- state --- */

/* Nothing is found or kept any more. */
void disk_cache_turn_off(struct disk_cache *c);

struct disk_cache_stats {
    uint64_t hits, misses;  /* of disk_cache_find */
    uint64_t bytes;         /* that can be found */
    uint64_t filled_bytes;  /* since the start */
    uint64_t dropped_bytes; /* not kept, since too much was waiting to be written */
    bool off;
};
struct disk_cache_stats disk_cache_stats(const struct disk_cache *c);
