/* A bucket as the network shows it: strongly consistent like S3, but answers are late, lost,
 * doubled, refused, and what a client gave up may still happen.
 *
 * One bucket is shared by handles (struct objstore), one or more for each process; the retry layer
 * goes on top. Objects appear whole or not at all, a PUT never replaces. */
#pragma once

#include "portalbd/objstore/objstore.h"
#include "tests/sim/sim_env.h"

struct sim_faults {          /* chances per mille, of a request */
    uint64_t latency_us_max; /* ordinary */
    unsigned slow;           /* ... takes up to slow_us_max instead */
    uint64_t slow_us_max;
    unsigned refused;     /* 500, 503, 429: no effect */
    unsigned timeout;     /* no effect, and no answer for a while */
    unsigned lost_answer; /* the effect, then an error as answer */
    unsigned late;        /* an error as answer, and the effect after that, up to late_us_max */
    unsigned duplicate;   /* PUT, DELETE: the effect again, up to late_us_max later */
    uint64_t late_us_max;
    unsigned conflict;   /* PUT: 409, no effect */
    unsigned short_body; /* GET: the body breaks off */
    unsigned short_page; /* LIST: fewer keys than asked for, and more to come */
    unsigned torn_page;  /* LIST: the second half of the page is read later than the first */
    unsigned torn_pins;  /* ... the same of pins, up to slow_us_max later */
};

/* What happens to an object, told to an observer: after a PUT, before a DELETE. */
struct sim_effect {
    enum obj_verb verb; /* PUT or DELETE */
    const char *key;
    struct view body;   /* PUT: what was to be stored; DELETE: what is there */
    const char *client; /* name of the handle */
    bool stored;        /* PUT: not refused */
    bool existed;       /* before */
    bool was_deleted;   /* the key existed once and was deleted: what is put now (PUT), or what is
                           there (DELETE), came late or doubled */
    bool late;          /* nobody waits for it: after its answer, or its client is dead */
};

struct sim_bucket;

struct sim_bucket *sim_bucket_new(struct sim_world *w, const struct sim_faults *faults);
/* Drops effects that did not happen yet. Handles are closed before. */
void sim_bucket_free(struct sim_bucket *b);
void sim_bucket_set_faults(struct sim_bucket *b, const struct sim_faults *faults);
void sim_bucket_set_observer(struct sim_bucket *b,
                             void (*fn)(void *arg, const struct sim_effect *effect), void *arg);

/* Called in every submit of a process that lives, before anything is drawn. */
void sim_bucket_set_submit_hook(struct sim_bucket *b,
                                void (*fn)(void *arg, struct sim_proc *p, enum obj_verb verb,
                                           const char *key),
                                void *arg);

/* A handle for a process; `name` is for traces. */
struct objstore *sim_store_open(struct sim_bucket *b, struct sim_proc *p, const char *name);
/* The process dies: what it asked for may still happen, at any later time, and is answered with
 * -ERR_CANCELLED; new requests have no effect. Before sim_proc_kill's end. */
void sim_store_cut(struct objstore *store);

/* At once, without a request. Views are borrowed until the object is deleted. */
size_t sim_bucket_count(const struct sim_bucket *b);
void sim_bucket_at(const struct sim_bucket *b, size_t index, const char **ret_key,
                   struct view *ret);
bool sim_bucket_find(const struct sim_bucket *b, const char *key, struct view *ret);
/* Index of the first object whose key is >= key. */
size_t sim_bucket_lower_bound(const struct sim_bucket *b, const char *key);
bool sim_bucket_remove(struct sim_bucket *b, const char *key);

struct sim_bucket_stats {
    uint64_t requests[OBJ_DELETE + 1];
    uint64_t errors; /* answers other than the effect's own */
    uint64_t late;   /* effects that nobody waited for */
    uint64_t duplicates;
    uint64_t torn_pins; /* LISTs of pins that saw two states */
};
const struct sim_bucket_stats *sim_bucket_stats(const struct sim_bucket *b);
/* Operations that are not over: requests that wait for their answer, effects that are still to
 * come. */
size_t sim_bucket_pending(const struct sim_bucket *b);
