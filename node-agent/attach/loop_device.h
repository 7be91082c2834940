/* Loop devices of the kernel: direct I/O, 4096-byte blocks, found by the file behind them.
 * Blocking; any thread. See loop(4) and drivers/block/loop.c. */
#pragma once

#include "common/err.h"

enum { LOOP_DEVICE_PATH_MAX = 32, LOOP_DEVICE_BLOCK_SIZE = 4096 };

/* A free loop device over the open file. name: what losetup's users see of it, at most 63 bytes. */
int loop_device_attach(int file_fd, const char *name, bool read_only,
                       char ret_path[LOOP_DEVICE_PATH_MAX], struct err *e);
/* -ERR_NOT_FOUND: no loop device over this file. Asks sysfs alone: never blocks on the file. */
int loop_device_find(const char *file_path, char ret_path[LOOP_DEVICE_PATH_MAX], struct err *e);
/* Bytes, as sysfs says; 0: there is none. */
uint64_t loop_device_size_bytes(const char *path);
/* -ERR_BUSY: somebody has it mounted or open; with `force` it then goes when they let go of it, and
 * that is success. Not attached any more is success. */
int loop_device_detach(const char *path, bool force, struct err *e);
/* Takes over the file's new size; -ERR_STALE when the device is smaller than that afterwards. */
int loop_device_grow(const char *path, uint64_t size_bytes, struct err *e);
