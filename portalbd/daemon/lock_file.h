/* Files that are locked for the life of a process. */
#pragma once

#include "common/err.h"

/* Opens (0600, made when it is not there, no symbolic link) and locks the file at path, which must
 * be ours. A lock counts only while its file is still the one at the path: who ends may remove it
 * while it holds the lock. The lock goes with the descriptor. -ERR_IN_USE: another process has it.
 */
int lock_file_take(const char *path, int *ret_fd, struct err *e);
