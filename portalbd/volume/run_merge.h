/* Merging runs into one: newest wins. Fiber, in slices. */
#pragma once

#include "portalbd/volume/run_reader.h"
#include "portalbd/volume/run_writer.h"

/* fiber. sources: newest first. bottom: nothing older is left, so HOLE entries are dropped (ZERO
 * entries stay: an allocated zero differs from a hole in BLOCK_STATUS). *ret_run as
 * run_writer_finish. */
int run_merge(struct env *env, struct objstore *store, const struct volume_key *own,
              struct run_reader *const *sources, size_t source_count, bool bottom,
              struct root_run *ret_run, struct err *e);
