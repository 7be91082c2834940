/* CRC32C (Castagnoli), the checksum of every region on the store and of every PUT. Any thread. */
#pragma once

#include "common/view.h"

/* The CRC32C of v: of "123456789" it is 0xe3069283. */
uint32_t crc32c(struct view v);

/* The CRC32C of what `crc` is the CRC32C of, followed by v. Starts with 0: the CRC32C of nothing.
 */
uint32_t crc32c_extend(uint32_t crc, struct view v);
