/* Clones of clones of clones get data of their own (design §2.3: at depth 8 a clone is flattened by
 * moving). Part of GC. */
#pragma once

#include "portalbd/volume/gc_internal.h"

enum { FLATTEN_DEPTH = 8 }; /* clones away from a volume that stands alone */

/* fiber; after gc_find_garbage, g->mutex held. Nothing, for a volume that is less deep. *ret_moved:
 * the root has changed. */
int gc_flatten(struct gc *g, bool *ret_moved, struct err *e);

/* --- held_pins.c --- */
/* Does the root, or a run of it, name anything of another volume? */
bool gc_needs_others(const struct gc *g);
/* --- levels.c --- */
/* fiber. All runs become one, without any part of another volume. */
int levels_rewrite(struct volume *v, struct err *e);
