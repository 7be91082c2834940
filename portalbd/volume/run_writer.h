/* Writing a map run: entries in the order of sectors -> pages -> parts -> objects under map/.
 * Fibers. */
#pragma once

#include "common/fiber.h"
#include "portalbd/format/root.h"
#include "portalbd/objstore/objstore_fiber.h"

struct run_writer;

/* own: the volume under whose prefix the objects go. */
struct run_writer *run_writer_new(struct env *env, struct objstore *store,
                                  const struct volume_key *own);
/* fiber. Entries come in the order of sectors and do not overlap; `owner` is the volume that
 * entry->ref belongs to (NULL for ZERO and HOLE; entry->ref.volume is ignored). Adjacent ZERO or
 * HOLE entries of one kind are joined. */
int run_writer_add(struct run_writer *w, const struct map_entry *entry,
                   const struct volume_key *owner, struct err *e);
/* fiber. Stores the last part and the index. *ret_run: index reference (with volume 0),
 * entry_count, size; its age is the caller's. A run without entries stores nothing and returns
 * entry_count 0. */
int run_writer_finish(struct run_writer *w, struct root_run *ret_run, struct err *e);
/* Frees it; what was stored and is not named by anybody is garbage that a later scrub condemns. */
void run_writer_free(struct run_writer *w);
