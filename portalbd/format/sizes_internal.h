/* Sizes of volumes as format 1 allows them. */
#pragma once

#include "portalbd/format/segment.h"

static inline bool size_valid(uint64_t size_bytes) {
    return size_bytes % 4096 == 0 && size_bytes <= SECTORS_MAX * SECTOR_SIZE;
}

static inline bool block_size_valid(uint32_t block_size) {
    return block_size == 512 || block_size == 4096;
}
