/* The tmpfs of a size of its own that journals live in. */
#pragma once

#include "common/err.h"

/* Mounts a tmpfs of size_bytes on <run_dir>/journals, unless something is mounted there: that stays
 * as it is. 0: nothing is done, journals are in the file system of run_dir. It is never unmounted:
 * journals outlive the agent. Blocks. */
int journal_space_mount(const char *run_dir, uint64_t size_bytes, struct err *e);
