/* Loop devices by ioctl (see loop_device.h).
 *
 * LOOP_CONFIGURE (Linux 5.8) makes a device in one step: nobody sees it half made. LOOP_CLR_FD
 * never refuses: it marks a device that others have open to go at their last close (and newer
 * kernels do that always), so whether it has gone is read from sysfs afterwards; udev's own short
 * look at a device is waited out. */
#include "node-agent/attach/loop_device.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/view.h"

enum {
    FREE_TRIES_MAX = 64,     /* others take free devices too */
    GONE_WAIT_MS_MAX = 2000, /* how long somebody may still look at a device that goes */
    GONE_POLL_MS = 10,
    SYSFS_TEXT_MAX = 4096 + 16,
};

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
}
#define CLEANUP_FD CLEANUP(close_fd)

/* One line of a sysfs file without its newline; false when it is not there. */
static bool read_sysfs(const char *device, const char *attribute, char text[SYSFS_TEXT_MAX]) {
    char path[128];
    snprintf(path, sizeof path, "/sys/block/%s/%s", device, attribute);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, SYSFS_TEXT_MAX - 1);
    if (n < 0)
        return false;
    text[n] = '\0';
    text[strcspn(text, "\n")] = '\0';
    return true;
}

static const char *name_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static bool is_attached(const char *path) {
    char text[SYSFS_TEXT_MAX];
    return read_sysfs(name_of(path), "loop/backing_file", text);
}

static int take_free(int control, struct loop_config *config, char *ret_path, struct err *e) {
    for (unsigned i = 0; i < FREE_TRIES_MAX; i++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            return err_from_errno(e, errno, "find a free loop device");
        char path[LOOP_DEVICE_PATH_MAX];
        snprintf(path, sizeof path, "/dev/loop%d", number);
        CLEANUP_FD int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0)
            return err_from_errno(e, errno, "open %s", path);
        if (ioctl(fd, LOOP_CONFIGURE, config) == 0) {
            memcpy(ret_path, path, sizeof path);
            return 0;
        }
        if (errno != EBUSY)
            return err_from_errno(e, errno, "configure %s", path);
    }
    return err_set(e, -ERR_BUSY, "no free loop device in %d tries", FREE_TRIES_MAX);
}

int loop_device_attach(int file_fd, const char *name, bool read_only,
                       char ret_path[LOOP_DEVICE_PATH_MAX], struct err *e) {
    struct loop_config config = {
        .fd = (uint32_t)file_fd,
        .block_size = LOOP_DEVICE_BLOCK_SIZE,
        .info = {.lo_flags = (uint32_t)(LO_FLAGS_DIRECT_IO | (read_only ? LO_FLAGS_READ_ONLY : 0))},
    };
    CHECK(strlen(name) < sizeof config.info.lo_file_name);
    memcpy(config.info.lo_file_name, name, strlen(name) + 1);
    CLEANUP_FD int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    if (control < 0)
        return err_from_errno(e, errno, "open /dev/loop-control");
    int rc = take_free(control, &config, ret_path, e);
    if (rc < 0)
        return rc;
    /* A kernel that cannot do direct I/O on the file falls back silently: acknowledged writes would
     * then sit in the page cache and be copied twice. */
    char dio[SYSFS_TEXT_MAX];
    if (!read_sysfs(name_of(ret_path), "loop/dio", dio) || strcmp(dio, "1") != 0) {
        loop_device_detach(ret_path, true, NULL);
        return err_set(e, -ERR_UNSUPPORTED, "%s does no direct I/O on its file", ret_path);
    }
    return 0;
}

int loop_device_find(const char *file_path, char ret_path[LOOP_DEVICE_PATH_MAX], struct err *e) {
    DIR *dir = opendir("/sys/block");
    if (!dir)
        return err_from_errno(e, errno, "read /sys/block");
    bool found = false;
    for (const struct dirent *d; !found && (d = readdir(dir));) {
        char text[SYSFS_TEXT_MAX];
        if (strncmp(d->d_name, "loop", 4) != 0 || strlen(d->d_name) + 6 > LOOP_DEVICE_PATH_MAX)
            continue;
        if (!read_sysfs(d->d_name, "loop/backing_file", text) || strcmp(text, file_path) != 0)
            continue;
        snprintf(ret_path, LOOP_DEVICE_PATH_MAX, "/dev/%.24s", d->d_name);
        found = true;
    }
    closedir(dir);
    return found ? 0 : err_set(e, -ERR_NOT_FOUND, "no loop device over %s", file_path);
}

uint64_t loop_device_size_bytes(const char *path) {
    char text[SYSFS_TEXT_MAX];
    return read_sysfs(name_of(path), "size", text) ? strtoull(text, NULL, 10) * SECTOR_SIZE : 0;
}

static bool wait_until_gone(const char *path) {
    const struct timespec pause = {.tv_nsec = GONE_POLL_MS * 1000 * 1000};
    for (int waited = 0; is_attached(path); waited += GONE_POLL_MS) {
        if (waited >= GONE_WAIT_MS_MAX)
            return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

/* A filesystem, a device mapper or swap hold a device exclusively: seen without touching it. */
static int refuse_if_held(const char *path, struct err *e) {
    CLEANUP_FD int fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd >= 0)
        return 0;
    if (errno == EBUSY)
        return err_set(e, -ERR_BUSY, "%s is mounted or held by another device", path);
    if (errno == ENXIO || errno == ENOENT)
        return 0;
    return err_from_errno(e, errno, "open %s", path);
}

int loop_device_detach(const char *path, bool force, struct err *e) {
    if (!force) {
        int rc = refuse_if_held(path, e);
        if (rc < 0)
            return rc;
    }
    if (!is_attached(path))
        return 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno == EACCES)
        fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENXIO || errno == ENOENT ? 0 : err_from_errno(e, errno, "open %s", path);
    int rc = ioctl(fd, LOOP_CLR_FD) == 0 || errno == ENXIO
                 ? 0
                 : err_from_errno(e, errno, "detach %s", path);
    close(fd);
    if (rc < 0 || force)
        return rc;
    return wait_until_gone(path) ? 0 : err_set(e, -ERR_BUSY, "%s is open by somebody", path);
}

int loop_device_grow(const char *path, uint64_t size_bytes, struct err *e) {
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s", path);
    uint64_t now;
    if (ioctl(fd, LOOP_SET_CAPACITY, 0) < 0 || ioctl(fd, BLKGETSIZE64, &now) < 0)
        return err_from_errno(e, errno, "grow %s", path);
    if (now < size_bytes)
        return err_set(e, -ERR_STALE, "%s has %llu bytes, not yet %llu", path,
                       (unsigned long long)now, (unsigned long long)size_bytes);
    return 0;
}
