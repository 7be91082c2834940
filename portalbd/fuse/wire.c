/* The FUSE protocol, sans I/O (see wire.h).
 *
 * The mount's root inode (number 1) is the file itself ("rootmode=100000"), so there are no
 * lookups, no directories and no other inode. Fixed layouts come and go by memcpy between byte
 * ranges whose length was checked and the kernel header's structs; out structs start zeroed.
 *
 * The file is opened for direct I/O by every opener: the page cache would hold acknowledged bytes
 * that no FLUSH covers, and a second copy of everything. */
#include "portalbd/fuse/wire.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <sys/stat.h>

/* Newer than the kernel headers that we compile with. */
#ifndef FUSE_HAS_RESEND /* 7.40 */
#define FUSE_HAS_RESEND (1ULL << 39)
#endif
#ifndef FUSE_UNIQUE_RESEND /* 7.40: set in the unique of a request that is sent again */
#define FUSE_UNIQUE_RESEND (1ULL << 63)
#endif

_Static_assert(sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) == FUSE_WIRE_HEAD_SIZE,
               "what precedes the data of a WRITE");
_Static_assert(sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) + FUSE_WIRE_DATA_MAX ==
                   FUSE_WIRE_REQUEST_MAX,
               "the largest request");
_Static_assert(sizeof(struct fuse_out_header) + sizeof(struct fuse_attr_out) <= FUSE_WIRE_REPLY_MAX,
               "the largest reply");
_Static_assert(sizeof(struct fuse_out_header) + sizeof(struct fuse_statfs_out) <=
                   FUSE_WIRE_REPLY_MAX,
               "the largest reply");

enum {
    NOTIFY_RESEND = 7, /* FUSE_NOTIFY_RESEND, 7.40 */
    BLOCK_SIZE = 4096, /* what STATFS and GETATTR name: loop takes its discard granularity there */
    CONGESTED_AT = FUSE_WIRE_IN_FLIGHT_MAX * 3 / 4,
    ROOT_INODE = 1,
};

/* A fixed-size struct at the start of the body; false when the body is shorter. */
static bool take(struct view body, void *to, size_t size) {
    if (body.len < size)
        return false;
    memcpy(to, body.data, size);
    return true;
}

static bool parse_init(struct view body, struct fuse_wire_request *r) {
    struct fuse_init_in in = {0};
    if (body.len < offsetof(struct fuse_init_in, flags2))
        return false;
    memcpy(&in, body.data, MIN(body.len, sizeof in));
    r->init.major = in.major;
    r->init.minor = in.minor;
    r->init.max_readahead = in.max_readahead;
    r->init.flags = in.flags;
    if (in.flags & FUSE_INIT_EXT)
        r->init.flags |= (uint64_t)in.flags2 << 32;
    return true;
}

static bool parse_read(struct view body, struct fuse_wire_request *r) {
    struct fuse_read_in in;
    if (!take(body, &in, sizeof in) || in.size > FUSE_WIRE_DATA_MAX)
        return false;
    r->io.off = in.offset;
    r->io.len = in.size;
    return true;
}

static bool parse_write(struct view body, struct fuse_wire_request *r) {
    struct fuse_write_in in;
    if (!take(body, &in, sizeof in) || in.size > FUSE_WIRE_DATA_MAX ||
        in.size != body.len - sizeof in)
        return false;
    r->io.off = in.offset;
    r->io.len = in.size;
    r->io.data = body.data + sizeof in;
    return true;
}

static bool parse_fallocate(struct view body, struct fuse_wire_request *r) {
    struct fuse_fallocate_in in;
    if (!take(body, &in, sizeof in))
        return false;
    r->io.off = in.offset;
    r->io.len = in.length;
    r->io.keep_size = (in.mode & FALLOC_FL_KEEP_SIZE) != 0;
    switch (in.mode & ~(uint32_t)FALLOC_FL_KEEP_SIZE) {
    case FALLOC_FL_PUNCH_HOLE:
        r->kind = FUSE_WIRE_PUNCH_HOLE;
        return true;
    case FALLOC_FL_ZERO_RANGE:
        r->kind = FUSE_WIRE_ZERO_RANGE;
        return true;
    default: /* allocating, collapsing, inserting: a block device has none of it */
        r->kind = FUSE_WIRE_FALLOCATE_OTHER;
        return true;
    }
}

static bool parse_open(struct view body, struct fuse_wire_request *r) {
    struct fuse_open_in in;
    if (!take(body, &in, sizeof in))
        return false;
    r->open.flags = in.flags;
    return true;
}

static bool parse_body(uint32_t opcode, struct view body, struct fuse_wire_request *r) {
    switch (opcode) {
    case FUSE_INIT:
        r->kind = FUSE_WIRE_INIT;
        return parse_init(body, r);
    case FUSE_OPEN:
        r->kind = FUSE_WIRE_OPEN;
        return parse_open(body, r);
    case FUSE_READ:
        r->kind = FUSE_WIRE_READ;
        return parse_read(body, r);
    case FUSE_WRITE:
        r->kind = FUSE_WIRE_WRITE;
        return parse_write(body, r);
    case FUSE_FALLOCATE:
        return parse_fallocate(body, r);
    case FUSE_GETATTR:
        r->kind = FUSE_WIRE_GETATTR;
        return true;
    case FUSE_SETATTR:
        r->kind = FUSE_WIRE_SETATTR;
        return true;
    case FUSE_FSYNC:
        r->kind = FUSE_WIRE_FSYNC;
        return true;
    case FUSE_FLUSH:
        r->kind = FUSE_WIRE_FLUSH;
        return true;
    case FUSE_RELEASE:
        r->kind = FUSE_WIRE_RELEASE;
        return true;
    case FUSE_STATFS:
        r->kind = FUSE_WIRE_STATFS;
        return true;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
        r->kind = FUSE_WIRE_FORGET;
        return true;
    case FUSE_INTERRUPT:
        r->kind = FUSE_WIRE_INTERRUPT;
        return true;
    case FUSE_DESTROY:
        r->kind = FUSE_WIRE_DESTROY;
        return true;
    default:
        r->kind = FUSE_WIRE_OTHER;
        return true;
    }
}

int fuse_wire_parse(struct view bytes, struct fuse_wire_request *ret, struct err *e) {
    struct fuse_in_header head;
    *ret = (struct fuse_wire_request){.kind = FUSE_WIRE_OTHER};
    if (!take(bytes, &head, sizeof head))
        return err_set(e, -ERR_INVALID, "fuse: a request of %zu bytes has no header", bytes.len);
    ret->unique = head.unique;
    ret->resent = (head.unique & FUSE_UNIQUE_RESEND) != 0;
    if (head.len != bytes.len)
        return err_set(e, -ERR_INVALID, "fuse: a request of %zu bytes says it has %u", bytes.len,
                       head.len);
    if (!parse_body(head.opcode, view_part(bytes, sizeof head, bytes.len - sizeof head), ret))
        return err_set(e, -ERR_INVALID,
                       "fuse: a request with operation %u and %zu bytes is malformed", head.opcode,
                       bytes.len);
    return 0;
}

int fuse_wire_negotiate(const struct fuse_wire_request *init, struct fuse_wire_agreement *ret,
                        struct err *e) {
    const uint64_t needed = FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_MAX_PAGES;
    const uint64_t wanted = needed | FUSE_ASYNC_READ | FUSE_INIT_EXT | FUSE_HAS_RESEND;
    CHECK(init->kind == FUSE_WIRE_INIT);
    if (init->init.major != FUSE_KERNEL_VERSION || init->init.minor < FUSE_WIRE_MINOR_MIN)
        return err_set(e, -ERR_UNSUPPORTED,
                       "the kernel speaks FUSE %u.%u; 7.%d or newer (Linux 5.4) is needed",
                       init->init.major, init->init.minor, FUSE_WIRE_MINOR_MIN);
    if ((init->init.flags & needed) != needed)
        return err_set(e, -ERR_UNSUPPORTED,
                       "the kernel's FUSE (flags %llx) has no large or no parallel direct I/O",
                       (unsigned long long)init->init.flags);
    ret->minor = MIN(init->init.minor, (uint32_t)FUSE_KERNEL_MINOR_VERSION);
    ret->flags = init->init.flags & wanted;
    ret->resend = (ret->flags & FUSE_HAS_RESEND) != 0;
    return 0;
}

/* Head and fixed-size body; body_len 0: head alone. */
static size_t put(uint8_t *out, uint64_t unique, int eno, const void *body, size_t body_len) {
    struct fuse_out_header head = {
        .len = (uint32_t)(sizeof head + body_len), .error = -eno, .unique = unique};
    CHECK(head.len <= FUSE_WIRE_REPLY_MAX);
    memcpy(out, &head, sizeof head);
    if (body_len)
        memcpy(out + sizeof head, body, body_len);
    return head.len;
}

size_t fuse_wire_put_error(uint8_t *out, uint64_t unique, int eno) {
    CHECK(eno >= 0 && eno < 512); /* the kernel refuses others */
    return put(out, unique, eno, NULL, 0);
}

size_t fuse_wire_put_init(uint8_t *out, const struct fuse_wire_request *init,
                          const struct fuse_wire_agreement *agreed) {
    struct fuse_init_out o = {
        .major = FUSE_KERNEL_VERSION,
        .minor = agreed->minor,
        .max_readahead = init->init.max_readahead,
        .flags = (uint32_t)agreed->flags,
        .flags2 = (uint32_t)(agreed->flags >> 32),
        .max_background = FUSE_WIRE_IN_FLIGHT_MAX,
        .congestion_threshold = CONGESTED_AT,
        .max_write = FUSE_WIRE_DATA_MAX,
        .max_pages = FUSE_WIRE_DATA_MAX / 4096,
        .time_gran = 1,
    };
    return put(out, init->unique, 0, &o, sizeof o);
}

size_t fuse_wire_put_init_major(uint8_t *out, uint64_t unique) {
    struct fuse_init_out o = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION};
    return put(out, unique, 0, &o, sizeof o);
}

/* attr_valid stays 0: the size is asked for again each time, so a grown device shows at once. */
size_t fuse_wire_put_attr(uint8_t *out, uint64_t unique, const struct fuse_wire_file *file) {
    struct fuse_attr_out o = {.attr = {
                                  .ino = ROOT_INODE,
                                  .size = file->size_bytes,
                                  .blocks = file->size_bytes / SECTOR_SIZE,
                                  .mode = S_IFREG | (file->read_only ? 0400 : 0600),
                                  .nlink = 1,
                                  .blksize = BLOCK_SIZE,
                              }};
    return put(out, unique, 0, &o, sizeof o);
}

size_t fuse_wire_put_open(uint8_t *out, uint64_t unique) {
    struct fuse_open_out o = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};
    return put(out, unique, 0, &o, sizeof o);
}

size_t fuse_wire_put_written(uint8_t *out, uint64_t unique, uint32_t len) {
    struct fuse_write_out o = {.size = len};
    return put(out, unique, 0, &o, sizeof o);
}

size_t fuse_wire_put_statfs(uint8_t *out, uint64_t unique, const struct fuse_wire_file *file) {
    struct fuse_statfs_out o = {.st = {
                                    .blocks = file->size_bytes / BLOCK_SIZE,
                                    .bsize = BLOCK_SIZE,
                                    .frsize = BLOCK_SIZE,
                                    .files = 1,
                                    .namelen = 255,
                                }};
    return put(out, unique, 0, &o, sizeof o);
}

size_t fuse_wire_put_read_head(uint8_t *out, uint64_t unique, uint32_t len) {
    struct fuse_out_header head = {.len = (uint32_t)sizeof head + len, .unique = unique};
    CHECK(len <= FUSE_WIRE_DATA_MAX);
    memcpy(out, &head, sizeof head);
    return sizeof head;
}

/* A notification: unique is 0, the code is positive. */
static size_t put_notification(uint8_t *out, int code, const void *body, size_t body_len) {
    return put(out, 0, -code, body, body_len);
}

/* fs/fuse/dev.c, fuse_notify_resend: the requests go back to the queue that read(2) takes from,
 * oldest first, in front of those that nobody has read. */
size_t fuse_wire_put_resend(uint8_t *out) {
    return put_notification(out, NOTIFY_RESEND, NULL, 0);
}

/* A negative offset: attributes only, no cached pages (there are none). fs/fuse/inode.c,
 * fuse_reverse_inval_inode. */
size_t fuse_wire_put_attr_changed(uint8_t *out) {
    struct fuse_notify_inval_inode_out o = {.ino = ROOT_INODE, .off = -1};
    return put_notification(out, FUSE_NOTIFY_INVAL_INODE, &o, sizeof o);
}
