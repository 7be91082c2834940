/* A block device in memory, for tests and benches: sparse, all operations, everything answered
 * inline. Wrap it in bd_delay_open to have answers later and in any order. */
#pragma once

#include "portalbd/blockdev/blockdev.h"

/* size_bytes: a multiple of 4096; reserved, not touched. */
struct blockdev *memory_blockdev_open(uint64_t size_bytes);

/* Grows it (size_max_bytes of memory_blockdev_open_growable at most). */
struct blockdev *memory_blockdev_open_growable(uint64_t size_bytes, uint64_t size_max_bytes);
void memory_blockdev_grow(struct blockdev *dev, uint64_t size_bytes);
