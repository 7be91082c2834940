/* How a volume becomes a block device of this kernel: the interface of the attach backends.
 *
 * A backend keeps no state of its own: what is attached is read from the kernel each time, so an
 * agent that starts anew finds everything. The life of a device, and of the daemons that serve it:
 *
 *     prepare    the kernel's side is made; gives the descriptors (attach_link)
 *     (the daemon is started with link.daemon_fd and serves)
 *     attach     the block device appears
 *     grow       any time in between
 *     detach     the block device goes, then the kernel's side; the daemon sees the end of its
 *                descriptor
 *
 * and when the daemon died, or handed over, while the device stays:
 *
 *     resume     gives a descriptor for the next daemon
 *     (it is started with it, and serves)
 *     reattach   requests that the device has waiting go to it
 *
 * From the daemon's end to reattach, requests wait in the kernel; none fails. What is waited for at
 * most is the backend's (nbd: dead_conn_timeout), unless fail or detach ends it.
 *
 * All functions block (system calls, and requests that the daemon answers) and are called on worker
 * threads, for different volumes at the same time. Of one volume, one of prepare, attach and detach
 * at a time, and one of resume and reattach; discover, grow and fail at any time, and all of these
 * beside each other. A call that is overtaken by another (the device went meanwhile) returns an
 * error, and touches no other volume's device.
 *
 * attach, grow and detach without force make requests that a daemon has to answer: when it dies or
 * hangs meanwhile, they wait like every other request, for the next daemon (resume and reattach
 * beside them) or for fail: a call that waits then returns with an error, soon. It is how a caller
 * sets a limit. The other functions never wait for a daemon.
 *
 * Volume ids were checked: 1..63 bytes of [A-Za-z0-9._-]. */
#pragma once

#include <sys/types.h>

#include "common/err.h"

enum {
    ATTACH_VOLUME_MAX = 64,   /* bytes of a volume id, its NUL included */
    ATTACH_PATH_MAX = 32,     /* bytes of a device's path, its NUL included */
    ATTACH_DEVICES_MAX = 512, /* devices on a node */
    ATTACH_NOTE_MAX = 256,    /* bytes of what probe has to say, NUL included */
};

struct attach_device {
    char volume[ATTACH_VOLUME_MAX];
    char path[ATTACH_PATH_MAX]; /* "/dev/loop3"; "": prepared, and no device yet */
    uint64_t size_bytes;        /* as the kernel knows it */
    uint64_t publish_epoch;     /* nbd: as the kernel knows it; 0: not known */
};

struct attach_devices {
    struct attach_device *items; /* owned */
    size_t count;
};
void attach_devices_release(struct attach_devices *d);
const struct attach_device *attach_devices_find(const struct attach_devices *d, const char *volume);

/* Descriptors of one device; -1: none. Owned by the caller, who closes both when the device is
 * gone, and daemon_fd as soon as the daemon runs. */
struct attach_link {
    int daemon_fd; /* for the daemon */
    int kernel_fd; /* fuse: a copy of the connection, which lives as long as one of its copies does;
                      kept while the device lives; -1 before Linux 6.9. nbd: the kernel's end of the
                      socket; attach and reattach hand it over, and close it */
};
#define ATTACH_LINK_NONE ((struct attach_link){.daemon_fd = -1, .kernel_fd = -1})
void attach_link_close(struct attach_link *l);

struct attach_how {
    uint64_t publish_epoch;
    uint64_t size_bytes; /* that the daemon serves */
    uint16_t nbd_flags;  /* the daemon's NBD transmission flags; other backends look away */
    bool read_only;
};

struct attach_backend;
struct attach_ops {
    const char *name;
    const char *daemon_flag; /* how the daemon gets its descriptor: "--fuse-fd", "--nbd-fd" */
    /* Can this node do it? May load a kernel module. -ERR_UNSUPPORTED says what is missing and what
     * to do. 0: ret_note (ATTACH_NOTE_MAX bytes) is "" or what does not survive here ("Linux 6.1:
     * I/O that is under way fails when a daemon dies; 6.9 is needed"). */
    int (*probe)(struct attach_backend *b, char *ret_note, struct err *e);
    /* -ERR_EXISTS: prepared already. */
    int (*prepare)(struct attach_backend *b, const char *volume, struct attach_link *ret,
                   struct err *e);
    /* On an error the device is not there; what prepare made goes with detach. */
    int (*attach)(struct attach_backend *b, const char *volume, const struct attach_how *how,
                  struct attach_link *link, struct attach_device *ret, struct err *e);
    /* The device is there, its daemon has ended. Fills link->daemon_fd (and what else it needs) for
     * the next. fuse: needs link->kernel_fd (kept since prepare, or a copy that a daemon gave);
     * -ERR_IO when there is none, or the connection is over. nbd: -ERR_NOT_FOUND when the device is
     * over. */
    int (*resume)(struct attach_backend *b, const char *volume, struct attach_link *link,
                  struct err *e);
    /* The next daemon serves. Returns when the kernel really uses it, or has used it: a detach that
     * waited may be through by then. The device was over before: -ERR_IO (fuse), -ERR_NOT_FOUND
     * (nbd). */
    int (*reattach)(struct attach_backend *b, const char *volume, const struct attach_how *how,
                    struct attach_link *link, struct err *e);
    /* -ERR_BUSY: mounted, or open by somebody. Nothing there is success. Without force everything
     * written has reached the daemon when it returns: with a dead one it waits (above). force:
     * every request that is under way or comes later fails, and the device goes when its last user
     * does. */
    int (*detach)(struct attach_backend *b, const char *volume, bool force, struct err *e);
    /* The daemon serves size_bytes already. */
    int (*grow)(struct attach_backend *b, const char *volume, uint64_t size_bytes, struct err *e);
    /* Nobody will serve this device again: every request fails from now on, those that wait
     * included. The device stays until detach. */
    void (*fail)(struct attach_backend *b, const char *volume);
    /* Everything of this kind (and, where the kernel shows it, run folder) that the kernel knows.
     */
    int (*discover)(struct attach_backend *b, struct attach_devices *ret, struct err *e);
    void (*close)(struct attach_backend *b); /* frees the backend; devices stay */
};

struct attach_backend {
    const struct attach_ops *ops;
};

/* A one-file FUSE mount in <run_dir>/devices and a loop device over it. */
int attach_fuse_open(const char *run_dir, struct attach_backend **ret, struct err *e);

struct attach_nbd_config {
    uint64_t dead_conn_timeout_s; /* how long requests wait for the next daemon; 0: 86400 */
    uint64_t io_timeout_ms; /* how soon requests that a dead daemon had are sent again (the tick of
                               queue/io_timeout); 0: 2000 */
};
/* The kernel's NBD client, by netlink (Linux >= 5.14). config may be NULL. */
int attach_nbd_open(const struct attach_nbd_config *config, struct attach_backend **ret,
                    struct err *e);
