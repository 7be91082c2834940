/* Filesystems on a device: libblkid to look, mkfs, e2fsck, resize2fs and xfs_growfs to act.
 *
 * Formatting is the one thing here that can destroy data, so it happens only where nothing is known
 * to be: libblkid finds no signature (an error or a doubt is not "nothing") and the first MiB reads
 * zero. A format that was cut off leaves neither a signature nor zeroes; so that it can be begun
 * again, a marker is written before mkfs and taken away after it, in a block near the end which
 * mkfs writes neither at its begin nor (both leave it to data) at all. Nothing is mounted before
 * the marker is gone.
 *
 * I1 A device with a marker was never mounted since the marker was written.
 * I2 Whoever has not proved FS_EMPTY or FS_INTERRUPTED under its own eyes does not run mkfs.
 * I3 mkfs itself opens the device exclusively, so two of them never run on one device. */
#include "csi/mount/filesystem.h"

#include <blkid/blkid.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/bytes.h"
#include "common/log.h"
#include "common/mem.h"
#include "csi/mount/job.h"
#include "csi/mount/run.h"

enum {
    ZERO_CHECK_SIZE = 1 << 20, /* bytes that must read zero before a format */
    MARKER_SIZE = 4096,
    MARKER_FROM_END = 1 << 20,
    MARKER_DEVICE_MIN = 16 << 20, /* smaller devices get none */
    PROGRAM_TIMEOUT_MS = 3600 * 1000,
    DEVICE_PATH_MAX = 256,
    OPTIONS_TEXT_MAX = 4096,
    EXT4_MAGIC = 0xef53,
};

static const char marker_text[] =
    "portalbd: a filesystem is being made here, nothing is on it yet\n";

/* --- kinds --- */

static const struct kind {
    const char *name;
    uint64_t size_min;
    const char *mkfs[8]; /* words before the user's options */
} kinds[] = {
    /* No discard: a new volume is empty. No reserved blocks: they are of no use on a data disk. */
    {"ext4",
     4 << 20,
     {"mkfs.ext4", "-F", "-q", "-m", "0", "-E",
      "nodiscard,lazy_itable_init=1,lazy_journal_init=1"}},
    {"xfs", 300 << 20, {"mkfs.xfs", "-f", "-q", "-K"}},
};

static const struct kind *kind_find(const char *name) {
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

bool fs_supported(const char *fstype) {
    return kind_find(fstype) != NULL;
}

uint64_t fs_size_min(const char *fstype) {
    const struct kind *k = kind_find(fstype);
    return k ? k->size_min : 0;
}

/* --- looking --- */

static void fd_close(int *fd) {
    if (*fd >= 0)
        close(*fd);
}

static int device_open(const char *device, int flags, int *ret_fd, uint64_t *ret_size,
                       struct err *e) {
    int fd = open(device, flags | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "open '%s'", device);
    uint64_t size = 0;
    struct stat st;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        size = (uint64_t)st.st_size; /* an image, in tests */
    } else if (ioctl(fd, BLKGETSIZE64, &size) != 0) {
        int eno = errno;
        close(fd);
        return err_from_errno(e, eno, "size of '%s'", device);
    }
    *ret_fd = fd;
    *ret_size = size;
    return 0;
}

static int read_at(int fd, uint64_t off, void *bytes, size_t len, struct err *e) {
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, (char *)bytes + done, len - done, (off_t)(off + done));
        if (n < 0)
            return err_from_errno(e, errno, "read the device");
        if (n == 0)
            return err_set(e, -ERR_IO, "the device ends early");
        done += (size_t)n;
    }
    return 0;
}

static void device_name(char name[DEVICE_PATH_MAX], const char *device) {
    int len = snprintf(name, DEVICE_PATH_MAX, "%s", device);
    CHECK(len > 0 && len < DEVICE_PATH_MAX); /* device names come from the agent: /dev/... */
}

static uint64_t marker_off(uint64_t size) {
    return (size - MARKER_FROM_END) / MARKER_SIZE * MARKER_SIZE;
}

static int marker_present(int fd, uint64_t size, bool *ret, struct err *e) {
    char block[sizeof marker_text];
    *ret = false;
    if (size < MARKER_DEVICE_MIN)
        return 0;
    int rc = read_at(fd, marker_off(size), block, sizeof block, e);
    if (rc == 0)
        *ret = memcmp(block, marker_text, sizeof block) == 0;
    return rc;
}

/* Does a filesystem lie there that was mounted since it was made? Then what looks like a marker is
 * somebody's data. ext4 notes the time of the last mount, xfs gives its superblock a log sequence
 * number; mkfs leaves both zero. */
static int was_mounted(int fd, bool *ret, struct err *e) {
    enum { XFS_LSN = 240, EXT4 = 1024, EXT4_MTIME = EXT4 + 44, EXT4_MAGIC_OFF = EXT4 + 56 };
    uint8_t super[2048];
    int rc = read_at(fd, 0, super, sizeof super, e);
    if (rc)
        return rc;
    bool xfs = memcmp(super, "XFSB", 4) == 0;
    bool ext4 = load_le16(super + EXT4_MAGIC_OFF) == EXT4_MAGIC;
    *ret = (xfs && load_be64(super + XFS_LSN) != 0) || (ext4 && load_le32(super + EXT4_MTIME) != 0);
    return 0;
}

static int marker_write(int fd, uint64_t size, bool set, struct err *e) {
    if (size < MARKER_DEVICE_MIN)
        return 0;
    char block[MARKER_SIZE] = {0};
    if (set)
        memcpy(block, marker_text, sizeof marker_text);
    ssize_t n = pwrite(fd, block, sizeof block, (off_t)marker_off(size));
    if (n != sizeof block || fdatasync(fd) != 0)
        return err_from_errno(e, n < 0 || n == sizeof block ? errno : EIO, "write the device");
    return 0;
}

static int reads_zero(int fd, uint64_t size, bool *ret, struct err *e) {
    size_t len = (size_t)MIN(size, (uint64_t)ZERO_CHECK_SIZE);
    CLEANUP_FREE uint8_t *bytes = xmalloc(len + 1);
    int rc = read_at(fd, 0, bytes, len, e);
    if (rc)
        return rc;
    bytes[len] = 0;
    *ret = bytes[0] == 0 && memcmp(bytes, bytes + 1, len) == 0;
    return 0;
}

/* What libblkid finds: 0 and FS_FOUND or FS_FOREIGN, 1 for nothing at all, or -ERR_x. */
static int look_for_signature(int fd, struct fs_probe *p, struct err *e) {
    blkid_probe probe = blkid_new_probe();
    CHECK(probe);
    int rc = blkid_probe_set_device(probe, fd, 0, 0);
    if (rc == 0) {
        blkid_probe_enable_superblocks(probe, 1);
        blkid_probe_set_superblocks_flags(probe, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE);
        blkid_probe_enable_partitions(probe, 1);
        errno = 0;
        rc = blkid_do_safeprobe(probe);
    } else {
        rc = -1;
    }
    if (rc == -2) {
        p->content = FS_FOREIGN;
        snprintf(p->fstype, sizeof p->fstype, "several signatures");
        rc = 0;
    } else if (rc == -1) {
        rc = err_from_errno(e, errno ? errno : EIO, "look for a filesystem on the device");
    } else if (rc == 0) {
        const char *value;
        if (blkid_probe_lookup_value(probe, "TYPE", &value, NULL) == 0) {
            p->content = kind_find(value) ? FS_FOUND : FS_FOREIGN;
            snprintf(p->fstype, sizeof p->fstype, "%.31s", value);
        } else {
            p->content = FS_FOREIGN;
            snprintf(p->fstype, sizeof p->fstype, "partition table");
        }
    }
    blkid_free_probe(probe);
    return rc;
}

static int probe_fd(int fd, uint64_t size, struct fs_probe *p, struct err *e) {
    bool marker, zero;
    int rc = marker_present(fd, size, &marker, e);
    if (rc)
        return rc;
    bool mounted = false;
    if (marker)
        rc = was_mounted(fd, &mounted, e);
    if (rc)
        return rc;
    if (marker && !mounted) {
        *p = (struct fs_probe){.content = FS_INTERRUPTED};
        return 0;
    }
    rc = look_for_signature(fd, p, e);
    if (rc <= 0)
        return rc;
    rc = reads_zero(fd, size, &zero, e);
    if (rc)
        return rc;
    *p = (struct fs_probe){.content = zero ? FS_EMPTY : FS_FOREIGN};
    if (!zero)
        snprintf(p->fstype, sizeof p->fstype, "unknown data");
    return 0;
}

struct probe_job {
    char device[DEVICE_PATH_MAX];
    struct fs_probe probe;
};

static int do_probe(void *data, struct err *e) {
    struct probe_job *j = data;
    CLEANUP(fd_close) int fd = -1;
    uint64_t size;
    int rc = device_open(j->device, O_RDONLY, &fd, &size, e);
    return rc ? rc : probe_fd(fd, size, &j->probe, e);
}

int fs_probe(const char *device, struct fs_probe *ret, struct err *e) {
    struct probe_job j = {0};
    char key[JOB_KEY_MAX];
    device_name(j.device, device);
    snprintf(key, sizeof key, "probe of %s", device);
    int rc = job_run(key, do_probe, &j, sizeof j, FS_PROBE_WAIT_MS, e);
    if (rc == 0)
        *ret = j.probe;
    return rc;
}

/* --- formatting --- */

/* Splits text at blanks, in place; -1: too many words. */
static int split_words(char *text, const char **words, int max) {
    int count = 0;
    char *rest = NULL;
    for (char *w = strtok_r(text, " \t", &rest); w; w = strtok_r(NULL, " \t", &rest)) {
        if (count == max)
            return -1;
        words[count++] = w;
    }
    return count;
}

int fs_check_options(const char *options, struct err *e) {
    const char *words[FS_MKFS_ARGS_MAX];
    char text[OPTIONS_TEXT_MAX];
    if (snprintf(text, sizeof text, "%s", options) >= (int)sizeof text)
        return err_set(e, -ERR_INVALID, "mkfsOptions is longer than %d bytes", OPTIONS_TEXT_MAX);
    for (const char *p = options; *p; p++)
        if ((unsigned char)*p < ' ' && *p != '\t')
            return err_set(e, -ERR_INVALID, "mkfsOptions holds a control character");
    int count = split_words(text, words, FS_MKFS_ARGS_MAX);
    if (count < 0)
        return err_set(e, -ERR_INVALID, "mkfsOptions has more than %d words", FS_MKFS_ARGS_MAX);
    if (count > 0 && words[0][0] != '-')
        return err_set(e, -ERR_INVALID, "mkfsOptions '%s' does not begin with an option", options);
    return 0;
}

struct format_job {
    char device[DEVICE_PATH_MAX];
    char fstype[FS_TYPE_MAX];
    char options[OPTIONS_TEXT_MAX];
};

static int run_mkfs(struct format_job *j, struct err *e) {
    const struct kind *kind = kind_find(j->fstype);
    const char *argv[ARRAY_LEN(kind->mkfs) + FS_MKFS_ARGS_MAX + 2];
    int argc = 0;
    while (kind->mkfs[argc]) {
        argv[argc] = kind->mkfs[argc];
        argc++;
    }
    int words = split_words(j->options, argv + argc, FS_MKFS_ARGS_MAX);
    CHECK(words >= 0); /* fs_check_options */
    argc += words;
    argv[argc++] = j->device;
    argv[argc] = NULL;
    return run_checked(argv, PROGRAM_TIMEOUT_MS, e);
}

/* Under an exclusive opening, which fails while the device is mounted or somebody's mkfs runs on
 * it: proves that it may be formatted, and writes the marker. */
static int begin_format(const struct format_job *j, struct err *e) {
    struct fs_probe probe = {0};
    uint64_t size;
    CLEANUP(fd_close) int fd = -1;
    int rc = device_open(j->device, O_RDWR | O_EXCL, &fd, &size, e);
    if (rc == 0)
        rc = probe_fd(fd, size, &probe, e);
    if (rc)
        return rc;
    if (probe.content != FS_EMPTY && probe.content != FS_INTERRUPTED)
        return err_set(e, -ERR_IN_USE, "'%s' is not empty (%s), it is not formatted", j->device,
                       probe.fstype);
    return marker_write(fd, size, true, e);
}

/* Takes the marker away, unless mkfs needed its place. */
static int end_format(const struct format_job *j, struct err *e) {
    bool marker;
    uint64_t size;
    CLEANUP(fd_close) int fd = -1;
    int rc = device_open(j->device, O_RDWR | O_EXCL, &fd, &size, e);
    if (rc == 0)
        rc = marker_present(fd, size, &marker, e);
    if (rc == 0 && marker)
        rc = marker_write(fd, size, false, e);
    return rc;
}

static int do_format(void *data, struct err *e) {
    struct format_job *j = data;
    int rc = begin_format(j, e);
    if (rc == 0)
        rc = run_mkfs(j, e);
    if (rc == 0)
        rc = end_format(j, e);
    return rc;
}

int fs_format(const char *device, const char *fstype, const char *options, struct err *e) {
    CHECK(fs_supported(fstype));
    int rc = fs_check_options(options, e);
    if (rc)
        return rc;
    struct format_job j = {0};
    char key[JOB_KEY_MAX];
    device_name(j.device, device);
    snprintf(j.fstype, sizeof j.fstype, "%s", fstype);
    snprintf(j.options, sizeof j.options, "%s", options);
    snprintf(key, sizeof key, "mkfs.%s of %s", fstype, device);
    return job_run(key, do_format, &j, sizeof j, FS_WAIT_MS, e);
}

/* --- checking --- */

struct check_job {
    char device[DEVICE_PATH_MAX];
};

/* Exit codes of e2fsck are bits: 1 corrected, 2 corrected and reboot (of no matter: it is not
 * mounted), 4 left uncorrected, 8 and above: could not do it. */
static int do_check_ext4(void *data, struct err *e) {
    struct check_job *j = data;
    const char *const argv[] = {"e2fsck", "-p", j->device, NULL};
    struct run_result result;
    int rc = run_program(argv, PROGRAM_TIMEOUT_MS, &result, e);
    if (rc)
        return rc;
    if (result.exit_code == 0)
        return 0;
    if (result.exit_code >= 0 && result.exit_code <= 3) {
        log_info("the filesystem was repaired", LOG_STR("device", j->device),
                 LOG_STR("output", result.output));
        return 0;
    }
    bool corrupt = result.exit_code >= 0 && (result.exit_code & 4);
    return err_set(e, corrupt ? -ERR_CORRUPT : -ERR_IO,
                   "e2fsck -p of '%s' ended with %d; the volume has to be repaired by hand: %.200s",
                   j->device, result.exit_code, result.output);
}

int fs_check(const char *device, const char *fstype, struct err *e) {
    if (strcmp(fstype, "ext4") != 0)
        return 0;
    struct check_job j = {0};
    char key[JOB_KEY_MAX];
    device_name(j.device, device);
    snprintf(key, sizeof key, "e2fsck of %s", device);
    return job_run(key, do_check_ext4, &j, sizeof j, FS_WAIT_MS, e);
}

/* --- growing --- */

struct grow_job {
    char device[DEVICE_PATH_MAX];
    char fstype[FS_TYPE_MAX];
    char mount_point[1024]; /* "": not mounted */
};

/* Bytes of the ext4 in the superblock, and of one of its blocks (Linux,
 * Documentation/filesystems/ext4/super.rst). */
static int ext4_size(int fd, uint64_t *ret_size, uint64_t *ret_block, struct err *e) {
    enum {
        SUPER_OFF = 1024,
        BLOCKS_LO = 4,
        LOG_BLOCK = 24,
        MAGIC = 56,
        INCOMPAT = 96,
        BLOCKS_HI = 336
    };
    enum { INCOMPAT_64BIT = 0x80 };
    uint8_t super[512];
    int rc = read_at(fd, SUPER_OFF, super, sizeof super, e);
    if (rc)
        return rc;
    uint32_t log_block = load_le32(super + LOG_BLOCK);
    if (load_le16(super + MAGIC) != EXT4_MAGIC || log_block > 6)
        return err_set(e, -ERR_IO, "the superblock is not one of ext4");
    uint64_t blocks = load_le32(super + BLOCKS_LO);
    if (load_le32(super + INCOMPAT) & INCOMPAT_64BIT)
        blocks |= (uint64_t)load_le32(super + BLOCKS_HI) << 32;
    *ret_block = UINT64_C(1024) << log_block;
    *ret_size = blocks * *ret_block;
    return 0;
}

static int grow_ext4(struct grow_job *j, struct err *e) {
    CLEANUP(fd_close) int fd = -1;
    uint64_t device_size, size, block;
    int rc = device_open(j->device, O_RDONLY, &fd, &device_size, e);
    if (rc == 0)
        rc = ext4_size(fd, &size, &block, e);
    if (rc || size + block > device_size)
        return rc;
    if (!j->mount_point[0]) { /* resize2fs refuses what was mounted since its last full check */
        const char *const fsck[] = {"e2fsck", "-f", "-p", j->device, NULL};
        struct run_result result;
        rc = run_program(fsck, PROGRAM_TIMEOUT_MS, &result, e);
        if (rc)
            return rc;
        if (result.exit_code < 0 || result.exit_code > 3)
            return err_set(e, -ERR_IO, "e2fsck -f -p of '%s' ended with %d: %.200s", j->device,
                           result.exit_code, result.output);
    }
    const char *const resize[] = {"resize2fs", j->device, NULL};
    rc = run_checked(resize, PROGRAM_TIMEOUT_MS, e);
    if (rc == -ERR_IO && strstr(e->text, "Permission denied"))
        return err_set(e, -ERR_CONFIG,
                       "a mounted ext4 can only be grown with CAP_SYS_RESOURCE; without it the "
                       "filesystem grows when the volume is next staged");
    return rc;
}

static int do_grow(void *data, struct err *e) {
    struct grow_job *j = data;
    if (strcmp(j->fstype, "ext4") == 0)
        return grow_ext4(j, e);
    const char *const growfs[] = {"xfs_growfs", "-d", j->mount_point, NULL};
    return run_checked(growfs, PROGRAM_TIMEOUT_MS, e);
}

int fs_grow(const char *device, const char *fstype, const char *mount_point, struct err *e) {
    if (strcmp(fstype, "xfs") == 0 && !mount_point)
        return 0;
    if (!fs_supported(fstype))
        return err_set(e, -ERR_UNSUPPORTED, "a filesystem of type %s cannot be grown", fstype);
    struct grow_job j = {0};
    char key[JOB_KEY_MAX];
    device_name(j.device, device);
    snprintf(j.fstype, sizeof j.fstype, "%s", fstype);
    if (mount_point && snprintf(j.mount_point, sizeof j.mount_point, "%s", mount_point) >=
                           (int)sizeof j.mount_point)
        return err_set(e, -ERR_INVALID, "the path '%s' is too long", mount_point);
    snprintf(key, sizeof key, "growing %s on %s", fstype, device);
    return job_run(key, do_grow, &j, sizeof j, FS_WAIT_MS, e);
}

/* --- counting --- */

struct stat_job {
    char path[1024];
    struct fs_stats stats;
};

static int do_stat(void *data, struct err *e) {
    struct stat_job *j = data;
    struct statvfs s;
    if (statvfs(j->path, &s) != 0)
        return err_from_errno(e, errno, "statvfs of '%s'", j->path);
    j->stats.bytes_total = (uint64_t)s.f_blocks * s.f_frsize;
    j->stats.bytes_available = (uint64_t)s.f_bavail * s.f_frsize;
    j->stats.bytes_used = (uint64_t)(s.f_blocks - s.f_bfree) * s.f_frsize;
    j->stats.inodes_total = s.f_files;
    j->stats.inodes_available = s.f_ffree;
    j->stats.inodes_used = s.f_files - s.f_ffree;
    return 0;
}

int fs_stat(const char *path, uint32_t timeout_ms, struct fs_stats *ret, struct err *e) {
    struct stat_job j = {0};
    char key[JOB_KEY_MAX];
    if (snprintf(j.path, sizeof j.path, "%s", path) >= (int)sizeof j.path)
        return err_set(e, -ERR_INVALID, "the path '%s' is too long", path);
    snprintf(key, sizeof key, "statvfs of %.480s", path);
    int rc = job_run(key, do_stat, &j, sizeof j, timeout_ms, e);
    if (rc == 0)
        *ret = j.stats;
    return rc;
}
