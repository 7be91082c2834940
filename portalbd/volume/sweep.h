/* The sweeper: pins whose makers or deleters died (design §2.3, model snaprec). Safe at any time,
 * beside any number of others. */
#pragma once

#include "portalbd/volume/pins.h"

#define SWEEP_INTERVAL_US (UINT64_C(10) * 60 * 1000 * 1000) /* between the two looks at a pin */

/* What earlier rounds saw: pins that nothing live named. Lives in the background job. */
struct pin_suspect {
    struct volume_key volume;
    struct random_id pin;
    uint64_t since_us; /* env time of the round that saw it first */
    uint64_t round;    /* the last one that saw it */
};
struct pin_sweeper {
    struct pin_suspect *items; /* owned */
    size_t count;
    uint64_t round; /* counts the passes over the pool */
    struct random_id
        *expired; /* owned: pins known to have nothing but an expired root, which stays */
    size_t expired_count;
};
enum { PIN_SUSPECTS_MAX = 65536, PIN_EXPIRED_MAX = 65536 }; /* more are left for a later round */

void pin_sweeper_release(struct pin_sweeper *w);
/* Begins a pass over all volumes; pins that the pass does not meet any more are forgotten by
 * pin_sweeper_end. */
void pin_sweeper_begin(struct pin_sweeper *w);
void pin_sweeper_end(struct pin_sweeper *w);

/* fiber. Does something live name this pin: the newest snapshot record in the folder of its commit
 * key, or the newest manifest of the clone? Costs 1 or 2. */
int pin_is_named(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                 const struct commit_key *commit, bool *ret_named, struct err *e);

/* fiber. Looks at all pins of one volume: sweeps those that are unnamed now and were so at least
 * SWEEP_INTERVAL_US ago, remembers new ones. Adds to the counts. Costs 1 + about 3 a pin. */
int pin_sweep_volume(struct pin_sweeper *w, struct env *env, struct objstore *s,
                     const struct volume_key *v, size_t *swept, size_t *suspected, struct err *e);
