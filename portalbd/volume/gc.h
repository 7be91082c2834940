/* GC of a live volume, by its writer: finds what no root of ours needs any more, condemns it in a
 * manifest, and deletes what no pin needs (design §2.3; docs/architecture.md says how). Owner
 * thread; fibers where it says so. */
#pragma once

#include "portalbd/volume/volume_internal.h"

struct gc *gc_new(struct volume *v);
void gc_free(struct gc *g);

/* A segment of ours was stored. */
void gc_note_segment(struct gc *g, uint64_t seq, uint64_t size, const struct segment_table *t);
/* The volume serves, or its list of runs has changed: looks after the garbage, a little later, so
 * that one round does for several changes. */
void gc_wake(struct gc *g);
/* No background work begins any more, and what is under way stops at its next step. */
void gc_stop(struct gc *g);
/* Makes the next manifest condemn what the round under way wants to delete. */
void gc_fill_manifest(struct gc *g, struct manifest *m);
/* fiber. One last pass before a clean close, for what is known already. An error is no reason not
 * to close. */
void gc_at_close(struct gc *g);
/* fiber. Everything that is owed: scrub, rounds until nothing more can be deleted. */
int gc_collect(struct gc *g, struct err *e);
/* Bytes of own objects that the runs name, as of the last look. */
uint64_t gc_live_bytes(const struct gc *g);
/* How many bytes a second may be written, so that GC keeps up: PACE_FREE when it does, or when it
 * could not whatever writers did. */
uint64_t gc_write_rate(const struct gc *g);
void gc_status(const struct gc *g, struct volume_status *ret);
