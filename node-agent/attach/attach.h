/* How a volume becomes a block device of this kernel: the interface of the attach backends.
 *
 * A backend keeps no state of its own: what is attached is read from the kernel each time, so an
 * agent that starts anew finds everything. The life of a device:
 *
 *     prepare   the kernel's side is made; gives the descriptor for the daemon
 *     (the daemon is started with it and serves)
 *     attach    the block device appears
 *     grow      any time in between
 *     detach    the block device goes, then the kernel's side; the daemon sees the end of its
 *               descriptor
 *
 * All functions block (system calls, and requests that the daemon answers) and are called on worker
 * threads, one at a time for each volume. A daemon that is dead makes them fail, not hang; one that
 * hangs is killed by who called. Volume ids were checked: 1..63 bytes of [A-Za-z0-9._-]. */
#pragma once

#include <sys/types.h>

#include "common/err.h"

enum {
    ATTACH_VOLUME_MAX = 64,   /* bytes of a volume id, its NUL included */
    ATTACH_PATH_MAX = 32,     /* bytes of a device's path, its NUL included */
    ATTACH_DEVICES_MAX = 512, /* devices on a node */
};

struct attach_device {
    char volume[ATTACH_VOLUME_MAX];
    char path[ATTACH_PATH_MAX]; /* "/dev/loop3"; "": prepared, and no device yet */
    uint64_t size_bytes;        /* as the kernel knows it */
};

struct attach_devices {
    struct attach_device *items; /* owned */
    size_t count;
};
void attach_devices_release(struct attach_devices *d);
const struct attach_device *attach_devices_find(const struct attach_devices *d, const char *volume);

struct attach_backend;
struct attach_ops {
    const char *name;
    /* Can this node do it? -ERR_UNSUPPORTED says what is missing. */
    int (*probe)(struct attach_backend *b, struct err *e);
    /* ret_fd: for the daemon alone; the caller closes it once the daemon runs, so that the kernel
     * ends the device by itself when the daemon dies. -ERR_EXISTS: prepared already. */
    int (*prepare)(struct attach_backend *b, const char *volume, int *ret_fd, struct err *e);
    int (*attach)(struct attach_backend *b, const char *volume, bool read_only,
                  struct attach_device *ret, struct err *e);
    /* -ERR_BUSY: mounted, or open by somebody. Nothing there is success. force: every request that
     * is under way or comes later fails, and the device goes when its last user does. */
    int (*detach)(struct attach_backend *b, const char *volume, bool force, struct err *e);
    /* The daemon serves size_bytes already. */
    int (*grow)(struct attach_backend *b, const char *volume, uint64_t size_bytes, struct err *e);
    /* The daemon is dead or about to be killed: every request fails from now on. The device stays
     * until detach. */
    void (*fail)(struct attach_backend *b, const char *volume);
    /* Everything of this kind and run folder that the kernel knows. */
    int (*discover)(struct attach_backend *b, struct attach_devices *ret, struct err *e);
    void (*close)(struct attach_backend *b); /* frees the backend; devices stay */
};

struct attach_backend {
    const struct attach_ops *ops;
};

/* A one-file FUSE mount in <run_dir>/devices and a loop device over it. */
int attach_fuse_open(const char *run_dir, struct attach_backend **ret, struct err *e);
