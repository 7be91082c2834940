/* What the files of GC share. Only gc*.c and moving*.c include this.
 *
 * Who does what:  gc.c when GC runs, its passes · gc_mark.c what is known of the prefix, and what
 * of it is garbage · gc_round.c condemning and deleting · moving.c objects that are mostly dead ·
 * held_pins.c what a clone holds in its source. */
#pragma once

#include "portalbd/volume/gc.h"
#include "portalbd/volume/own_objects.h"
#include "portalbd/volume/small_segments.h"

enum {
    MANIFESTS_SPARED = 32, /* old ones that are no reason for a round */
};

struct gc {
    struct volume *v;
    struct fiber_mutex mutex; /* one pass at a time */
    struct env_timer timer;
    bool running; /* the background fiber */
    bool again;   /* ... has more to do */
    bool moved;   /* in the pass under way, or the last one */
    bool stopped;
    struct waitq stopping; /* fibers: resting */
    bool condemning;       /* our own manifest is no reason to wake us */
    bool scrubbed;
    struct own_objects objects;
    uint16_t mark;
    size_t garbage, held; /* objects, as of the last sweep */
    uint64_t garbage_bytes, held_bytes, live_bytes;
    uint64_t debt_bytes;     /* dead ones in objects that moving would take, at the last sweep */
    uint64_t noted_bytes;    /* of segments, since the last sweep */
    uint64_t unjudged_bytes; /* of segments that the runs did not name yet then */
    double stored_lately, live_lately; /* bytes of segments, and how much live ones grew */
    uint64_t began_us;                 /* the pass */
    uint64_t paid_us; /* when some of the debt was paid, or the first pass began; 0: never */
    uint64_t step_us; /* how long that had taken */
    struct small_segments small;     /* tables of those that this process stored */
    struct condemned_list condemned; /* of the round under way */
    struct pin_list pins;            /* whose needs these are: */
    struct pin_needs needs;
    bool needs_known;
    struct object_name *suspects; /* owned: parts and indexes that the scrub found */
    size_t suspect_count;
    uint64_t *old_manifests; /* owned: numbers that the scrub found */
    size_t old_manifest_count;
    struct obj_ref *dropped; /* owned: evacuated objects that no run of our root names any more */
    size_t dropped_count;
    uint64_t manifests_from; /* from here on all below the newest are ours to delete */
};

/* Who wants to end now says so between two steps. */
bool gc_must_stop(const struct gc *g);
/* Some of the debt has been paid. */
void gc_paid(struct gc *g);
/* So much of it that everything else has to wait. */
bool gc_is_behind(const struct gc *g);

/* --- gc_mark.c --- */
struct object_name object_name_of_ref(const struct obj_ref *ref);
/* Is this key the volume's own? */
bool gc_is_own(const struct gc *g, const struct volume_key *owner);

/* The newest stored root, as it is at one moment. */
struct gc_snapshot {
    struct run_reader *runs[ROOT_RUNS_MAX]; /* a reference of each */
    size_t run_count;
    struct root root; /* a copy; its evacuated objects are sorted */
    bool *named;      /* owned: of those, which a run names */
};
void gc_snapshot_take(struct gc_snapshot *s, const struct volume *v);
void gc_snapshot_release(struct gc_snapshot *s);

/* fiber. Lists the prefix once, so that what this process did not write is known. */
int gc_scrub(struct gc *g, struct err *e);
/* fiber. Brings states, counts and live bytes up to date with the newest stored root. */
int gc_find_garbage(struct gc *g, struct err *e);

/* --- gc_round.c --- */
uint64_t gc_old_manifests(const struct gc *g);
/* fiber. Have the pins changed since the last look? Then what they held is garbage again, and
 * moving looks anew. */
int gc_reconsider_held(struct gc *g, struct err *e);
/* fiber. What the pins of this volume hold now is g->needs, unless *ret_blocked. */
int gc_look_at_pins(struct gc *g, bool *ret_blocked, struct err *e);
/* fiber. Is our newest manifest the newest? -ERR_FENCED breaks the volume. */
int gc_check_newest(struct gc *g, struct err *e);
/* fiber. Condemns and deletes. *ret_progress: another round may find more to do. */
int gc_round(struct gc *g, bool *ret_progress, struct err *e);

/* --- held_pins.c --- */
/* fiber. Gives up the pins that a clone holds in others, when nothing of ours needs them. */
int gc_release_held_pins(struct gc *g, struct err *e);
