/* The one-file FUSE server.
 *
 * /dev/fuse gives one request a read(2) and takes one reply a write(2). While requests come, up to
 * BATCH_MAX are read before the loop looks at anything else; that and answering from within the
 * submit call are what make one thread enough.
 *
 * Memory: every request slot has SMALL_SIZE bytes. A request is read into a *staging* buffer of the
 * large pool, since nobody knows its size before; a small WRITE is copied into its slot, a large
 * one keeps the staging buffer, and so does a large READ (for its data), and the next request is
 * read into another. The request's head is placed in front of a page boundary so that the data of a
 * WRITE begins on one. Buffers are touched in LIFO order and given back to the system when they
 * have not been needed for a while. The pages of a staging buffer are there before anything is read
 * into it: a process that is killed while the kernel waits for a page of its makes the kernel fail
 * the request (fs/fuse/dev.c, fuse_dev_do_read: a copy that fails ends the request with EIO), and
 * one that dies between two calls loses none.
 *
 * Invariants:
 * I1  a slot is free or with the device; a busy slot is answered exactly once;
 * I2  a request is read only when a free slot and a staging buffer are there;
 * I3  in_flight + free slots = IN_FLIGHT_MAX. */
#include "portalbd/fuse/server.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/log.h"
#include "common/mem.h"
#include "portalbd/fuse/wire.h"

enum {
    PAGE = 4096,
    BATCH_MAX = 32, /* requests taken in one turn */
    /* A page for the head, the data, and a page for a read that is not aligned at both ends. */
    LARGE_SIZE = PAGE + FUSE_WIRE_DATA_MAX + PAGE,
    SLOT_SIZE = FUSE_SERVER_SMALL_SIZE + PAGE,
    TRIM_AFTER_US = 10 * 1000 * 1000,
};

#ifndef MADV_DONTNEED_LOCKED /* Linux 5.18 */
#define MADV_DONTNEED_LOCKED 24
#endif

struct slot {
    struct bd_request req;
    struct fuse_server *server;
    struct slot *next_free;
    uint8_t *small; /* SLOT_SIZE bytes, the slot's own */
    uint8_t *large; /* LARGE_SIZE bytes while it has them, else NULL */
    uint64_t unique;
    uint32_t len;  /* READ, WRITE: bytes that were asked for */
    uint32_t skip; /* READ: bytes of read_buf in front of them */
};

struct fuse_server {
    struct env *env;
    struct fuse_server_config config;
    struct loop_watch watch;
    bool paused;  /* a limit was met: the descriptor is not watched */
    bool stopped; /* draining, or ended */
    bool ended;
    struct env_event end_event;
    struct err end_reason;

    struct slot slots[FUSE_WIRE_IN_FLIGHT_MAX];
    struct slot *free_slot;
    unsigned in_flight;
    uint8_t *staging; /* NULL when all large buffers are with requests */
    uint8_t *large_free[FUSE_SERVER_LARGE_MAX + 1];
    unsigned large_free_count;
    bool large_touched;
    struct env_timer trim_timer;
    uint64_t large_resident; /* bit i: pages of the i-th large buffer are there */
    uint8_t *memory;
    size_t memory_size;

    struct fiber_done idle; /* stopped, and nothing is in flight any more */
    struct fuse_server_stats stats;
};

static void end(struct fuse_server *s, int rc, const char *text) {
    if (s->ended)
        return;
    s->ended = s->stopped = true;
    s->end_reason.code = rc;
    if (rc < 0)
        err_set_text(&s->end_reason, rc, "%s", text);
    loop_watch_stop(&s->watch);
    env_post(s->env, &s->end_event);
}

static void on_end_event(struct env_event *event) {
    struct fuse_server *s = container_of(event, struct fuse_server, end_event);
    if (s->config.ended)
        s->config.ended(s->config.arg, s->end_reason.code, s->end_reason.text);
}

/* The kernel takes a reply whole or not at all. ENOENT: nobody waits for it any more. */
static void send_reply(struct fuse_server *s, const void *head, size_t head_len, const void *data,
                       size_t data_len) {
    struct iovec iov[2] = {{(void *)head, head_len}, {(void *)data, data_len}};
    ssize_t n;
    do
        n = writev(s->config.fd, iov, data_len ? 2 : 1);
    while (n < 0 && errno == EINTR);
    if (n >= 0 || errno == ENOENT)
        return;
    if (errno == ENODEV || errno == EPERM || errno == EPIPE || errno == ECONNRESET) {
        end(s, 0, NULL);
        return;
    }
    struct err e;
    err_from_errno(&e, errno, "fuse: reply of %zu bytes", head_len + data_len);
    end(s, e.code, e.text);
}

static void reply_error(struct fuse_server *s, uint64_t unique, int eno) {
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    if (eno && eno != ENOSYS)
        s->stats.errors++;
    send_reply(s, out, fuse_wire_put_error(out, unique, eno), NULL, 0);
}

static struct fuse_wire_file file_of(struct fuse_server *s) {
    return (struct fuse_wire_file){.size_bytes = bd_size_bytes(s->config.dev),
                                   .read_only = s->config.dev->read_only};
}

/* --- slots and buffers --- */

static void watch_again(struct fuse_server *s) {
    struct err e;
    s->paused = false;
    if (loop_watch_start(s->config.loop, &s->watch, s->config.fd, LOOP_READABLE, &e) < 0)
        end(s, e.code, e.text);
}

static void pause_reading(struct fuse_server *s) {
    struct err e;
    s->paused = true;
    s->stats.waits++;
    if (loop_watch_start(s->config.loop, &s->watch, s->config.fd, 0, &e) < 0)
        end(s, e.code, e.text);
}

static uint64_t large_bit(const struct fuse_server *s, const uint8_t *large) {
    size_t first = (size_t)FUSE_WIRE_IN_FLIGHT_MAX * SLOT_SIZE;
    size_t i = ((size_t)(large - s->memory) - first) / LARGE_SIZE;
    CHECK(i < ARRAY_LEN(s->large_free) && ARRAY_LEN(s->large_free) <= 64);
    return 1ULL << i;
}

static void on_trim(struct env_timer *timer) {
    struct fuse_server *s = container_of(timer, struct fuse_server, trim_timer);
    if (s->in_flight) {
        env_timer_start(s->env, timer, TRIM_AFTER_US);
        return;
    }
    s->large_touched = false;
    for (unsigned i = 0; i < s->large_free_count; i++) {
        if (madvise(s->large_free[i], LARGE_SIZE, MADV_DONTNEED) < 0)
            madvise(s->large_free[i], LARGE_SIZE, MADV_DONTNEED_LOCKED);
        s->large_resident &= ~large_bit(s, s->large_free[i]);
    }
}

static void make_resident(struct fuse_server *s, uint8_t *large) {
    if (s->large_resident & large_bit(s, large))
        return;
    for (size_t i = 0; i < LARGE_SIZE; i += PAGE)
        ((volatile uint8_t *)large)[i] = 0;
    s->large_resident |= large_bit(s, large);
}

static bool have_staging(struct fuse_server *s) {
    if (!s->staging && s->large_free_count) {
        s->staging = s->large_free[--s->large_free_count];
        make_resident(s, s->staging);
    }
    return s->staging;
}

/* The staging buffer becomes the slot's own. */
static void keep_staging(struct fuse_server *s, struct slot *slot) {
    CHECK(s->staging && !slot->large);
    slot->large = s->staging;
    s->staging = NULL;
    if (s->large_touched)
        return;
    s->large_touched = true;
    env_timer_start(s->env, &s->trim_timer, TRIM_AFTER_US);
}

static struct slot *slot_take(struct fuse_server *s) {
    struct slot *slot = s->free_slot;
    CHECK(slot && s->in_flight < FUSE_WIRE_IN_FLIGHT_MAX);
    s->free_slot = slot->next_free;
    s->in_flight++;
    return slot;
}

static void slot_give(struct fuse_server *s, struct slot *slot) {
    CHECK(s->in_flight > 0);
    if (slot->large) {
        CHECK(s->large_free_count < ARRAY_LEN(s->large_free));
        s->large_free[s->large_free_count++] = slot->large;
        slot->large = NULL;
    }
    slot->next_free = s->free_slot;
    s->free_slot = slot;
    s->in_flight--;
    if (s->in_flight == 0 && s->stopped && !s->idle.done)
        fiber_done_set(&s->idle);
    if (s->paused && !s->stopped)
        watch_again(s);
}

/* --- requests for the device --- */

static void answer(struct slot *slot) {
    struct fuse_server *s = slot->server;
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    const struct bd_request *req = &slot->req;
    if (req->rc < 0) {
        reply_error(s, slot->unique, err_to_nbd(req->rc));
    } else if (req->op == BD_READ) {
        size_t n = fuse_wire_put_read_head(out, slot->unique, slot->len);
        send_reply(s, out, n, req->read_buf + slot->skip, slot->len);
        s->stats.bytes_read += slot->len;
    } else if (req->op == BD_WRITE) {
        send_reply(s, out, fuse_wire_put_written(out, slot->unique, slot->len), NULL, 0);
        s->stats.bytes_written += slot->len;
    } else {
        send_reply(s, out, fuse_wire_put_error(out, slot->unique, 0), NULL, 0);
    }
    slot_give(s, slot);
}

static void on_done(struct bd_request *req) {
    answer(container_of(req, struct slot, req));
}

static void submit(struct slot *slot) {
    struct fuse_server *s = slot->server;
    s->stats.requests[slot->req.op]++;
    if (bd_submit(s->config.dev, &slot->req))
        answer(slot);
}

static struct slot *slot_for(struct fuse_server *s, const struct fuse_wire_request *r,
                             enum bd_op op, uint64_t off, uint64_t len) {
    struct slot *slot = slot_take(s);
    slot->unique = r->unique;
    slot->skip = 0;
    slot->len = 0;
    slot->req = (struct bd_request){.op = op, .off = off, .len = len, .done = on_done};
    return slot;
}

static bool is_aligned(uint64_t v) {
    return v % SECTOR_SIZE == 0;
}

/* Cut at the end of the device, like any file's; then widened to whole sectors. */
static void handle_read(struct fuse_server *s, const struct fuse_wire_request *r) {
    uint64_t size = bd_size_bytes(s->config.dev);
    uint64_t len = r->io.off < size ? MIN(r->io.len, size - r->io.off) : 0;
    if (len == 0) {
        reply_error(s, r->unique, 0);
        return;
    }
    uint64_t first = r->io.off - r->io.off % SECTOR_SIZE;
    uint64_t end_off = ALIGN_UP(r->io.off + len, SECTOR_SIZE);
    struct slot *slot = slot_for(s, r, BD_READ, first, end_off - first);
    slot->len = (uint32_t)len;
    slot->skip = (uint32_t)(r->io.off - first);
    if (end_off - first > SLOT_SIZE)
        keep_staging(s, slot);
    slot->req.read_buf = slot->large ? slot->large : slot->small;
    submit(slot);
}

static void handle_write(struct fuse_server *s, const struct fuse_wire_request *r) {
    uint64_t size = bd_size_bytes(s->config.dev);
    if (s->config.dev->read_only) {
        reply_error(s, r->unique, EROFS);
        return;
    }
    if (!is_aligned(r->io.off) || !is_aligned(r->io.len) || r->io.len == 0) {
        reply_error(s, r->unique, EINVAL);
        return;
    }
    if (r->io.off > size || r->io.len > size - r->io.off) {
        reply_error(s, r->unique, ENOSPC);
        return;
    }
    struct slot *slot = slot_for(s, r, BD_WRITE, r->io.off, r->io.len);
    slot->len = (uint32_t)r->io.len;
    if (r->io.len > FUSE_SERVER_SMALL_SIZE) {
        keep_staging(s, slot);
        slot->req.write_data = r->io.data;
    } else {
        memcpy(slot->small, r->io.data, r->io.len);
        slot->req.write_data = slot->small;
    }
    submit(slot);
}

/* PUNCH_HOLE and ZERO_RANGE: exact or not at all. */
static void handle_zero(struct fuse_server *s, const struct fuse_wire_request *r) {
    uint64_t size = bd_size_bytes(s->config.dev);
    uint64_t off = r->io.off, len = r->io.len;
    if (s->config.dev->read_only) {
        reply_error(s, r->unique, EROFS);
        return;
    }
    if (!is_aligned(off) || !is_aligned(len) || len == 0) {
        reply_error(s, r->unique, EINVAL);
        return;
    }
    if (off > size || len > size - off) {
        if (!r->io.keep_size) {
            reply_error(s, r->unique, ENOSPC);
            return;
        }
        len = off < size ? size - off : 0;
        if (len == 0) {
            reply_error(s, r->unique, 0);
            return;
        }
    }
    bool punch = r->kind == FUSE_WIRE_PUNCH_HOLE;
    struct slot *slot = slot_for(s, r, punch ? BD_TRIM : BD_WRITE_ZEROES, off, len);
    slot->req.flags = punch ? 0 : BD_NO_HOLE;
    submit(slot);
}

/* --- everything else --- */

static void handle_init(struct fuse_server *s, const struct fuse_wire_request *r) {
    struct fuse_wire_agreement agreed;
    struct err e;
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    if (r->init.major > 7) { /* asks again with 7 */
        send_reply(s, out, fuse_wire_put_init_major(out, r->unique), NULL, 0);
        return;
    }
    if (fuse_wire_negotiate(r, &agreed, &e) < 0) {
        reply_error(s, r->unique, EPROTO);
        end(s, e.code, e.text);
        return;
    }
    s->stats.resend = agreed.resend;
    send_reply(s, out, fuse_wire_put_init(out, r, &agreed), NULL, 0);
}

static void handle_open(struct fuse_server *s, const struct fuse_wire_request *r) {
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    if (s->config.dev->read_only && (r->open.flags & O_ACCMODE) != O_RDONLY)
        reply_error(s, r->unique, EROFS);
    else
        send_reply(s, out, fuse_wire_put_open(out, r->unique), NULL, 0);
}

static void handle(struct fuse_server *s, const struct fuse_wire_request *r) {
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    struct fuse_wire_file file;
    switch (r->kind) {
    case FUSE_WIRE_READ:
        handle_read(s, r);
        return;
    case FUSE_WIRE_WRITE:
        handle_write(s, r);
        return;
    case FUSE_WIRE_FSYNC: /* never ENOSYS: the kernel would not ask again */
        submit(slot_for(s, r, BD_FLUSH, 0, 0));
        return;
    case FUSE_WIRE_PUNCH_HOLE:
    case FUSE_WIRE_ZERO_RANGE:
        handle_zero(s, r);
        return;
    case FUSE_WIRE_GETATTR:
    case FUSE_WIRE_SETATTR: /* the size is the device's: truncate(2) and O_TRUNC change nothing */
        file = file_of(s);
        send_reply(s, out, fuse_wire_put_attr(out, r->unique, &file), NULL, 0);
        return;
    case FUSE_WIRE_STATFS:
        file = file_of(s);
        send_reply(s, out, fuse_wire_put_statfs(out, r->unique, &file), NULL, 0);
        return;
    case FUSE_WIRE_INIT:
        handle_init(s, r);
        return;
    case FUSE_WIRE_OPEN:
        handle_open(s, r);
        return;
    case FUSE_WIRE_FLUSH:
    case FUSE_WIRE_RELEASE:
        reply_error(s, r->unique, 0);
        return;
    case FUSE_WIRE_DESTROY:
        reply_error(s, r->unique, 0);
        end(s, 0, NULL);
        return;
    case FUSE_WIRE_FALLOCATE_OTHER:
        reply_error(s, r->unique, EOPNOTSUPP);
        return;
    case FUSE_WIRE_FORGET:
        return;
    case FUSE_WIRE_INTERRUPT:
    case FUSE_WIRE_OTHER:
        reply_error(s, r->unique, ENOSYS);
        return;
    }
}

/* --- the descriptor --- */

/* One request, if there is one. */
static bool take_one(struct fuse_server *s) {
    uint8_t *at = s->staging + PAGE - FUSE_WIRE_HEAD_SIZE;
    ssize_t n = read(s->config.fd, at, FUSE_WIRE_REQUEST_MAX);
    if (n < 0) {
        if (errno == EINTR || errno == ENOENT) /* ENOENT: it was given up before we read it */
            return true;
        if (errno == EAGAIN)
            return false;
        struct err e;
        err_from_errno(&e, errno, "fuse: read a request");
        /* ECONNABORTED: the unmount came between a request's way out of the queue and to us
         * (fs/fuse/dev.c, fuse_dev_do_read). */
        if (errno == ENODEV || errno == ECONNABORTED)
            end(s, 0, NULL);
        else
            end(s, e.code, e.text);
        return false;
    }
    if (n == 0) {
        end(s, 0, NULL);
        return false;
    }
    struct fuse_wire_request r;
    struct err e;
    if (fuse_wire_parse(view_of(at, (size_t)n), &r, &e) == 0) {
        s->stats.resent += r.resent;
        handle(s, &r);
        return true;
    }
    s->stats.malformed++;
    log_warn("malformed request from the kernel", LOG_ERR(&e));
    if (r.unique)
        reply_error(s, r.unique, EIO);
    return true;
}

static void on_readable(struct loop_watch *watch, int events) {
    struct fuse_server *s = container_of(watch, struct fuse_server, watch);
    (void)events; /* errors show at the read */
    for (unsigned i = 0; i < BATCH_MAX && !s->stopped; i++) {
        if (!s->free_slot || !have_staging(s)) {
            pause_reading(s);
            return;
        }
        if (!take_one(s))
            return;
    }
}

/* --- life --- */

static void carve_memory(struct fuse_server *s) {
    uint8_t *at = s->memory;
    for (unsigned i = 0; i < FUSE_WIRE_IN_FLIGHT_MAX; i++, at += SLOT_SIZE) {
        struct slot *slot = &s->slots[FUSE_WIRE_IN_FLIGHT_MAX - 1 - i];
        slot->server = s;
        slot->small = at;
        slot->next_free = s->free_slot;
        s->free_slot = slot;
    }
    for (unsigned i = 0; i < ARRAY_LEN(s->large_free); i++, at += LARGE_SIZE)
        s->large_free[s->large_free_count++] = at;
    CHECK(at == s->memory + s->memory_size);
}

/* What is read from now on begins with the requests that our predecessor owed an answer. A
 * connection that has ended shows at the first read. */
static int ask_for_unanswered(struct fuse_server *s, struct err *e) {
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    size_t len = fuse_wire_put_resend(out);
    ssize_t n;
    do
        n = write(s->config.fd, out, len);
    while (n < 0 && errno == EINTR);
    if (n >= 0) {
        s->stats.resend = true;
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS)
        return err_from_errno(e, errno, "ask the kernel for unanswered requests");
    log_warn("this kernel does not send requests again (Linux 6.9 does): those that a dead daemon "
             "had read and not answered are lost, and who made them waits until the device goes");
    return 0;
}

int fuse_server_new(const struct fuse_server_config *config, struct fuse_server **ret,
                    struct err *e) {
    int flags = fcntl(config->fd, F_GETFL);
    if (flags < 0 || fcntl(config->fd, F_SETFL, flags | O_NONBLOCK) < 0)
        return err_from_errno(e, errno, "fuse: descriptor %d", config->fd);
    struct fuse_server *s = NEW(struct fuse_server);
    s->config = *config;
    s->env = loop_env(config->loop);
    s->watch.fn = on_readable;
    s->end_event.fn = on_end_event;
    s->trim_timer.fn = on_trim;
    fiber_done_init(&s->idle);
    s->memory_size =
        (size_t)FUSE_WIRE_IN_FLIGHT_MAX * SLOT_SIZE + (size_t)ARRAY_LEN(s->large_free) * LARGE_SIZE;
    s->memory = mmap(NULL, s->memory_size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(s->memory != MAP_FAILED);
    carve_memory(s);
    int rc = loop_watch_start(config->loop, &s->watch, config->fd, LOOP_READABLE, e);
    if (rc == 0 && config->resume)
        rc = ask_for_unanswered(s, e);
    if (rc < 0) {
        fuse_server_free(s);
        return err_wrap(e, "fuse");
    }
    *ret = s;
    return 0;
}

void fuse_server_free(struct fuse_server *s) {
    CHECK(s->in_flight == 0);
    loop_watch_stop(&s->watch);
    env_timer_stop(s->env, &s->trim_timer);
    munmap(s->memory, s->memory_size);
    free(s);
}

void fuse_server_drain(struct fuse_server *s) {
    s->stopped = true;
    loop_watch_stop(&s->watch);
    fiber_done_init(&s->idle);
    if (s->in_flight)
        fiber_done_wait_always(s->env, &s->idle);
}

void fuse_server_undrain(struct fuse_server *s) {
    if (s->ended || !s->stopped)
        return;
    s->stopped = false;
    if (!s->idle.done)
        fiber_done_set(&s->idle);
    watch_again(s);
}

void fuse_server_grew(struct fuse_server *s) {
    uint8_t out[FUSE_WIRE_REPLY_MAX];
    if (!s->ended)
        send_reply(s, out, fuse_wire_put_attr_changed(out), NULL, 0);
}

struct fuse_server_stats fuse_server_stats(const struct fuse_server *s) {
    struct fuse_server_stats stats = s->stats;
    stats.in_flight = s->in_flight;
    return stats;
}
