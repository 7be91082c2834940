/* Filesystems on a device: what is there, making one, checking, growing, counting. Calls block on
 * the device and are bounded: -ERR_BUSY means that the operation goes on, and that the same call
 * waits for it (csi/mount/job.h). Any thread. */
#pragma once

#include "common/err.h"

enum {
    FS_TYPE_MAX = 32,      /* bytes of a filesystem's name */
    FS_MKFS_ARGS_MAX = 64, /* words in mkfsOptions */
    FS_WAIT_MS = 90000, /* how long a call waits for mkfs, fsck, resize; kubelet's limit is 2 min */
    FS_PROBE_WAIT_MS = 30000 /* ... for reading a few KiB of the device */
};

/* Is this a filesystem that we make, grow and mount? "ext4" and "xfs". */
bool fs_supported(const char *fstype);
/* The smallest device that it can be made on, bytes. */
uint64_t fs_size_min(const char *fstype);

enum fs_content {
    FS_EMPTY,       /* no signature is known, and the first MiB reads zero: may be formatted */
    FS_INTERRUPTED, /* a format of ours was begun and did not end: may be formatted again */
    FS_FOUND,       /* a filesystem, its type is known */
    FS_FOREIGN,     /* something else, or a partition table: must not be touched */
};
struct fs_probe {
    enum fs_content content;
    char fstype[FS_TYPE_MAX]; /* FS_FOUND; FS_FOREIGN: what it seems to be */
};
/* Looks at a device that is not mounted. */
int fs_probe(const char *device, struct fs_probe *ret, struct err *e);

/* Makes a filesystem: only what fs_probe called FS_EMPTY or FS_INTERRUPTED is touched, which is
 * looked at again. options: words split by blanks, given to mkfs as they are; may be "". */
int fs_format(const char *device, const char *fstype, const char *options, struct err *e);

/* Splits and checks mkfsOptions: -ERR_INVALID says why not. */
int fs_check_options(const char *options, struct err *e);

/* Brings a filesystem that is not mounted into a state that can be mounted: replays the journal
 * (e2fsck -p; xfs does it itself). -ERR_CORRUPT: a person has to repair it. */
int fs_check(const char *device, const char *fstype, struct err *e);

/* Grows a filesystem to its device, if it is smaller. ext4 before it is mounted (mount_point NULL)
 * or mounted, xfs mounted only (before: 0, nothing is done). */
int fs_grow(const char *device, const char *fstype, const char *mount_point, struct err *e);

struct fs_stats {
    uint64_t bytes_total, bytes_used, bytes_available;
    uint64_t inodes_total, inodes_used, inodes_available;
};
/* Of the filesystem mounted at path. -ERR_BUSY: it does not answer. */
int fs_stat(const char *path, uint32_t timeout_ms, struct fs_stats *ret, struct err *e);
