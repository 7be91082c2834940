/* Pins: how a snapshot or a clone holds a root of a volume that goes on living (design §2.3, models
 * snaprec, pins, chain).
 *
 *   volumes/<id>/pins/<random>.claim   put first: from then on GC deletes nothing in <id> until the
 *                                      root is there. Names the commit key.
 *   volumes/<id>/pins/<random>.root    put if absent: what is held; or "expired", by the sweeper.
 *   the commit key                     a snapshot record that names the pin, or the first manifest
 *                                      of a clone that does: what makes the pin live, until a
 *                                      newer one names it no more.
 *
 * I11 a snapshot is live <=> its newest record, the claim and the root are there.
 * The id is random and used once, so that nobody ever goes on with another maker's pin; the commit
 * key is chosen before the claim (traces 6 and 14). Fibers; the store has a retry layer. */
#pragma once

#include "portalbd/volume/takeover.h"

enum {
    PIN_ATTEMPTS_MAX = 16,
    PINS_MAX = 65536, /* of one volume */
};

/* Step 1: puts the claim of a new pin. -ERR_STALE: swept at once, after a lost answer: again. Costs
 * 1. */
int pin_claim_new(struct env *env, struct objstore *s, const struct volume_key *v,
                  const struct commit_key *commit, struct random_id *ret_pin, struct err *e);

/* Steps 2 and 3 of a snapshot, after the claim: what the volume has durably right now becomes the
 * pin's root. -ERR_NOT_FOUND: the volume has no manifest or is deleted. -ERR_STALE: a sweeper took
 * the pin for dead: give it up, start again with a new one. Costs 5. */
int pin_cut(struct env *env, struct objstore *s, const struct volume_key *v,
            const struct random_id *pin, const struct commit_key *commit, struct pin_root *ret,
            struct err *e);

/* Step 3 alone: puts *root (pin, commit and nonce are filled in) as the root of a claimed pin: for
 * a clone of a snapshot, whose root is known. -ERR_STALE as above. Costs 1. */
int pin_root_put(struct env *env, struct objstore *s, const struct volume_key *v,
                 const struct random_id *pin, const struct commit_key *commit,
                 struct pin_root *root, struct err *e);

/* -ERR_NOT_FOUND: there is none. An expired one is returned with `expired` set. Costs 1. */
int pin_root_get(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                 struct pin_root *ret, struct err *e);
/* -ERR_NOT_FOUND: there is none. */
int pin_claim_get(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                  struct pin_claim *ret, struct err *e);

/* Gives a pin up for good, once nothing live names it (its maker lost; its snapshot has a
 * tombstone; its clone is deleted and needs it no more): deletes the claim, then the root (claim
 * first, so that a pin that hands over to another never leaves its objects without both: trace 8).
 * Call it only for a pin whose root is not "expired". Idempotent. Costs 2. */
int pin_release(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                struct err *e);
/* The same for a maker that never got its root in: "expired" may be there and stays. Costs 1. */
int pin_release_claim(struct objstore *s, const struct volume_key *v, const struct random_id *pin,
                      struct err *e);

/* A root as seen from a clone: the clone is [0] of the table, every reference is renumbered. The
 * numbers of the clone's own segments go on behind the source's next_seq, so that ages of runs stay
 * in order. -ERR_OVERLOAD: the table is full. `to` is uninitialised. */
int root_rebase(struct root *to, const struct root *from, const struct volume_key *own,
                struct err *e);

/* The pins of a volume, as a LIST shows them. */
struct pin_entry {
    struct random_id pin;
    bool has_claim;
    bool has_root; /* real or expired */
};
struct pin_list {
    struct pin_entry *items; /* owned; sorted by id */
    size_t count;
};
void pin_list_release(struct pin_list *l);
bool pin_list_equal(const struct pin_list *a, const struct pin_list *b);
/* One LIST; keys that are no pins are passed over. */
int pin_list_once(struct objstore *s, const struct volume_key *v, struct pin_list *ret,
                  struct err *e);
/* GC's step 2: LISTs until two in a row agree (a LIST is not atomic: trace 8). -ERR_BUSY when that
 * does not happen within PIN_ATTEMPTS_MAX. Costs 2. */
int pin_list_stable(struct objstore *s, const struct volume_key *v, struct pin_list *ret,
                    struct err *e);
