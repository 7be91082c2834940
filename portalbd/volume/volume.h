/* A volume: the writer of one append-only log on the object store, served as a block device (design
 * in docs/architecture.md).
 *
 * Everything runs on the owner thread of config.env. A volume is opened, flushed, grown,
 * checkpointed and closed by fibers; block device requests go through volume_blockdev() and
 * complete by callback. */
#pragma once

#include "common/env.h"
#include "portalbd/blockdev/blockdev.h"
#include "portalbd/format/root.h"
#include "portalbd/objstore/objstore.h"

struct volume;

enum volume_health {
    VOLUME_HEALTH_OK,
    VOLUME_HEALTH_WAITING, /* the store does not answer: I/O pauses */
    VOLUME_HEALTH_FULL,    /* the map is as large as it can be: writes are refused with
                              -ERR_NO_SPACE until something is trimmed; everything else goes on */
    VOLUME_HEALTH_ERROR,   /* a durable step failed for good: every write from then on is refused */
    VOLUME_HEALTH_FENCED,  /* another writer has the volume: every request is refused with
                              -ERR_FENCED */
};

/* Where a journal lives that is to outlive the process: `size` bytes at `base`, mapped by the
 * caller and shared with nobody; zero when new. The engine alone knows what is in it
 * (docs/format.md). */
struct journal_memory {
    uint8_t *base;
    uint64_t size; /* a multiple of 4096 */
    /* These bytes may be written from now on without a fault. False: no room now; ask again. */
    bool (*reserve)(struct journal_memory *m, uint64_t off, uint64_t len);
    /* These bytes are not needed any more (whole pages of them are given back). */
    void (*punch)(struct journal_memory *m, uint64_t off, uint64_t len);
    /* Another writer had the volume: these writes, acknowledged here and never stored, must not be
     * replayed. Keeps a copy of the whole memory for people, and says where. Blocking; on a worker.
     * `writes`, `bytes`: what is lost; writes 0: nobody knows, the journal is damaged (the engine
     * has said so). An error stops the open. */
    int (*set_aside)(struct journal_memory *m, uint64_t writes, uint64_t bytes, struct err *e);
};

struct disk_medium; /* portalbd/cache/disk_cache.h */

struct volume_config {
    struct env *env;
    struct objstore *store; /* borrowed; a stack with a retry layer */
    struct volume_key key;
    uint32_t publish_epoch;
    uint64_t journal_size;          /* bytes; 0: 64 MiB; raised to 4 MiB, rounded up to 4096 */
    struct journal_memory *journal; /* borrowed until freed(); its size is the journal's. NULL:
                                       anonymous memory of journal_size, gone with the process */
    bool resume; /* an earlier open of this attachment owned the volume: if another journal than
                    ours is named now, we are fenced; unless it was closed and ours dropped */
    uint64_t cache_size;        /* bytes of RAM cache; 0: 64 MiB */
    struct disk_medium *disk;   /* borrowed until freed(): frames are kept there. NULL: none */
    uint64_t flush_coalesce_us; /* default 0 */
    uint64_t segment_size; /* bytes at which a segment is cut; 0: min(8 MiB, journal_size / 8) */
    uint32_t checkpoint_segments; /* 0: 256 */
    uint32_t checkpoint_extents;  /* 0: 128k */
    uint64_t checkpoint_bytes;    /* of segments, while the volume holds less than eight times as
                                     much; then an eighth of it. 0: 128 MiB */
    uint32_t runs_max;            /* more runs than this are merged whatever it costs; 0: 8 */
    uint32_t map_part_size;       /* bytes of a part of the map, at most 8 MiB; 0: 8 MiB */
    uint32_t map_page_entries;    /* entries of its pages, at most; 0: as many as fit; for tests */
    uint32_t map_parts_max;   /* parts of a run, at least 8; 0: what the format allows. For tests */
    uint64_t gc_delay_us;     /* between a change and the GC round for it; 0: 2 s */
    uint32_t gc_live_percent; /* objects with less than this live are rewritten; 0: 58 */
    uint64_t gc_move_bytes;   /* dead bytes in them that make it worth while; 0: 8 MiB */
    uint32_t flatten_depth;   /* clones that deep get data of their own; 0: 8 */
    bool gc_off;              /* no GC in the background, only volume_collect: for tests */
    bool yields; /* nobody writes, and whoever wants the volume may have it: that it was fenced is
                    told to the caller only, it is no error in the log */
    /* Called at most once, in a later turn, when the volume has become FENCED or ERROR. May be
     * NULL. */
    void (*on_broken)(void *arg, const struct err *why);
    /* The volume is ours (step 5 of Open); replay follows. From here on a successor resumes. In a
     * fiber, before volume_open returns. May be NULL. */
    void (*on_owned)(void *arg);
    void *arg;
};

/* fiber. Opens for writing: fences every other writer; replays the journal. -ERR_NOT_FOUND,
 * -ERR_FENCED (a higher publish epoch is there; when resuming also: another writer came, or what
 * this attachment acknowledged cannot be had any more), -ERR_BUSY (also: no memory for the
 * journal), -ERR_UNSUPPORTED (a newer version's journal), -ERR_CORRUPT, -ERR_CANCELLED. */
int volume_open(const struct volume_config *config, struct volume **ret, struct err *e);

/* fiber. Opens the root that a pin holds, read-only; no epoch, journal or manifest is written. The
 * size is the pin's. */
int volume_open_pin(const struct volume_config *config, const struct random_id *pin,
                    struct volume **ret, struct err *e);

/* Borrowed, as long as the volume. */
struct blockdev *volume_blockdev(struct volume *v);

/* fiber. Everything acknowledged so far is in the store when it returns 0. */
int volume_flush(struct volume *v, struct err *e);
/* fiber. Makes it at least size_bytes (a multiple of 4096) large; the manifest is stored when it
 * returns 0. */
int volume_grow(struct volume *v, uint64_t size_bytes, struct err *e);
/* fiber. Checkpoints what is in memory now; carries out the merges that are due. */
int volume_checkpoint(struct volume *v, struct err *e);
/* fiber. Pays everything that is owed to the store: GC rounds until nothing more can be deleted
 * (what pins need stays until they go). Costs a LIST of the volume's objects once an open.
 * -ERR_FENCED: another writer has taken the volume. */
int volume_collect(struct volume *v, struct err *e);
/* fiber. Flush, checkpoint, closed manifest. Requests that come meanwhile are refused with
 * -ERR_SHUTDOWN. Cancelling the fiber gives up: what is not uploaded stays in the journal. When it
 * returned 0 the journal is empty, and its memory may be dropped. After it, whatever it returned,
 * volume_free. */
int volume_close(struct volume *v, struct err *e);

/* Drops the volume from memory, without any effect on the store: after volume_close, or as a crash.
 * Requests under way end with -ERR_SHUTDOWN. All fibers and store requests of the volume are
 * cancelled; calls freed(arg) in a later turn, when nothing of it is left. */
void volume_free(struct volume *v, void (*freed)(void *arg), void *arg);

struct volume_status {
    enum volume_health health;
    struct err why; /* when not OK */
    uint64_t size_bytes;
    uint32_t block_size;
    uint64_t epoch;
    uint64_t manifest_number;
    uint64_t next_seq;                   /* of the newest manifest */
    uint64_t frontier;                   /* the last seq up to which all segments are stored */
    uint64_t last_write;                 /* number of the last acknowledged write */
    uint64_t durable_write;              /* ... of the last write that is in the store */
    bool journal_outlives;               /* the process: "shm", not "memory" */
    bool journal_starved;                /* writes wait: the system gives the journal no memory */
    uint64_t journal_size, journal_used; /* bytes; the size is that of its memory */
    uint64_t replayed_writes;            /* found in the journal by this open */
    uint64_t unflushed_bytes;            /* acknowledged, not in the store yet */
    uint64_t segments_in_flight;
    uint64_t memtable_extents;
    uint64_t run_count;
    uint64_t map_fill_percent; /* from 100 on the health is FULL */
    uint64_t cache_hits, cache_misses, cache_bytes;
    uint64_t disk_cache_hits, disk_cache_misses; /* lookups of extents */
    uint64_t disk_cache_size, disk_cache_bytes;  /* the size is 0 where there is none */
    uint64_t disk_cache_filled;                  /* bytes written to it */
    uint64_t disk_cache_dropped; /* bytes not written to it, since it was too slow */
    bool disk_cache_off;         /* it failed */
    uint64_t read_waits;         /* reads that another read under way saved from a GET */
    uint64_t read_streams;       /* sequential readers at present */
    uint64_t read_ahead_bytes;   /* fetched before they were asked for */
    uint64_t read_ahead_unread;  /* ... and still not read when their reader was forgotten */
    uint64_t bytes_written, bytes_read, bytes_stored;
    uint64_t write_waits_paced; /* writes that waited: the journal was getting full, or GC behind */
    uint64_t write_waits_full;  /* ... since it was full, or a checkpoint was overdue */
    uint64_t drain_rate;        /* bytes a second that the journal loses when it has something to */
    uint64_t flushes, flush_cuts, checkpoints, merges, map_parts_reused;
    uint64_t gc_scrubs, gc_rounds, gc_objects_deleted, gc_bytes_deleted;
    uint64_t gc_moves, gc_victims, gc_bytes_moved;
    uint64_t gc_debt_bytes;   /* dead bytes that GC could free and has not yet */
    uint64_t gc_debt_wait_us; /* how long writes waited, in all, so that GC keeps up */
    /* Objects under the volume's own prefix, as far as they are known; those of them that are
     * garbage and not deleted yet; those that only snapshots or clones still need. */
    uint64_t gc_objects, gc_bytes, gc_garbage, gc_garbage_bytes, gc_held, gc_held_bytes;
    uint64_t oldest_unflushed_us; /* age of the oldest write that is not in the store */
};
void volume_status(struct volume *v, struct volume_status *ret);
