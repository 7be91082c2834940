/* A block device as one file of a FUSE mount: reads the kernel's requests from a /dev/fuse
 * descriptor on an event loop, and answers them from a struct blockdev, in any order.
 *
 * Who mounts the file hands us the descriptor; the device's size is the file's. READ, WRITE, FSYNC,
 * PUNCH_HOLE and ZERO_RANGE become BD_READ, BD_WRITE, BD_FLUSH, BD_TRIM and BD_WRITE_ZEROES. What
 * is not aligned to sectors is refused (EINVAL), except reads, which may begin and end anywhere.
 *
 * Limits: FUSE_WIRE_IN_FLIGHT_MAX requests under way, FUSE_SERVER_LARGE_MAX of them with more than
 * FUSE_SERVER_SMALL_SIZE bytes. At a limit requests wait in the kernel.
 *
 * Everything on the loop's owner thread. */
#pragma once

#include "common/loop.h"
#include "portalbd/blockdev/blockdev.h"

enum {
    FUSE_SERVER_SMALL_SIZE = 32 * 1024, /* bytes of data that every request has room for */
    FUSE_SERVER_LARGE_MAX = 32,         /* requests with up to 1 MiB of data */
};

struct fuse_server;

struct fuse_server_config {
    struct loop *loop;    /* borrowed */
    struct blockdev *dev; /* borrowed until fuse_server_free */
    int fd;               /* /dev/fuse; borrowed until fuse_server_free, made non-blocking */
    /* An earlier process served this connection (it may have died): no INIT will come, and what it
     * had read and not answered is asked for again. Linux < 6.9 cannot send it again: those
     * requests stay without an answer, which is logged; after a drain there are none. */
    bool resume;
    /* The mount is gone, or (rc < 0, text) it cannot be served. At most once, in a turn of its own;
     * requests may still be with the device. May be NULL. */
    void (*ended)(void *arg, int rc, const char *text);
    void *arg;
};

struct fuse_server_stats {
    uint64_t requests[BD_OPS]; /* that reached the device */
    uint64_t bytes_read, bytes_written;
    uint64_t errors;    /* answered with an errno, ENOSYS apart */
    uint64_t waits;     /* times that a limit was met */
    uint64_t malformed; /* requests that were not understood */
    uint64_t resent;    /* requests that an earlier process had not answered */
    unsigned in_flight;
    bool resend; /* the kernel can send unanswered requests to a successor */
};

int fuse_server_new(const struct fuse_server_config *config, struct fuse_server **ret,
                    struct err *e);
/* After fuse_server_drain. */
void fuse_server_free(struct fuse_server *s);

/* fiber. Reads no more requests and waits until all that were read are answered, also when the
 * fiber is cancelled. Afterwards another process may go on with a copy of the descriptor (resume):
 * what was not read waits in the kernel. */
void fuse_server_drain(struct fuse_server *s);
/* Takes it back: reads requests again. A fiber that still waits in fuse_server_drain returns. */
void fuse_server_undrain(struct fuse_server *s);

/* The device has grown: the kernel asks for the size again. */
void fuse_server_grew(struct fuse_server *s);

/* Owner thread. */
struct fuse_server_stats fuse_server_stats(const struct fuse_server *s);
