/* The nbd backend: the kernel's NBD client over a socket pair, told what to do by netlink.
 *
 * There is no listener and no handshake: the daemon serves its end of the pair as a connection in
 * the transmission phase, and the kernel gets the other end. The kernel owns a connected device; no
 * process of ours has to live for it. Which devices are ours is read from
 * /sys/block/nbd*\/backend: "portalbd:<volume>:<publish epoch>".
 *
 * What the settings are for (drivers/block/nbd.c):
 *   one connection, TIMEOUT 0   a request is never given up, however slow the store is. With a
 *                               second connection the kernel would end those that are slow
 *   DEAD_CONN_TIMEOUT           how long requests wait for the next daemon when one died
 *   queue/io_timeout            requests that a dead daemon had are only found when this timer
 *                               ticks; 30 s by default
 *   SERVER_FLAGS                without them no fsync and no discard would ever reach the daemon
 *
 * Three traps. A socket given by RECONFIGURE while the old one is alive is dropped in silence: so
 * we look whether our end of it still exists once we have closed it (reattach). A device that was
 * disconnected stays in sysfs while somebody has it open: such a one counts as gone, which the
 * kernel tells by refusing a RECONFIGURE that changes nothing. And DISCONNECT goes by the number
 * alone: see the mutex. */
#include "node-agent/attach/attach.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "common/list.h"
#include "common/mem.h"
#include "node-agent/attach/nbd_netlink.h"
#include "node-agent/attach/nbd_sysfs.h"

#define SYSFS "/sys"

enum {
    BLOCK_SIZE = 4096,
    DEAD_CONN_TIMEOUT_S_DEFAULT = 86400,
    IO_TIMEOUT_MS_DEFAULT = 2000,
    SOCKET_BUFFER_SIZE = 1024 * 1024, /* a large request at one go */
    NODE_WAIT_MS_MAX = 2000,          /* until the device's node is there */
    GONE_WAIT_MS_MAX = 2000,          /* how long somebody may still look at a device that goes */
    POLL_MS = 5,
    SOCKET_TRIES_MAX =
        4, /* of giving the kernel a socket: it needs a moment to see the old one's end */
    SOCKET_PAUSE_MS = 20,
};

/* A device that failed, kept open until its detach: else the kernel would give its number to
 * another volume while somebody still has its node (a container, say) and could open that. */
struct failed_device {
    struct list_node node;
    char volume[ATTACH_VOLUME_MAX];
    int fd;
};

struct nbd_backend {
    struct attach_backend base;
    struct attach_nbd_config config;

    /* Guards the list, and which number is whose: held over CONNECT, and from the last look at a
     * device to its DISCONNECT. Else a call could take away the device of another volume, which
     * got the number in between. The kernel itself makes such calls one at a time. */
    pthread_mutex_t mutex;
    struct list_node failed;
};

static struct nbd_backend *nbd_of(struct attach_backend *b) {
    return container_of(b, struct nbd_backend, base);
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}
#define CLEANUP_FD CLEANUP(close_fd)

static void pause_ms(int ms) {
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* --- probe --- */

static bool may_administrate(void) {
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {0};
    return syscall(SYS_capget, &head, sets) == 0 &&
           (sets[0].effective & (UINT32_C(1) << CAP_SYS_ADMIN)) != 0;
}

static bool module_is_loaded(void) {
    return access(SYSFS "/module/nbd", F_OK) == 0;
}

/* No devices made in advance, no search for partitions in what is a tenant's. */
static void load_module(void) {
    char *const argv[] = {"modprobe", "--quiet", "nbd", "nbds_max=0", "max_part=0", NULL};
    char *const envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    static const char *const paths[] = {"/usr/sbin/modprobe", "/sbin/modprobe"};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 2, "/dev/null", O_WRONLY, 0);
    bool done = false;
    for (size_t i = 0; !done && i < ARRAY_LEN(paths); i++) {
        pid_t pid;
        int status;
        done = posix_spawn(&pid, paths[i], &files, NULL, argv, envp) == 0 &&
               waitpid(pid, &status, 0) == pid;
    }
    posix_spawn_file_actions_destroy(&files);
}

static int refuse_without_family(struct err *e) {
    if (!module_is_loaded())
        return err_set(e, -ERR_UNSUPPORTED,
                       "backend nbd: the kernel's NBD client is not there: load the module nbd: "
                       "modprobe nbd nbds_max=0 max_part=0, or set backend fuse");
    return err_set(e, -ERR_UNSUPPORTED,
                   "backend nbd: the module nbd is loaded, but cannot be told anything from here: "
                   "before Linux 6.4 only the node's own network namespace can (hostNetwork: "
                   "true); or set backend fuse");
}

static int nbd_probe(struct attach_backend *b, char *ret_note, struct err *e) {
    (void)b;
    ret_note[0] = '\0';
    struct utsname kernel;
    CHECK(uname(&kernel) == 0);
    if (!nbd_release_at_least(kernel.release, 5, 14))
        return err_set(e, -ERR_UNSUPPORTED,
                       "backend nbd: Linux %s is too old, 5.14 is needed; set backend fuse",
                       kernel.release);
    if (!may_administrate())
        return err_set(e, -ERR_UNSUPPORTED,
                       "backend nbd: CAP_SYS_ADMIN is needed (the agent must be root)");
    int rc = nbd_netlink_probe(e);
    if (rc == -ERR_NOT_FOUND && !module_is_loaded()) {
        load_module();
        rc = nbd_netlink_probe(e);
    }
    if (rc == -ERR_NOT_FOUND)
        return refuse_without_family(e);
    if (rc < 0)
        return err_wrap(e, "backend nbd");
    if (access(SYSFS "/block", W_OK) < 0 && errno == EROFS)
        return err_set(e, -ERR_UNSUPPORTED,
                       "backend nbd: " SYSFS
                       " is read-only here (the container must be privileged); "
                       "or set backend fuse");
    return 0;
}

/* --- find --- */

/* A device that was disconnected, and that somebody has open still, takes no reconfiguration. */
static int is_alive(const struct nbd_device *d, bool *ret_alive, struct err *e) {
    int rc = nbd_netlink_reconfigure(
        &(struct nbd_reconfigure){.index = d->index, .backend = d->backend, .socket = -1}, e);
    if (rc < 0 && rc != -ERR_INVALID)
        return rc;
    *ret_alive = rc == 0;
    return 0;
}

/* The volume's device; one that is alive rather than one that was disconnected. -ERR_NOT_FOUND. */
static int find(const char *volume, struct nbd_device *ret, bool *ret_alive, struct err *e) {
    CLEANUP_FREE struct nbd_device *all = NULL;
    size_t count;
    int rc = nbd_sysfs_list(SYSFS, &all, &count, e);
    if (rc < 0)
        return rc;
    bool found = false, alive = false;
    for (size_t i = 0; !alive && i < count; i++) {
        if (strcmp(all[i].device.volume, volume) != 0)
            continue;
        rc = is_alive(&all[i], &alive, e);
        if (rc < 0)
            return rc;
        *ret = all[i];
        found = true;
    }
    if (!found)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' has no nbd device", volume);
    *ret_alive = alive;
    return 0;
}

static int refuse_disconnected(const struct nbd_device *d, struct err *e) {
    return err_set(e, -ERR_NOT_FOUND, "%s of volume '%s' was disconnected", d->device.path,
                   d->device.volume);
}

static int find_alive(const char *volume, struct nbd_device *ret, struct err *e) {
    bool alive;
    int rc = find(volume, ret, &alive, e);
    return rc == 0 && !alive ? refuse_disconnected(ret, e) : rc;
}

static bool is_over(const struct nbd_device *d) {
    bool alive;
    return is_alive(d, &alive, NULL) == 0 && !alive;
}

/* Of a RECONFIGURE: refused because somebody has disconnected the device meanwhile? */
static int explain(const struct nbd_device *d, int rc, struct err *e) {
    return rc == -ERR_INVALID && is_over(d) ? refuse_disconnected(d, e) : rc;
}

static int nbd_discover(struct attach_backend *b, struct attach_devices *ret, struct err *e) {
    (void)b;
    CLEANUP_FREE struct nbd_device *all = NULL;
    size_t count;
    int rc = nbd_sysfs_list(SYSFS, &all, &count, e);
    if (rc < 0)
        return rc;
    struct attach_devices devices = {.items = xcalloc(ATTACH_DEVICES_MAX, sizeof *devices.items)};
    for (size_t i = 0; i < count; i++) {
        bool alive;
        rc = is_alive(&all[i], &alive, e);
        if (rc < 0) {
            attach_devices_release(&devices);
            return rc;
        }
        if (alive && !attach_devices_find(&devices, all[i].device.volume))
            devices.items[devices.count++] = all[i].device;
    }
    *ret = devices;
    return 0;
}

/* Nothing, when it is not that volume's any more. */
static int disconnect_locked(const struct nbd_device *d, struct err *e) {
    bool alive;
    int rc = is_alive(d, &alive, e);
    return rc < 0 || !alive ? rc : nbd_netlink_disconnect(d->index, e);
}

static int disconnect(struct nbd_backend *n, const struct nbd_device *d, struct err *e) {
    pthread_mutex_lock(&n->mutex);
    int rc = disconnect_locked(d, e);
    pthread_mutex_unlock(&n->mutex);
    return rc;
}

/* --- prepare, attach, grow --- */

static int make_link(struct attach_link *ret, struct err *e) {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return err_from_errno(e, errno, "make a socket pair");
    const int size = SOCKET_BUFFER_SIZE;
    for (int i = 0; i < 2; i++)
        if (setsockopt(fds[i], SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
            (void)setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    *ret = (struct attach_link){.daemon_fd = fds[0], .kernel_fd = fds[1]};
    return 0;
}

static int nbd_prepare(struct attach_backend *b, const char *volume, struct attach_link *ret,
                       struct err *e) {
    (void)b;
    struct nbd_device device;
    bool alive;
    int rc = find(volume, &device, &alive, NULL);
    if (rc == 0 && alive)
        return err_set(e, -ERR_EXISTS, "volume '%s' is %s already", volume, device.device.path);
    return make_link(ret, e);
}

/* devtmpfs made it before CONNECT returned. Where /dev is something else, udev may, and else we. */
static int wait_for_node(const struct nbd_device *d, struct err *e) {
    dev_t number = nbd_sysfs_number(SYSFS, d->index);
    struct stat st;
    bool there = false;
    for (int waited = 0; !there && waited < NODE_WAIT_MS_MAX; waited += POLL_MS) {
        there = stat(d->device.path, &st) == 0;
        if (!there)
            pause_ms(POLL_MS);
    }
    if (!there && number &&
        (mknod(d->device.path, S_IFBLK | 0600, number) < 0 || stat(d->device.path, &st) < 0))
        return err_from_errno(e, errno, "create %s", d->device.path);
    if (!number || !S_ISBLK(st.st_mode) || st.st_rdev != number)
        return err_set(e, -ERR_IO, "%s is not the device that the kernel made", d->device.path);
    return 0;
}

static int nbd_attach(struct attach_backend *b, const char *volume, const struct attach_how *how,
                      struct attach_link *link, struct attach_device *ret, struct err *e) {
    struct nbd_backend *n = nbd_of(b);
    struct nbd_device d = {0};
    CHECK(strlen(volume) < sizeof d.device.volume);
    memcpy(d.device.volume, volume, strlen(volume) + 1);
    d.device.size_bytes = how->size_bytes;
    d.device.publish_epoch = how->publish_epoch;
    nbd_backend_print(d.backend, volume, how->publish_epoch);
    const struct nbd_connect c = {.size_bytes = how->size_bytes,
                                  .block_size_bytes = BLOCK_SIZE,
                                  .server_flags = how->nbd_flags,
                                  .dead_conn_timeout_s = n->config.dead_conn_timeout_s,
                                  .backend = d.backend,
                                  .socket = link->kernel_fd};
    pthread_mutex_lock(&n->mutex);
    int rc = nbd_netlink_connect(&c, &d.index, e);
    pthread_mutex_unlock(&n->mutex);
    if (rc < 0)
        return rc;
    snprintf(d.device.path, sizeof d.device.path, "/dev/nbd%u", d.index);
    rc = nbd_sysfs_set_io_timeout(SYSFS, d.index, n->config.io_timeout_ms, e);
    if (rc == 0)
        rc = wait_for_node(&d, e);
    if (rc < 0) {
        disconnect(n, &d, NULL);
        return rc;
    }
    close_fd(&link->kernel_fd);
    *ret = d.device;
    return 0;
}

/* Since Linux 6.9 the kernel freezes the queue for a new size: it waits for what is under way, and
 * generic netlink of the whole node waits with it. A daemon that dies just then could never be
 * followed by another: only grow what a live one serves. */
static int nbd_grow(struct attach_backend *b, const char *volume, uint64_t size_bytes,
                    struct err *e) {
    (void)b;
    struct nbd_device d;
    int rc = find_alive(volume, &d, e);
    if (rc < 0 || d.device.size_bytes >= size_bytes)
        return rc;
    rc = nbd_netlink_reconfigure(
        &(struct nbd_reconfigure){
            .index = d.index, .backend = d.backend, .socket = -1, .size_bytes = size_bytes},
        e);
    if (rc < 0)
        return explain(&d, rc, e);
    uint64_t now = nbd_sysfs_size_bytes(SYSFS, d.index);
    if (now < size_bytes)
        return err_set(e, -ERR_STALE, "%s has %llu bytes, not yet %llu", d.device.path,
                       (unsigned long long)now, (unsigned long long)size_bytes);
    return 0;
}

/* --- the next daemon --- */

static int nbd_resume(struct attach_backend *b, const char *volume, struct attach_link *link,
                      struct err *e) {
    (void)b;
    struct nbd_device d;
    int rc = find_alive(volume, &d, e);
    if (rc < 0)
        return rc;
    attach_link_close(link);
    return make_link(link, e);
}

/* Is there still a socket with this inode? When nobody of ours has it open: does the kernel hold
 * it? */
static bool socket_exists(ino_t inode) {
    FILE *f = fopen("/proc/net/unix", "re");
    if (!f)
        return true; /* cannot tell */
    bool found = false;
    char line[512];
    while (!found && fgets(line, sizeof line, f)) {
        unsigned long long number;
        found = sscanf(line, "%*s %*s %*s %*s %*s %*s %llu", &number) == 1 && number == inode;
    }
    fclose(f);
    return found;
}

/* The kernel takes a socket only in place of one that it knows to be dead. After the first that it
 * took, the others change nothing; a detach that had waited for it may be through before the last.
 */
static int give_socket(const struct nbd_backend *n, const struct nbd_device *d, int socket,
                       struct err *e) {
    for (int i = 0; i < SOCKET_TRIES_MAX; i++) {
        if (i > 0)
            pause_ms(SOCKET_PAUSE_MS);
        int rc = nbd_netlink_reconfigure(
            &(struct nbd_reconfigure){.index = d->index,
                                      .backend = d->backend,
                                      .socket = socket,
                                      .dead_conn_timeout_s = n->config.dead_conn_timeout_s},
            e);
        if (rc < 0)
            return i > 0 && is_over(d) ? 0 : explain(d, rc, e);
    }
    return 0;
}

static int nbd_reattach(struct attach_backend *b, const char *volume, const struct attach_how *how,
                        struct attach_link *link, struct err *e) {
    (void)how;
    struct nbd_device d;
    int rc = find_alive(volume, &d, e);
    if (rc < 0 || link->kernel_fd < 0) /* the daemon was given the socket that the kernel has */
        return rc;
    struct stat st;
    if (fstat(link->kernel_fd, &st) < 0)
        return err_from_errno(e, errno, "look at a socket");
    rc = give_socket(nbd_of(b), &d, link->kernel_fd, e);
    close_fd(&link->kernel_fd);
    if (rc < 0 || socket_exists(st.st_ino) || is_over(&d))
        return rc;
    return err_set(e, -ERR_BUSY,
                   "%s did not take the new connection: somebody holds the old one still",
                   d.device.path);
}

/* --- the end --- */

static int refuse_held(const struct nbd_device *d, struct err *e) {
    return err_set(e, -ERR_BUSY, "volume '%s': %s is mounted or held by another device",
                   d->device.volume, d->device.path);
}

static void keep_failed_locked(struct nbd_backend *n, const char *volume, int fd) {
    struct failed_device *f = NEW(struct failed_device);
    CHECK(strlen(volume) < sizeof f->volume);
    memcpy(f->volume, volume, strlen(volume) + 1);
    f->fd = fd;
    list_push_back(&n->failed, &f->node);
}

/* volume NULL: of all. */
static void drop_failed(struct nbd_backend *n, const char *volume) {
    pthread_mutex_lock(&n->mutex);
    for (struct list_node *i = n->failed.next, *next; i != &n->failed; i = next) {
        next = i->next;
        struct failed_device *f = container_of(i, struct failed_device, node);
        if (volume && strcmp(f->volume, volume) != 0)
            continue;
        list_remove(i);
        close(f->fd);
        free(f);
    }
    pthread_mutex_unlock(&n->mutex);
}

static void wait_until_gone(struct nbd_backend *n, const struct nbd_device *d) {
    drop_failed(n, d->device.volume); /* of a fail meanwhile */
    for (int waited = 0; waited < GONE_WAIT_MS_MAX; waited += POLL_MS) {
        if (!nbd_sysfs_is_connected(SYSFS, d->index, d->backend))
            return;
        pause_ms(POLL_MS);
    }
}

/* Held exclusively until the end: nobody mounts it meanwhile. Who has it open otherwise (the kernel
 * does not tell) keeps a device whose requests fail, after all that was written has been flushed.
 */
static int detach_gently(struct nbd_backend *n, const struct nbd_device *d, struct err *e) {
    CLEANUP_FD int fd = open(d->device.path, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY)
        return refuse_held(d, e);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s", d->device.path);
    if (nbd_sysfs_is_held(SYSFS, d->index))
        return refuse_held(d, e);
    if (fsync(fd) < 0)
        return err_from_errno(e, errno, "flush %s", d->device.path);
    int rc = disconnect(n, d, e);
    if (rc < 0)
        return rc;
    close_fd(&fd);
    wait_until_gone(n, d);
    return 0;
}

/* fail came before: only its users are waited for. */
static int detach_dead(struct nbd_backend *n, const struct nbd_device *d, struct err *e) {
    CLEANUP_FD int fd = open(d->device.path, O_RDONLY | O_EXCL | O_CLOEXEC);
    if (fd < 0 && errno == EBUSY)
        return refuse_held(d, e);
    close_fd(&fd);
    wait_until_gone(n, d);
    return 0;
}

static int nbd_detach(struct attach_backend *b, const char *volume, bool force, struct err *e) {
    struct nbd_backend *n = nbd_of(b);
    struct nbd_device d;
    bool alive;
    drop_failed(n, volume);
    int rc = find(volume, &d, &alive, e);
    if (rc < 0)
        return rc == -ERR_NOT_FOUND ? 0 : rc;
    if (!force)
        return alive ? detach_gently(n, &d, e) : detach_dead(n, &d, e);
    rc = disconnect(n, &d, e);
    drop_failed(n, volume);
    return rc;
}

/* Opened only afterwards: opening may wait for whoever waits for the daemon. */
static void nbd_fail(struct attach_backend *b, const char *volume) {
    struct nbd_backend *n = nbd_of(b);
    struct nbd_device d;
    pthread_mutex_lock(&n->mutex);
    if (find_alive(volume, &d, NULL) == 0 && nbd_netlink_disconnect(d.index, NULL) == 0) {
        int fd = open(d.device.path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            keep_failed_locked(n, volume, fd);
    }
    pthread_mutex_unlock(&n->mutex);
}

static void nbd_close(struct attach_backend *b) {
    struct nbd_backend *n = nbd_of(b);
    drop_failed(n, NULL);
    pthread_mutex_destroy(&n->mutex);
    free(n);
}

static const struct attach_ops nbd_ops = {
    .name = "nbd",
    .daemon_flag = "--nbd-fd",
    .probe = nbd_probe,
    .prepare = nbd_prepare,
    .attach = nbd_attach,
    .resume = nbd_resume,
    .reattach = nbd_reattach,
    .detach = nbd_detach,
    .grow = nbd_grow,
    .fail = nbd_fail,
    .discover = nbd_discover,
    .close = nbd_close,
};

int attach_nbd_open(const struct attach_nbd_config *config, struct attach_backend **ret,
                    struct err *e) {
    (void)e;
    struct nbd_backend *n = NEW(struct nbd_backend);
    n->base.ops = &nbd_ops;
    pthread_mutex_init(&n->mutex, NULL);
    list_init(&n->failed);
    if (config)
        n->config = *config;
    if (!n->config.dead_conn_timeout_s)
        n->config.dead_conn_timeout_s = DEAD_CONN_TIMEOUT_S_DEFAULT;
    if (!n->config.io_timeout_ms)
        n->config.io_timeout_ms = IO_TIMEOUT_MS_DEFAULT;
    *ret = &n->base;
    return 0;
}
