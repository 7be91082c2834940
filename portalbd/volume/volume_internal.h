/* What the files of the engine share: the state of one open volume. Only files of portalbd/volume/
 * include this.
 *
 * Who does what:  volume.c lifecycle, dispatch, status · open.c recovery · replay.c the journal at
 * an open · write.c journal, cuts, PUT pipeline, frontier, flush · read.c reads ·
 * disk_fill.c what goes to the disk cache · lookup.c where sectors are, block status · read_ahead.c
 * sequential readers · checkpoint.c memtable
 * -> run -> manifest, grow, close · levels.c the list of runs, merges · map_limit.c when the map is
 * full · gc.c garbage. */
#pragma once

#include "common/fiber.h"
#include "portalbd/cache/disk_cache.h"
#include "portalbd/cache/page_cache.h"
#include "portalbd/cache/ram_cache.h"
#include "portalbd/volume/journal.h"
#include "portalbd/volume/manifest_store.h"
#include "portalbd/volume/memtable.h"
#include "portalbd/volume/pace.h"
#include "portalbd/volume/run_reader.h"
#include "portalbd/volume/run_writer.h"
#include "portalbd/volume/segment_build.h"
#include "portalbd/volume/takeover.h"
#include "portalbd/volume/volume.h"

#define STARVED_RETRY_US (100 * 1000) /* how long a journal that gets no memory waits */

enum {
    FLUSH_SLOTS = WINDOW / 4,   /* of the window, only for cuts that a flush waits for */
    CUT_AFTER_US = 1000 * 1000, /* age of the oldest write in the open segment */
    OPEN_PIECES_MAX =
        24 * 1024,  /* extents that the open segment may become: well below SEGMENT_EXTENTS_MAX */
    BUILDS_MAX = 4, /* segments being built; when workers lag behind this, data goes raw */
    BACKLOG_SEGMENTS_MAX = 4096, /* segments since the checkpoint; from here on new writes wait */
    BACKLOG_EXTENTS_MAX = 512 * 1024, /* extents in memory; the same */
    WAITING_AFTER_US =
        5 * 1000 * 1000, /* a PUT this old: the health says that we wait for the store */
};

enum {
    READ_STREAMS_MAX = 8,     /* sequential readers that are told apart */
    READ_CANDIDATES_MAX = 16, /* places where a sequential reader may have begun */
};

/* A sequential reader (read_ahead.c). */
struct read_stream {
    uint64_t next;      /* the sector behind its last READ; 0: no stream */
    uint64_t ahead;     /* sectors below it are in the cache or under way */
    uint64_t window;    /* how many sectors `ahead` is to be before `next` */
    uint64_t grown_at;  /* `next` when the window grew */
    uint64_t last_used; /* read_ahead.clock */
};

struct read_ahead {
    struct read_stream streams[READ_STREAMS_MAX];
    struct {
        uint64_t next; /* 0: none */
        uint64_t bytes;
    } candidates[READ_CANDIDATES_MAX];
    unsigned candidate_at; /* the one that is replaced next */
    uint64_t clock;        /* counts the READs of streams */
    unsigned ops;          /* fetches under way */
};

enum volume_state {
    /* OPEN --volume_close--> CLOSING --volume_free--> FREEING
     * OPEN, CLOSING --volume_break, after a 412 or a failed durable step--> FENCED or ERROR
     * --volume_free--> FREEING */
    VOL_OPEN,
    VOL_CLOSING,
    VOL_FENCED,
    VOL_ERROR,
    VOL_FREEING,
};

/* A segment between its cut and the frontier. */
struct segment {
    struct volume *volume;
    struct env_job job;
    struct segment_build build;
    struct obj_request put;
    char key[KEY_MAX];
    struct view parts[3];
    uint64_t seq;
    uint64_t cut_us;
    bool putting; /* the PUT is under way */
    bool stored;
};

struct volume {
    struct blockdev dev;
    struct volume_config config;
    struct env *env;
    struct objstore *store;
    enum volume_state state;
    struct err why; /* when FENCED or ERROR */
    bool read_only;
    struct random_id pin; /* of a read-only volume */
    struct manifest
        manifest; /* the newest of ours that is stored; of a read-only volume: made from the pin */
    uint64_t size_bytes;
    struct env_event broken_event;
    bool opening; /* volume_open has not returned: it says itself what broke */

    /* Writes: what is acknowledged and where it is. */
    struct journal *journal;
    struct memtable *active;
    struct memtable *frozen;  /* being checkpointed, or NULL */
    uint64_t frozen_last_seq; /* everything up to it is in frozen */
    uint64_t frozen_last_write;
    struct {
        uint64_t from; /* journal position of its first record */
        uint64_t to;   /* ... behind its last: below the journal's head only in a replay */
        uint64_t bytes;
        uint64_t pieces; /* an upper bound of its extents */
        uint64_t records;
        uint64_t first_us;
        bool flush_wanted;
        bool expired;
    } open;            /* the segment that takes writes */
    uint64_t next_seq; /* of the next cut */
    uint64_t frontier; /* all segments up to it are stored */
    uint64_t last_write;
    uint64_t durable_write;
    struct segment *window[2 * WINDOW]; /* by seq % (2 * WINDOW) */
    unsigned builds;
    uint64_t backlog_segments; /* cut since the last rotation (or in the tail at open) */
    uint64_t backlog_bytes;    /* of segments stored since then */
    uint64_t frozen_segments;  /* the same of the frozen generation */
    bool rotate_wanted;
    struct list_node write_queue; /* bd_request.node: waiting for room, first come first served */
    struct list_node
        flush_queue; /* bd_request.node: dev_state[1] = the write that must be durable, ascending */
    struct env_event cut_event;
    bool cut_posted;
    struct env_timer cut_timer;
    struct env_timer coalesce_timer;
    struct pace pace;
    uint64_t debt_wait_from_us;     /* since when a write waits so that GC keeps up; 0: none does */
    struct env_timer pace_timer;    /* the first waiting write may come */
    struct env_timer starved_timer; /* the journal gets no memory: try again */
    struct waitq frontier_moved;    /* fibers */

    /* Reads. */
    struct ram_cache *cache;
    struct page_cache *pages;
    struct disk_cache *disk;  /* NULL: there is none */
    struct run_reader **runs; /* newest first, as manifest.root.runs */
    size_t run_count;
    struct list_node misses; /* struct read_op, oldest first: reads that use what they looked up */
    uint64_t read_serial;    /* of the newest of them */
    struct waitq read_ended; /* fibers: read_wait_older */
    struct read_ahead ahead;

    /* Merges. */
    struct list_node merges;     /* struct merge, under way */
    struct waitq levels_changed; /* fibers: the list of runs, or what merges */
    struct {
        const struct run_reader *oldest; /* of its sources; NULL: none. Only to be compared */
        uint64_t covered;                /* sectors of it, then */
    } merge_too_large;                   /* the last merge whose result the format cannot hold */
    uint64_t merge_barrier_age;          /* no merge takes runs from both sides of it; 0: none */

    uint64_t map_fill; /* per mille of what makes the map full: map_limit.c */
    bool map_warned, map_full_told;

    /* Checkpoints and manifests. */
    struct fiber_mutex checkpoint_mutex;
    struct fiber_mutex manifest_mutex;
    bool checkpoint_started; /* a background fiber is on its way */

    struct gc *gc; /* NULL when read-only */

    /* What keeps the memory alive. */
    struct list_node fibers; /* struct volume_fiber */
    size_t pending;          /* jobs, store requests, fibers */
    struct env_event freed_event;
    void (*freed)(void *arg);
    void *freed_arg;

    struct volume_status stats; /* counters only; the rest is filled by volume_status */
};

static inline struct run_shape map_shape(const struct volume *v) {
    return (struct run_shape){.part_size = v->config.map_part_size,
                              .page_entries = v->config.map_page_entries};
}

/* Of what merges make. */
static inline struct run_shape merge_shape(const struct volume *v) {
    struct run_shape shape = map_shape(v);
    shape.parts_max = v->config.map_parts_max;
    return shape;
}

/* --- volume.c --- */
struct volume *volume_new(const struct volume_config *config);
/* Starts a fiber that volume_free cancels and waits for. */
void volume_fiber_start(struct volume *v, void (*fn)(struct volume *v, void *arg), void *arg);
/* FENCED or ERROR from now on: queued and later requests fail. Says why; only the first time
 * counts. */
void volume_break(struct volume *v, enum volume_state state, const struct err *why);
/* 0, or why requests are refused in this state. */
int volume_refusal(const struct volume *v);
void volume_pending_done(struct volume *v);
void volume_complete(struct bd_request *req, int rc);
/* Says once what made a READ fail, with its place. */
void volume_report_read_error(struct volume *v, const struct bd_request *req, const struct err *e);

/* --- write.c --- */
void write_init(struct volume *v);
bool write_submit(struct volume *v, struct bd_request *req);
bool flush_submit(struct volume *v, struct bd_request *req);
void write_fail_all(struct volume *v, int rc);
/* So much since the checkpoint that new writes wait for the next one. */
bool write_backlog_full(const struct volume *v);
/* Waiting writes go on if there is room again. */
void write_resume(struct volume *v);
/* Asks for a cut as for a FLUSH. */
void write_want_cut(struct volume *v);
/* May the open segment take one more record? Cuts it when it is full and may be cut. */
bool write_has_room(struct volume *v);
/* A record of the journal, the next in order, becomes part of the volume and of the open segment.
 */
void write_note(struct volume *v, const struct journal_record *r);
/* The next cut (now, when there is nothing to cut) ends the generation of the memtable. */
void write_rotate(struct volume *v);
/* Drops the segments that never passed the frontier; nothing of them is under way. */
void write_drop_window(struct volume *v);
/* fiber. Waits until everything up to this write is durable. */
int write_wait_durable(struct volume *v, uint64_t number, struct err *e);

/* --- read.c --- */
/* Sectors that are being read from the store. Who wants them too waits for `ended`. */
struct read_range {
    uint64_t sector;
    uint64_t count;
};
struct read_op {
    struct list_node node; /* on v->misses */
    uint64_t serial;       /* ascending along the list */
    bool fetches;          /* else it only looks at the map */
    uint64_t sector;
    uint64_t count;
    struct read_range changed[16]; /* written since the map was looked at */
    size_t changed_count;          /* may be more than fit */
    struct waitq ended;
};
/* From before the lookup until nothing of what it found is used any more. */
void read_op_start(struct volume *v, struct read_op *op, uint64_t sector, uint64_t count);
void read_op_end(struct volume *v, struct read_op *op);
/* fiber. Fetches what nobody has asked for yet, into the cache. */
int read_op_run_ahead(struct volume *v, struct read_op *op, struct err *e);
bool read_submit(struct volume *v, struct bd_request *req);
bool block_status_submit(struct volume *v, struct bd_request *req);
bool prefetch_submit(struct volume *v, struct bd_request *req);
void read_mark_changed(struct volume *v, uint64_t sector, uint64_t count);
/* fiber. Waits until all reads up to this serial number have ended. */
int read_wait_older(struct volume *v, uint64_t serial, struct err *e);
/* fiber. What it means that an object which our map names is not there: we are fenced, the snapshot
 * or volume was deleted, or it is corruption. `what` says which object. */
int read_explain_missing(struct volume *v, const char *what, struct err *e);
/* fiber. What it means that an object is not what our map says (`why`): a number of the log is used
 * again when a zombie puts a segment once more behind its deletion, so whoever finds that may be
 * fenced, or reads a snapshot that was deleted; else `why`. */
int read_explain_damage(struct volume *v, const struct err *why, struct err *e);

/* --- disk_fill.c --- */
/* Writes it to the disk cache, some time (NULL: nothing). */
void volume_fill_disk(struct volume *v, struct disk_fill *fill);
/* A segment is stored: what was sent (its frames; taken over) goes to the disk cache, too. */
void volume_fill_disk_segment(struct volume *v, struct segment *s);
/* The disk gives no good data: the cache is off from now on. */
void volume_disk_failed(struct volume *v, const struct err *why);

/* --- read_ahead.c --- */
/* A READ has come; `cached`: the RAM cache has all of it. */
void read_ahead_note(struct volume *v, uint64_t sector, uint64_t count, bool cached);
/* Bytes of the cache that read-ahead may fill before they are read. */
uint64_t read_ahead_budget(uint64_t cache_size);

/* --- checkpoint.c --- */
void checkpoint_maybe_start(struct volume *v);
int checkpoint_now(struct volume *v, struct err *e); /* fiber */
/* fiber; manifest_mutex held. Puts m (a changed copy of v->manifest, number + 1) and makes it
 * v->manifest; takes m over. */
int manifest_advance(struct volume *v, struct manifest *m, struct err *e);
/* fiber. Is v->manifest the newest still? -ERR_FENCED: no, and the volume is out of use. */
int volume_check_newest(struct volume *v, struct err *e);

/* --- levels.c --- */
int open_runs(struct volume *v, struct err *e); /* fiber. run readers for manifest.root.runs */
/* fiber; checkpoint_mutex and manifest_mutex held. m: a changed copy of v->manifest, number + 1,
 * whose runs are still those of v->manifest. Puts it with runs [pos, pos + removed) replaced by
 * `run` (entry_count 0: by nothing) and changes v->runs with it. Takes m and reader (of `run`; NULL
 * when there are no entries) over. */
int run_list_replace(struct volume *v, struct manifest *m, size_t pos, size_t removed,
                     const struct root_run *run, struct run_reader *reader, struct err *e);
/* The same for one more run: at its age, in front of those of the same age. Ask run_list_full
 * first, unless it is a checkpoint's. */
int run_list_insert(struct volume *v, struct manifest *m, const struct root_run *run,
                    struct run_reader *reader, struct err *e);
bool run_list_full(const struct volume *v);
/* Between these two no merge takes runs from both sides of `age`: those of this age or older, and
 * newer ones. To be called when the newest run has this age. One at a time. */
void levels_hold(struct volume *v, uint64_t age);
void levels_release(struct volume *v);
/* Starts the merges that are due, in the background. */
void levels_maybe_start(struct volume *v);
/* fiber. Until one more run is no burden for reads. Without checkpoint_mutex. */
int levels_wait_room(struct volume *v, struct err *e);
/* fiber. Until no merge is under way or due (only_fewer: until there are at most runs_max runs). */
int levels_settle(struct volume *v, bool only_fewer, struct err *e);
/* fiber. All runs of this moment become one: for GC, which sees what is dead only where runs are
 * merged. */
int levels_collapse(struct volume *v, struct err *e);
int levels_stop(struct volume *v, struct err *e); /* fiber. Gives merges up; when closing */

/* --- map_limit.c --- */
enum { MAP_FULL = 1000 };                /* v->map_fill from which on the map is full */
void map_limit_update(struct volume *v); /* the list of runs has changed */
/* Does it need more of a map that is full? */
bool map_limit_refuses(const struct volume *v, const struct bd_request *req);

/* --- replay.c --- */
/* The journal while the volume is being taken over. */
struct journal_opening {
    struct journal_claim claim; /* for volume_takeover */
    const struct volume_config *config;
    struct journal *journal;
};
/* size: bytes of anonymous memory, when config has no other. journal is the caller's. */
int journal_opening_init(struct journal_opening *o, const struct volume_config *config,
                         uint64_t size, struct err *e);
/* fiber. Step 6; last_write is that of manifest and log. */
int journal_replay(struct volume *v, struct err *e);
