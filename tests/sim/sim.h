/* What the files of the simulator share: one run, its processes, volumes and snapshots.
 *
 *   run.c         a run from seed to verdict: limits, turns, settling
 *   plan.c        which part of a run is carried out
 *   director.c    what happens to whom, and when (pick.c, trouble.c; settle.c: the end)
 *   daemon.c      a process that has a volume (or a snapshot) open
 *   journals.c    the journals on the nodes, and what must be found in them
 *   client.c      block requests to a daemon, checked against the model
 *   controller.c  a process that works with the catalog, and its tasks
 *   restores.c    snapshots restored in place: when, and what the model hears of it
 *   scenarios.c   counts how often the scenarios of docs/protocol.md were met
 *   guard.c       the bucket all the time: nothing needed is deleted (needs.c: what is needed)
 *   json_memo.c   each object in JSON is decoded once in a run
 *   bounds.c      what a volume holds in memory stays within its limits
 *   audit.c       the bucket at the end: everything needed is there, nothing else */
#pragma once

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog.h"
#include "portalbd/objstore/hedge.h"
#include "portalbd/volume/volume.h"
#include "tests/sim/checker.h"
#include "tests/sim/needs.h"
#include "tests/sim/plan.h"
#include "tests/sim/sim_env.h"
#include "tests/sim/sim_store.h"
#include "tests/support/memory_medium.h"
#include "tests/support/ram_journal.h"

enum { NODES = 3, CONTROLLERS = 2, EPOCHS_MAX = 256, SIM_FINDING_MAX = FINDING_MAX + 64 };
#define SIM_POOL "sim"

struct sim_options {
    uint64_t seed;
    uint64_t operations;  /* block operations, at least */
    struct sim_plan plan; /* borrowed */
    uint32_t *step;       /* borrowed; tells the step of the director under way; may be NULL */
    bool trace;
    bool verbose;
};

/* --- scenarios.c --- */

enum scenario {
    S1_OPENER_OVERTAKEN,
    S2_GAP_AT_FENCE,
    S2_ZOMBIE_FILLS_GAP,
    S2_FENCE_MEETS_SEGMENT,
    S3_THREE_OPENERS,
    S3_FENCE_MEETS_FENCE,
    S4_LATE_SEGMENT_AFTER_DELETE,
    S4_LATE_MANIFEST_AFTER_DELETE,
    S4_LATE_ROOT_AFTER_DELETE,
    S5_KILL_IN_OPEN,
    S5_KILL_IN_OPEN_TWICE,
    S5_LATE_MANIFEST,
    S5_KILL_IN_REPLAY,
    S5_OTHER_NODE_BETWEEN,
    S6_PAUSE_IN_DELETE,
    S6_PAUSE_IN_ROUND,
    S6_KILL_IN_ROUND,
    S6_RESTORE_BESIDE_WRITER,
    S6_RESTORE_OF_DELETED,
    S6_PAUSE_IN_RESTORE,
    S6_KILL_IN_RESTORE,
    S7_KILL_IN_SNAPSHOT,
    S7_PAUSE_IN_SNAPSHOT,
    S7_TWO_MAKERS,
    S7_EXPIRED_ROOT,
    S8_PINS_CHANGE_IN_LIST,
    S9_SNAPSHOT_DURING_OPEN,
    S9_SNAPSHOT_DURING_CHECKPOINT,
    S9_SNAPSHOT_DURING_RESTORE,
    S10_KILL_IN_CHECKPOINT,
    S11_DELETE_WITH_SNAPSHOTS,
    S11_DELETE_WITH_CLONES,
    S11_ZOMBIE_AFTER_DELETE,
    S12_OLD_EPOCH_RESTARTS,
    SCENARIO_COUNT
};
extern const char *const scenario_names[SCENARIO_COUNT];

/* What a run was like; plain data, may be added up. */
struct sim_totals {
    uint64_t scenarios[SCENARIO_COUNT];
    uint64_t operations, reads_checked, cuts_checked, records_lost;
    uint64_t opens, opens_fenced, crashes, sleeps, closes, fenced;
    uint64_t respawns, resumes_fenced, nothing_lost_checked, replays, writes_replayed;
    uint64_t journals_set_aside, reserves_refused;
    uint64_t snapshots, clones, restores, deletes, read_only_opens, grows;
    uint64_t collects, maintained, fscks, hedges;
    uint64_t checkpoints, merges, gc_rounds, gc_deleted, gc_moves, parts_reused, cache_hits,
        cache_misses, disk_hits, disks_failed, flushes;
    uint64_t writes_waited, window_full, blackouts, lists;
    uint64_t requests[OBJ_DELETE + 1], store_errors, late_effects, duplicates;
    uint64_t tasks, tasks_killed, pins_swept;
    uint64_t objects_freed; /* content of volumes, and pins */
    uint64_t objects_left, objects_fences, objects_manifests;
    uint64_t turns, virtual_ms, steps, daemons, controllers;
    uint64_t digest; /* of all that ran: equal for equal seeds */
};

/* --- totals.c --- */
void sim_totals_add(struct sim_totals *to, const struct sim_totals *from);
void sim_totals_show(const struct sim_totals *t, uint64_t runs);

struct sim;
struct daemon;
struct controller;

void scenarios_watch_store(struct sim *s); /* sets the bucket's observer */
void scenarios_note(struct sim *s, enum scenario which);
void scenarios_at_submit(struct sim *s, struct sim_proc *p, enum obj_verb verb, const char *key);
void scenarios_at_sleep(struct sim *s, struct sim_proc *p);
void scenarios_at_kill(struct sim *s, struct sim_proc *p);
/* A daemon has become the writer; a daemon is about to open. */
void scenarios_opened(struct sim *s, struct daemon *d);
void scenarios_opening(struct sim *s, struct daemon *d);

/* --- volumes and snapshots as the run knows them --- */

/* UNBORN: perhaps created; DYING: perhaps deleted. */
enum existence { UNBORN, LIVE, DYING, DEAD };

struct snap {
    struct list_node node; /* on sim->snaps */
    char name[32];
    struct sim_volume *source;
    struct image *image;
    enum existence state; /* UNBORN: a create was tried, nobody knows */
    char id[ID_MAX];
    struct volume_key volume; /* that has the pin */
    struct random_id pin;
    unsigned makers;   /* tasks that make it now */
    unsigned users;    /* tasks and daemons that hold this struct's content */
    unsigned restores; /* tasks that began to restore it */
    struct root *root; /* owned; what its pin holds; NULL: nobody has asked yet */
};
void snap_release(struct snap *n);

/* The journal of a volume on one node: a file on its tmpfs, and what its agent knows. It outlives
 * the daemons that use it, one at a time (they lock it). */
struct sim_journal {
    struct ram_journal ram; /* memory.base NULL: nobody has used it yet */
    struct sim_volume *vol;
    struct daemon *user;    /* NULL: nobody has it open */
    uint64_t publish_epoch; /* of the attachment on this node */
    bool owned;             /* a daemon of that attachment has owned the volume: the next resumes */
    bool foreign;           /* the newest manifest is another's (or there is none of ours yet) */
    struct reign *reign;    /* the last that was served from here; NULL: or all of it is uploaded */
    bool reign_broken;      /* another's manifest was the newest at some time since */
    bool broken;            /* ... since the last daemon's own first manifest */
};

/* The medium of a disk cache. */
struct sim_disk {
    struct list_node node; /* on sim->disks */
    struct memory_medium memory;
};

struct sim_volume {
    struct list_node node; /* on sim->volumes */
    struct sim_journal journals[NODES];
    uint64_t manifest_newest; /* number */
    char manifest_by;         /* the kind of its maker: the first letter of its name */
    char name[32];
    enum existence state;
    char id[ID_MAX];
    struct volume_key key;
    struct model_volume *model; /* from LIVE on */
    struct snap *from_snap;     /* of a clone; or ... */
    struct sim_volume *from_volume;
    struct image *origin;
    uint64_t size_bytes; /* asked for at creation */
    bool published;
    bool unpublish_doubtful; /* one may have freed it behind the last publish, whatever that said */
    uint64_t publish_epoch;  /* of the last publish that succeeded */
    unsigned kills_in_open;  /* in a row */
    unsigned busy;           /* lifecycle tasks under way */
    uint8_t node_of[EPOCHS_MAX]; /* publish epoch -> node + 1 that it was given out to */
    unsigned tasks_begun;        /* lifecycle tasks so far */
    unsigned opens_begun;        /* daemons that were started so far */
    unsigned snaps, clones;      /* made of it that may live */
    unsigned restores;           /* tasks that began one */
    unsigned restoring;          /* ... and are under way */
};

/* A step at which processes of this run like to fall asleep: right after they asked the store for
 * this. */
struct sore_spot {
    enum obj_verb verb;
    const char *part; /* of the key; NULL: there is no such step */
    unsigned per_mille;
    bool sleeps_long; /* sometimes for longer than the sweeper waits */
};

struct sim {
    struct sim_options options;
    struct sim_world world;
    struct sim_bucket *bucket;
    struct sim_faults calm, storm;
    struct sore_spot spots[2];
    struct sore_spot ambush; /* once, for this process: */
    struct sim_proc *ambushed;
    struct checker checker;
    struct guard *guard; /* owned */
    struct sim_totals totals;
    struct sim_proc director;
    struct list_node daemons;
    struct list_node controllers;
    struct list_node volumes;
    struct list_node snaps;
    struct volume_config limits; /* of this run's daemons */
    unsigned disk_rate;          /* per mille of daemons that have a disk cache */
    struct list_node disks;      /* that no daemon uses: what is on them is old */
    bool hedging;
    struct hedge_options hedge;
    uint32_t hot_sectors;
    uint32_t fill_left;  /* small writes with which the run begins */
    uint64_t size_bytes; /* of new volumes */
    unsigned client_count;
    unsigned write_weight, trim_weight, flush_weight;
    uint64_t think_us;
    unsigned next_number;            /* for names */
    struct sim_journal **journal_of; /* owned; by the number in a daemon's name; NULL: in memory */
    size_t journal_of_count;
    bool loyal; /* volumes mostly stay on their node: its daemons die, and others rarely come */
    unsigned memory_mode_rate; /* per mille of daemons whose journal dies with them */
    bool stopping;             /* no new operations */
    bool quiet;                /* clients wait */
    bool time_wanted;          /* somebody sleeps for long: let the time pass */
    bool done;
};

#define sim_fail(s, ...) checker_fail(&(s)->checker, __VA_ARGS__)

/* --- daemon.c --- */

enum daemon_state { DAEMON_OPENING, DAEMON_READING, DAEMON_SERVING, DAEMON_CLOSING, DAEMON_ENDED };

struct daemon {
    struct list_node node; /* on sim->daemons */
    struct sim_proc proc;
    struct sim *sim;
    struct sim_volume *vol;
    struct snap *snap; /* read-only; else NULL */
    uint32_t publish_epoch;
    uint64_t size_min;      /* of the volume, acknowledged before it started */
    struct objstore *below; /* the handle in the bucket */
    struct objstore *store; /* owned: the retry layer over it */
    enum daemon_state state;
    struct volume *volume; /* while open */
    struct reign *reign;
    struct sim_journal *journal; /* NULL: in memory */
    struct sim_disk *disk;       /* owned; NULL: none */
    bool resume;
    bool named;     /* a manifest of ours was the newest */
    bool overtaken; /* ... and the one before it was another's */
    bool unbroken;  /* ... and nobody else came since the journal's reign began */
    size_t clients; /* fibers of client.c */
    size_t calls;   /* fibers inside volume_... */
    struct waitq changed;
    bool stop;          /* clients end, then the daemon */
    bool close;         /* ... with a clean close */
    bool collect;       /* ... before which all that is owed is paid */
    bool dead;          /* killed: what it says is not heard */
    bool slept_in_open; /* scenarios: fell asleep while it opened */
    bool checkpointing; /* scenarios: put a part of a run, but no manifest since */
    bool collecting;    /* scenarios: listed pins, but put no manifest since */
};

/* On some node. */
struct daemon *daemon_start(struct sim *s, struct sim_volume *vol, uint64_t publish_epoch);
/* What the agent does when a daemon died: the same attachment goes on. False: there is nothing that
 * could go on. */
bool daemon_respawn(struct sim *s, struct sim_journal *j);
struct daemon *daemon_start_read_only(struct sim *s, struct snap *snap);
void daemon_stop(struct daemon *d, bool close);
/* As a power cut. Frees it. */
void daemon_kill(struct daemon *d);
/* Frees those that have ended. */
void daemons_reap(struct sim *s);
static inline bool daemon_is_writer(const struct daemon *d) {
    return d->snap == NULL;
}

/* --- journals.c --- */

/* A new daemon's journal: of some node, or of this attachment. */
void journals_pick(struct daemon *d);
void journals_resume(struct daemon *d, struct sim_journal *j);
void journals_register(struct daemon *d, unsigned number);
/* What a daemon went through. */
void journals_owned(void *daemon); /* volume_config.on_owned */
void journals_opened(struct daemon *d);
void journals_open_failed(struct daemon *d, int rc);
void journals_closed(struct daemon *d); /* clean */
void journals_let_go(struct daemon *d); /* nothing of it is left */
/* The reign of which this daemon must have found everything that was acknowledged, or NULL. */
struct reign *journals_expected_reign(struct daemon *d);
/* The bucket has a new newest manifest of a volume; client: who put it. */
void journals_manifest_stored(struct sim *s, struct sim_volume *vol, const struct sim_effect *x);
void journals_release(struct sim_volume *vol);

/* --- client.c --- */

/* fiber. Reads everything that the model knows of; values for each place into found. */
int client_read_all(struct daemon *d, uint32_t *found);
/* Starts a fiber that sends requests until d->stop. */
void client_start(struct daemon *d);

/* --- controller.c --- */

enum task_kind {
    TASK_PREPARE,
    TASK_CREATE,
    TASK_PUBLISH,
    TASK_UNPUBLISH,
    TASK_EXPAND,
    TASK_DELETE,
    TASK_SNAPSHOT,
    TASK_FIND_SNAPSHOT,
    TASK_DELETE_SNAPSHOT,
    TASK_RESTORE,
    TASK_MAINTAIN,
    TASK_FSCK,
    TASK_LIST,
    TASK_BACKGROUND,
    TASK_KINDS
};

struct task {
    enum task_kind kind;
    struct controller *controller;
    struct sim_volume *vol;
    struct snap *snap;
    unsigned node; /* PUBLISH, UNPUBLISH: NODES: whatever */
    bool steal;    /* PUBLISH; DELETE: force */
    bool start;    /* PUBLISH: start a daemon with what came out */
    uint64_t size_bytes;
    bool at_rest; /* FSCK: nothing else goes on, so nothing at all may be found */
};

struct controller {
    struct list_node node; /* on sim->controllers */
    struct sim_proc proc;
    struct sim *sim;
    struct objstore *below;
    struct objstore *store; /* owned */
    struct catalog catalog;
    struct background background;
    size_t tasks;
    size_t tasks_of[TASK_KINDS];
    bool dead;
};

struct controller *controller_start(struct sim *s);
void controller_kill(struct controller *c);
/* Starts it in a fiber of the controller. The task is copied. */
void controller_submit(struct controller *c, const struct task *t);

/* --- restores.c --- */
void restores_begin(struct sim *s, struct sim_volume *vol, struct snap *n);
/* The bucket has a new newest manifest of this volume. */
void restores_manifest_stored(struct sim *s, struct sim_volume *vol, const struct sim_effect *x);

/* --- guard.c --- */
struct guard *guard_new(struct sim *s);
void guard_free(struct guard *g);
/* Before a DELETE, after a PUT. */
void guard_on_effect(struct sim *s, const struct sim_effect *x);
struct needs *guard_needs(struct sim *s);

/* --- bounds.c --- */
void bounds_check(const struct daemon *d); /* in a turn of anybody */
void bounds_check_all(struct sim *s);
void bounds_check_manifest(struct sim *s, const char *key, const struct manifest *m);

/* --- audit.c --- */
bool audit_newest_manifest(struct sim *s, const struct volume_key *v, struct manifest *ret);
void audit_bucket(struct sim *s);

/* --- director.c --- */
void director_draw_spots(struct sim *s);
/* fiber of sim->director: the disturbed part of a run. */
void director_run(struct sim *s);
/* fiber of sim->director: everything comes to rest, is read once more, and swept. */
void director_settle(struct sim *s);

/* --- json_memo.c --- */
void json_memo_clear(void);

/* --- run.c --- */

/* What processes of this run have over their handle in the bucket. */
struct objstore *store_stack(struct sim *s, struct objstore *below);
/* Requests that were sent a second time. */
uint64_t store_stack_hedges(const struct sim *s, const struct objstore *stack);

/* One run. Returns false and fills finding (SIM_FINDING_MAX bytes) when something was found. */
bool sim_run(const struct sim_options *options, struct sim_totals *totals, char *finding);
void name_format(char *to, size_t size, const char *prefix, unsigned number);
