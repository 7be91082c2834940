/* The mount table of this process, and changes to it (libmount). All calls may block on the
 * filesystem and are bounded: -ERR_BUSY means that the operation goes on (csi/mount/job.h). Any
 * thread. Paths are absolute. */
#pragma once

#include <sys/types.h>

#include "common/err.h"

enum {
    MOUNT_TEXT_MAX = 256,        /* bytes of a filesystem's type and of mount options kept */
    MOUNT_TIMEOUT_MS = 90000,    /* replaying a journal may take this long */
    MOUNT_OPTIONS_MAX = 4096,    /* bytes; the CSI limit of mount flags */
    MOUNT_UMOUNT_LAYERS_MAX = 16 /* mounts on top of each other at one path */
};

struct mount_entry {
    dev_t dev;                   /* the filesystem's device */
    char root[1024];             /* the directory (or device node) in it that is shown */
    char fstype[MOUNT_TEXT_MAX]; /* "ext4" */
    bool read_only;              /* this mount, or the filesystem */
};

/* The topmost mount at exactly this path. -ERR_NOT_FOUND: nothing is mounted there. Does not touch
 * the filesystem. */
int mount_find(const char *path, struct mount_entry *ret, struct err *e);

/* Calls fn for each mount of a device: of its filesystem, or of its device node on a file (block
 * volumes). fn returns false to end. */
int mount_for_each_of_device(dev_t device, const char *device_path,
                             bool (*fn)(void *arg, const char *target), void *arg, struct err *e);

/* Mounts a filesystem. options: "a,b=c", may be "". Returns when the mount table shows it. */
int mount_device(const char *device, const char *target, const char *fstype, const char *options,
                 bool read_only, struct err *e);

/* Shows the mounted folder, or a device node, at another place as well. */
int mount_bind(const char *source, const char *target, bool read_only, struct err *e);

/* Unmounts everything at this path; nothing there is success. A mount that does not go within
 * timeout_ms (a dead device) is detached when `force` is set, else -ERR_BUSY. */
int mount_unmount(const char *path, bool force, uint32_t timeout_ms, struct err *e);
