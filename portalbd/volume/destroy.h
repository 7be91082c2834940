/* Deleting a volume's content, once its record says deleted (design §2.3). Every step may be
 * repeated by anybody, here or elsewhere, at any time. Fibers. */
#pragma once

#include "portalbd/volume/pins.h"

/* The first manifest of a volume that is deleted before it was there: a tombstone at a clone's
 * commit key, by the sweeper or a deletion. The caller releases it. */
void manifest_tombstone_init(struct manifest *m, struct env *env, const struct volume_key *v);

/* A complete open, then a manifest "deleted" with an empty root and everything condemned; for a
 * volume that never got a manifest, the first one says deleted. From then on nobody opens,
 * snapshots or clones it. publish_epoch: what the deleted record says; a newest manifest above it
 * is beaten by one more (its id is never used again, so nobody else is published with that).
 * Idempotent: costs 2 when it is done already, else about 10 + a LIST of its objects. */
int volume_destroy(struct env *env, struct objstore *s, const struct volume_key *v,
                   uint32_t publish_epoch, struct err *e);

struct volume_collected {
    size_t objects_deleted;
    bool waiting; /* snapshots or clones hold pins (or a claim has no root yet): come again */
};

/* GC rounds of a deleted volume: deletes what no pin needs, and once no pin of its own is left, the
 * pins that it holds in others. Fences, the first and the newest manifest and expired roots stay
 * for ever. -ERR_NOT_FOUND: it is not deleted. Costs 4 and the LISTs when nothing is left to do. */
int volume_collect_deleted(struct env *env, struct objstore *s, const struct volume_key *v,
                           struct volume_collected *ret, struct err *e);
