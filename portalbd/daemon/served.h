/* One volume (or snapshot, read-only) that this process serves: its lock, the engine, the device
 * with its counters, the control socket. Owner thread. */
#pragma once

#include "portalbd/blockdev/stats.h"
#include "portalbd/control/server.h"
#include "portalbd/daemon/disk_file.h"
#include "portalbd/daemon/journal_file.h"
#include "portalbd/daemon/pool.h"
#include "portalbd/volume/volume.h"

struct served;

/* What the process hears of a volume and does for its control socket. */
struct served_hooks {
    void (*owned)(void *arg); /* fiber: it is ours; a successor resumes */
    /* It is FENCED or ERROR: every request is refused from now on. */
    void (*out_of_use)(void *arg, struct served *s, const struct err *why);
    void (*shutdown)(void *arg); /* the control socket asks the process to end */
    void (*grown)(void *arg);    /* fiber: the device has grown */
    /* fiber. The verbs of these names: what is answered, and a copy of the device's descriptor. */
    int (*device)(void *arg, json_t **ret_result, int *ret_fd, struct err *e);
    int (*handover)(void *arg, json_t **ret_result, int *ret_fd, struct err *e);
};

struct served_config {
    struct loop *loop;
    struct pool *pool;
    const char *run_dir;
    const char *command;     /* what the lock's file says: "serve" or "attach" */
    const char *journal_dir; /* NULL: journals in memory, gone with the process */
    const char *state_dir;
    bool resume;             /* as in struct volume_config */
    struct metrics *metrics; /* may be NULL */
    bool scraped;            /* somebody may look at the metrics at any time, on another thread */
    uint64_t journal_size;   /* bytes; 0: the engine's default, like the next */
    uint64_t cache_size;
    const char *disk_cache; /* a folder; NULL: none */
    uint64_t disk_cache_size;
    uint64_t flush_coalesce_us;
    struct metrics_gauge *broken; /* borrowed: how many volumes are out of use */
    const struct served_hooks *hooks;
    void *arg;
};

struct served_target {
    char id[ID_MAX];                /* "pv-..." or "snap-..." with its pool */
    char name[ENTITY_NAME_MAX + 1]; /* "" when it is not known */
    struct volume_key key;          /* of the volume */
    uint32_t publish_epoch;         /* of a volume */
    bool is_snapshot;
    struct random_id pin; /* of a snapshot */
    bool read_only;
};

/* Between the volume and the layers that outlive it. */
struct served_gate {
    struct blockdev dev;
    struct blockdev *volume; /* NULL: gone, every request is refused */
    uint64_t size_bytes;     /* when it went */
};

struct served {
    struct served_config config;
    struct served_target target;
    int lock_fd;
    struct journal_file *journal; /* NULL: none, or in memory */
    struct disk_file *disk;       /* NULL: no disk cache */
    struct volume *volume;        /* NULL after served_drop */
    struct served_gate gate;
    struct blockdev *dev; /* what front ends use: a layer that counts, over the gate */
    struct control_server *control;
    bool owned; /* step 5 of Open was reached */
    bool broken;
    bool closing;
    bool closed;       /* volume_close returned 0: everything is in the store */
    bool keep_journal; /* also then: by its id a successor knows that nobody else had the volume */
    struct metrics_group *metrics;
    struct served_metrics *values;
};

/* fiber. Locks, opens, listens. -ERR_IN_USE: another daemon of this node serves it. */
int served_open(const struct served_config *config, const struct served_target *target,
                struct served **ret, struct err *e);
/* The same in two steps, for who publishes between them: first what only this node can refuse (of
 * target: id, is_snapshot), then the rest. Does the second fail -> served_drop, served_free. */
int served_prepare(const struct served_config *config, const struct served_target *target,
                   struct served **ret, struct err *e);
int served_start(struct served *s, const struct served_target *target, struct err *e); /* fiber */

/* Had a daemon of the same command (serve, attach) the volume last, which does not run any more? */
bool served_is_left_over(const struct served_config *config, const char *id);

/* Of locks and journals: made when they are not there; files can be made in them. */
int served_check_folders(const struct served_config *config, struct err *e);

/* fiber. Everything into the store, clean close. Cancelled, it gives up; afterwards -> served_drop.
 */
int served_close(struct served *s, struct err *e);
/* fiber. Takes the control socket away and drops the volume; requests that are still under way end
 * with ESHUTDOWN. */
void served_drop(struct served *s);
/* When no front end uses the device any more. Unlocks; the journal, and the lock's file with it,
 * stays unless all is in the store. */
void served_free(struct served *s);

/* Brings the engine's metrics up to date; once a second it happens by itself when `scraped`. */
void served_sample(struct served *s);
/* Registers and unregisters them; served.c's own. */
void served_metrics_start(struct served *s);
void served_metrics_stop(struct served *s);
/* Which writes are not in the store, in words; "" when all are. */
void served_describe_unsaved(struct served *s, char *text, size_t size);
/* "shm": nothing is lost when this process dies; "memory": what is not flushed is. */
const char *served_journal_kind(const struct served *s);

/* verbs.c: the control socket's verbs. */
int served_control(void *arg, const char *verb, const json_t *args, json_t **ret_result,
                   int *ret_fd, struct err *e);
