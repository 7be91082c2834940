/* The fuse backend: a FUSE filesystem that is one regular file, mounted on the file
 * <run_dir>/devices/<volume>, and a loop device with direct I/O over it. Works on any kernel with
 * FUSE and loop.
 *
 * What is attached can be read from the kernel: mounts of type "fuse.portalbd" whose source is
 * "portalbd:<volume>" in /proc/self/mountinfo, and the loop device whose backing file is the mount
 * point in sysfs.
 *
 * The FUSE connection lives as long as one copy of its descriptor, or the mount's end. With a copy
 * in the agent's hands (link.kernel_fd) requests wait when the daemon dies; the next one reads them
 * from the same connection, and has the kernel send it again what the dead one had read
 * (FUSE_NOTIFY_RESEND, Linux 6.9). Older kernels would let those requests wait for ever, so there
 * no copy is kept: the connection ends with its daemon, and every request fails at once.
 *
 * Order of detach: the loop device first (nobody can begin anything), then the mount (the daemon
 * sees the end), then the file. force aborts the connection before that, so that nothing of it can
 * wait for the daemon. */
#include "node-agent/attach/attach.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/mem.h"
#include "node-agent/attach/loop_device.h"
#include "node-agent/attach/mountinfo.h"

#define FUSE_TYPE     "fuse.portalbd"
#define SOURCE_PREFIX "portalbd:"

enum {
    MOUNTINFO_MAX = 16 * 1024 * 1024,
    MAX_READ = 1024 * 1024,
    REATTACH_WAIT_MS_MAX = 1000,
    REATTACH_POLL_MS = 2,
    UNMOUNT_WAIT_MS_MAX = 500, /* who closes the loop device last lets go of its file a bit later */
    UNMOUNT_POLL_MS = 10,
};

_Static_assert((int)ATTACH_PATH_MAX == (int)LOOP_DEVICE_PATH_MAX, "one kind of path");

struct fuse_backend {
    struct attach_backend base;
    char *dir; /* <run_dir>/devices, absolute and free of links: as mountinfo shows it */
};

static struct fuse_backend *fuse_of(struct attach_backend *b) {
    return container_of(b, struct fuse_backend, base);
}

static char *file_path(struct fuse_backend *f, const char *volume) {
    return xasprintf("%s/%s", f->dir, volume);
}

static int read_mountinfo(struct buf *ret, struct err *e) {
    int fd = open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "open /proc/self/mountinfo");
    int rc = 0;
    for (;;) {
        buf_reserve(ret, 16384);
        ssize_t n = read(fd, ret->data + ret->len, 16384);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = err_from_errno(e, errno, "read /proc/self/mountinfo");
        if (n <= 0)
            break;
        ret->len += (size_t)n;
        if (ret->len > MOUNTINFO_MAX) {
            rc = err_set(e, -ERR_OVERLOAD, "/proc/self/mountinfo has more than %d bytes",
                         MOUNTINFO_MAX);
            break;
        }
    }
    close(fd);
    return rc;
}

/* --- discover --- */

struct collect {
    struct fuse_backend *backend;
    struct attach_devices *devices;
};

static bool collect_mount(void *arg, const struct mountinfo_entry *m) {
    struct collect *c = arg;
    const char *volume = m->source + strlen(SOURCE_PREFIX);
    size_t dir_len = strlen(c->backend->dir);
    if (strcmp(m->type, FUSE_TYPE) != 0 ||
        strncmp(m->source, SOURCE_PREFIX, strlen(SOURCE_PREFIX)) != 0)
        return true;
    if (strncmp(m->point, c->backend->dir, dir_len) != 0 || m->point[dir_len] != '/' ||
        strcmp(m->point + dir_len + 1, volume) != 0 || strlen(volume) >= ATTACH_VOLUME_MAX)
        return true; /* another agent's, with a run folder of its own */
    if (attach_devices_find(c->devices, volume) || c->devices->count >= ATTACH_DEVICES_MAX)
        return true;
    struct attach_device *d = &c->devices->items[c->devices->count++];
    *d = (struct attach_device){0};
    memcpy(d->volume, volume, strlen(volume) + 1);
    if (loop_device_find(m->point, d->path, NULL) < 0)
        d->path[0] = '\0';
    else
        d->size_bytes = loop_device_size_bytes(d->path);
    return true;
}

static int fuse_discover(struct attach_backend *b, struct attach_devices *ret, struct err *e) {
    CLEANUP_BUF struct buf text = {0};
    int rc = read_mountinfo(&text, e);
    if (rc < 0)
        return rc;
    *ret =
        (struct attach_devices){.items = xcalloc(ATTACH_DEVICES_MAX, sizeof(struct attach_device))};
    struct collect c = {.backend = fuse_of(b), .devices = ret};
    mountinfo_each(buf_view(&text), collect_mount, &c);
    return 0;
}

static int is_mounted(struct attach_backend *b, const char *volume, bool *ret_mounted,
                      struct attach_device *ret_device, struct err *e) {
    struct attach_devices all;
    int rc = fuse_discover(b, &all, e);
    if (rc < 0)
        return rc;
    const struct attach_device *found = attach_devices_find(&all, volume);
    *ret_mounted = found != NULL;
    if (found)
        *ret_device = *found;
    attach_devices_release(&all);
    return 0;
}

/* --- prepare, attach, grow --- */

/* FUSE_NOTIFY_RESEND. */
static bool kernel_sends_again(struct utsname *ret_kernel) {
    unsigned major_number, minor_number;
    CHECK(uname(ret_kernel) == 0);
    return sscanf(ret_kernel->release, "%u.%u", &major_number, &minor_number) == 2 &&
           (major_number > 6 || (major_number == 6 && minor_number >= 9));
}

static int fuse_probe(struct attach_backend *b, char *ret_note, struct err *e) {
    (void)b;
    struct utsname kernel;
    const struct {
        const char *path, *hint;
    } needs[] = {{"/dev/fuse", "load the module fuse"},
                 {"/dev/loop-control", "load the module loop"}};
    for (size_t i = 0; i < ARRAY_LEN(needs); i++)
        if (access(needs[i].path, R_OK | W_OK) < 0)
            return err_set(e, -ERR_UNSUPPORTED,
                           "backend fuse: %s is not there or not ours (%s; the agent must be root)",
                           needs[i].path, needs[i].hint);
    ret_note[0] = '\0';
    if (!kernel_sends_again(&kernel))
        snprintf(ret_note, ATTACH_NOTE_MAX,
                 "Linux %.32s: a device ends with its daemon, its I/O fails when that dies (6.9 is "
                 "needed to go on); upgrades and restarts of the agent it survives",
                 kernel.release);
    return 0;
}

static int mount_file(const char *path, const char *volume, int fd, struct err *e) {
    char options[128], source[ATTACH_VOLUME_MAX + sizeof SOURCE_PREFIX];
    snprintf(options, sizeof options, "fd=%d,rootmode=100000,user_id=0,group_id=0,max_read=%d", fd,
             MAX_READ);
    snprintf(source, sizeof source, SOURCE_PREFIX "%s", volume);
    if (mount(source, path, FUSE_TYPE, MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME, options) < 0)
        return err_from_errno(e, errno, "mount %s", path);
    return 0;
}

static int unmount(const char *path, bool force, struct err *e) {
    int flags = UMOUNT_NOFOLLOW | (force ? MNT_FORCE | MNT_DETACH : 0);
    if (umount2(path, flags) == 0 || errno == EINVAL || errno == ENOENT)
        return 0;
    if (errno == EBUSY)
        return err_set(e, -ERR_BUSY, "%s is open by somebody", path);
    return err_from_errno(e, errno, "unmount %s", path);
}

static int fuse_prepare(struct attach_backend *b, const char *volume, struct attach_link *ret,
                        struct err *e) {
    struct attach_device device;
    bool mounted;
    int rc = is_mounted(b, volume, &mounted, &device, e);
    if (rc < 0)
        return rc;
    if (mounted)
        return err_set(e, -ERR_EXISTS, "a device of volume '%s' is there already", volume);
    CLEANUP_FREE char *path = file_path(fuse_of(b), volume);
    int file = open(path, O_CREAT | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0)
        return err_from_errno(e, errno, "create %s", path);
    close(file);
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_from_errno(e, errno, "open /dev/fuse");
    rc = mount_file(path, volume, fd, e);
    if (rc < 0) {
        close(fd);
        unlink(path);
        return rc;
    }
    struct utsname kernel;
    *ret = (struct attach_link){.daemon_fd = fd, .kernel_fd = -1};
    if (!kernel_sends_again(&kernel))
        return 0;
    ret->kernel_fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (ret->kernel_fd >= 0)
        return 0;
    rc = err_from_errno(e, errno, "copy a descriptor");
    attach_link_close(ret); /* which ends the connection */
    (void)unmount(path, true, NULL);
    unlink(path);
    return rc;
}

static int fuse_attach(struct attach_backend *b, const char *volume, const struct attach_how *how,
                       struct attach_link *link, struct attach_device *ret, struct err *e) {
    (void)link;
    CLEANUP_FREE char *path = file_path(fuse_of(b), volume);
    int file = open(path, (how->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
        return err_from_errno(e, errno, "open %s", path);
    struct statfs fs;
    struct attach_device device = {0};
    int rc;
    if (fstatfs(file, &fs) < 0)
        rc = err_from_errno(e, errno, "statfs %s", path);
    else if (fs.f_type != 0x65735546) /* FUSE_SUPER_MAGIC: else it is the bare file under it */
        rc = err_set(e, -ERR_NOT_FOUND, "%s is not mounted", path);
    else
        rc = loop_device_attach(file, volume, how->read_only, device.path, e);
    close(file);
    if (rc < 0)
        return rc;
    memcpy(device.volume, volume, strlen(volume) + 1);
    device.size_bytes = loop_device_size_bytes(device.path);
    *ret = device;
    return 0;
}

/* --- the next daemon --- */

/* fs/fuse/dev.c, fuse_dev_poll: an error once the connection has ended. */
static int look_at_connection(const char *volume, int fd, bool *ret_unread, struct err *e) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, 0) < 0 && errno != EINTR)
        return err_set(e, -ERR_BUSY, "look at the FUSE connection of volume '%s': %s", volume,
                       strerror(errno));
    if (p.revents & (POLLERR | POLLNVAL))
        return err_set(e, -ERR_IO, "the FUSE connection of volume '%s' has ended", volume);
    *ret_unread = (p.revents & POLLIN) != 0;
    return 0;
}

static int fuse_resume(struct attach_backend *b, const char *volume, struct attach_link *link,
                       struct err *e) {
    (void)b;
    bool unread;
    if (link->kernel_fd < 0)
        return err_set(e, -ERR_IO, "no descriptor of the FUSE connection of volume '%s' was kept",
                       volume);
    int rc = look_at_connection(volume, link->kernel_fd, &unread, e);
    if (rc < 0)
        return rc;
    int fd = fcntl(link->kernel_fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0)
        return err_set(e, -ERR_BUSY, "copy a descriptor: %s", strerror(errno));
    if (link->daemon_fd >= 0)
        close(link->daemon_fd);
    link->daemon_fd = fd;
    return 0;
}

/* The daemon itself asks the kernel for what its predecessor left. It is at work when it has read
 * all that waited. One that does not get there in time has more to do than it can hold (the store
 * does not answer): not an error, it is there. */
static int fuse_reattach(struct attach_backend *b, const char *volume, const struct attach_how *how,
                         struct attach_link *link, struct err *e) {
    (void)b, (void)how;
    bool unread = link->kernel_fd >= 0;
    for (int waited = 0; unread && waited < REATTACH_WAIT_MS_MAX; waited += REATTACH_POLL_MS) {
        int rc = look_at_connection(volume, link->kernel_fd, &unread, e);
        if (rc < 0)
            return rc;
        if (unread)
            poll(NULL, 0, REATTACH_POLL_MS);
    }
    return 0;
}

static int fuse_grow(struct attach_backend *b, const char *volume, uint64_t size_bytes,
                     struct err *e) {
    CLEANUP_FREE char *path = file_path(fuse_of(b), volume);
    char loop[LOOP_DEVICE_PATH_MAX];
    struct stat st;
    if (stat(path, &st) < 0) /* the kernel asks the daemon: older loop drivers trust the inode */
        return err_from_errno(e, errno, "stat %s", path);
    int rc = loop_device_find(path, loop, e);
    return rc < 0 ? rc : loop_device_grow(loop, size_bytes, e);
}

/* --- the end --- */

/* MNT_FORCE aborts the FUSE connection, whether or not the mount can go (fs/fuse/inode.c,
 * fuse_umount_begin): every request ends, also those that a daemon had, and the daemon's next read
 * finds the end. */
static void fuse_fail(struct attach_backend *b, const char *volume) {
    CLEANUP_FREE char *path = file_path(fuse_of(b), volume);
    (void)umount2(path, MNT_FORCE | UMOUNT_NOFOLLOW);
}

static int unmount_patiently(const char *path, struct err *e) {
    int rc = unmount(path, false, e);
    for (int waited = 0; rc == -ERR_BUSY && waited < UNMOUNT_WAIT_MS_MAX;
         waited += UNMOUNT_POLL_MS) {
        poll(NULL, 0, UNMOUNT_POLL_MS);
        rc = unmount(path, false, e);
    }
    return rc;
}

static int fuse_detach(struct attach_backend *b, const char *volume, bool force, struct err *e) {
    CLEANUP_FREE char *path = file_path(fuse_of(b), volume);
    struct attach_device device;
    bool mounted;
    int rc = is_mounted(b, volume, &mounted, &device, e);
    if (rc < 0)
        return rc;
    if (mounted && device.path[0]) {
        if (force)
            fuse_fail(b, volume);
        rc = loop_device_detach(device.path, force, e);
        if (rc < 0 && !force)
            return err_wrap(e, "volume '%s'", volume);
    }
    if (mounted) {
        rc = force ? unmount(path, true, e) : unmount_patiently(path, e);
        if (rc < 0)
            return err_wrap(e, "volume '%s'", volume);
    }
    if (unlink(path) < 0 && errno != ENOENT)
        return err_from_errno(e, errno, "delete %s", path);
    return 0;
}

static void fuse_close(struct attach_backend *b) {
    struct fuse_backend *f = fuse_of(b);
    free(f->dir);
    free(f);
}

static const struct attach_ops fuse_ops = {
    .name = "fuse",
    .daemon_flag = "--fuse-fd",
    .probe = fuse_probe,
    .prepare = fuse_prepare,
    .attach = fuse_attach,
    .resume = fuse_resume,
    .reattach = fuse_reattach,
    .detach = fuse_detach,
    .grow = fuse_grow,
    .fail = fuse_fail,
    .discover = fuse_discover,
    .close = fuse_close,
};

int attach_fuse_open(const char *run_dir, struct attach_backend **ret, struct err *e) {
    CLEANUP_FREE char *dir = xasprintf("%s/devices", run_dir);
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "create %s", dir);
    char *real = realpath(dir, NULL);
    if (!real)
        return err_from_errno(e, errno, "resolve %s", dir);
    struct fuse_backend *f = NEW(struct fuse_backend);
    f->base.ops = &fuse_ops;
    f->dir = real;
    *ret = &f->base;
    return 0;
}
