/* The kernel's FUSE protocol for a filesystem that is one regular file: request bytes in, reply
 * bytes out. Pure and bounded: no descriptor, no state, nothing is allocated. Any thread.
 *
 * The protocol's numbers and layouts are <linux/fuse.h> (7.31 to 7.x, kernels from 5.4 on); they
 * are native-endian structs between one kernel and one process of the same machine. */
#pragma once

#include "common/err.h"
#include "common/view.h"

enum {
    FUSE_WIRE_DATA_MAX = 1024 * 1024,         /* bytes of one READ or WRITE */
    FUSE_WIRE_HEAD_SIZE = 80,                 /* bytes in front of the data of a WRITE */
    FUSE_WIRE_REQUEST_MAX = 80 + 1024 * 1024, /* bytes of any request */
    FUSE_WIRE_REPLY_MAX = 136,                /* bytes of any reply, the data of a READ apart */
    FUSE_WIRE_IN_FLIGHT_MAX = 128, /* requests that we ask the kernel to have under way */
    FUSE_WIRE_MINOR_MIN = 31,      /* the oldest protocol version we speak: 7.31 */
};

enum fuse_wire_kind {
    FUSE_WIRE_INIT,
    FUSE_WIRE_GETATTR,
    FUSE_WIRE_SETATTR,
    FUSE_WIRE_OPEN,
    FUSE_WIRE_READ,
    FUSE_WIRE_WRITE,
    FUSE_WIRE_FSYNC,
    FUSE_WIRE_FLUSH, /* a close(2): promises nothing */
    FUSE_WIRE_RELEASE,
    FUSE_WIRE_PUNCH_HOLE, /* FALLOCATE, by its mode */
    FUSE_WIRE_ZERO_RANGE,
    FUSE_WIRE_STATFS,
    FUSE_WIRE_FORGET,    /* one or many; must not be answered */
    FUSE_WIRE_INTERRUPT, /* answered with ENOSYS, once, to be spared them */
    FUSE_WIRE_DESTROY,
    FUSE_WIRE_FALLOCATE_OTHER, /* EOPNOTSUPP: at ENOSYS the kernel would never punch a hole again */
    FUSE_WIRE_OTHER,           /* whatever else: ENOSYS */
};

struct fuse_wire_request {
    enum fuse_wire_kind kind;
    uint64_t unique; /* goes back unchanged */
    bool resent;     /* an earlier process may have read it already, and did not answer */
    union {
        struct {
            uint32_t major, minor;
            uint64_t flags;
            uint32_t max_readahead;
        } init;
        struct {
            uint32_t flags; /* of open(2) */
        } open;
        struct {
            uint64_t off;        /* bytes */
            uint64_t len;        /* bytes; READ and WRITE: at most FUSE_WIRE_DATA_MAX */
            const uint8_t *data; /* WRITE: into the request's bytes */
            bool keep_size; /* PUNCH_HOLE, ZERO_RANGE: what lies behind the end is left alone */
        } io;
    };
};

/* -ERR_INVALID: not a request of this protocol; ret->unique is then what to answer (EIO), or 0 when
 * there is not even a header. */
int fuse_wire_parse(struct view bytes, struct fuse_wire_request *ret, struct err *e);

/* What both sides agreed on. */
struct fuse_wire_agreement {
    uint32_t minor;
    uint64_t flags;
    bool resend; /* the kernel can send unanswered requests again, to a new process */
};
/* What we take of what an INIT offers. -ERR_UNSUPPORTED: too old, or no direct I/O in parallel. */
int fuse_wire_negotiate(const struct fuse_wire_request *init, struct fuse_wire_agreement *ret,
                        struct err *e);

/* What the one file looks like. */
struct fuse_wire_file {
    uint64_t size_bytes;
    bool read_only;
};

/* Replies: each writes into `out` (FUSE_WIRE_REPLY_MAX bytes) and returns how many. */
size_t fuse_wire_put_error(uint8_t *out, uint64_t unique, int eno); /* eno > 0; 0: plain success */
size_t fuse_wire_put_init(uint8_t *out, const struct fuse_wire_request *init,
                          const struct fuse_wire_agreement *agreed);
/* A kernel with a newer major version: it asks again with ours. */
size_t fuse_wire_put_init_major(uint8_t *out, uint64_t unique);
size_t fuse_wire_put_attr(uint8_t *out, uint64_t unique, const struct fuse_wire_file *file);
size_t fuse_wire_put_open(uint8_t *out, uint64_t unique);
size_t fuse_wire_put_written(uint8_t *out, uint64_t unique, uint32_t len);
size_t fuse_wire_put_statfs(uint8_t *out, uint64_t unique, const struct fuse_wire_file *file);
/* The head in front of len bytes of data. */
size_t fuse_wire_put_read_head(uint8_t *out, uint64_t unique, uint32_t len);
/* Not a reply: asks for every request again that was read and not answered (Linux 6.9). */
size_t fuse_wire_put_resend(uint8_t *out);
/* Not a reply: tells the kernel to forget the attributes (the size) that it knows. */
size_t fuse_wire_put_attr_changed(uint8_t *out);
