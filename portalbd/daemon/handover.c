/* The device in other hands: what the control verbs `device` and `handover` do.
 *
 *   SERVING --handover--> flush --> DRAINING --all answered--> handed over, the process ends with 5
 *      ^                   |            |
 *      `----- BUSY --------+------------'
 *
 * A hand-over never closes the volume: what is not in the store is in the journal, which the next
 * daemon replays. With a journal in memory there is nothing to replay, so everything has to be in
 * the store first. Once the descriptor has been given away, nothing is read from it or written to
 * it any more; a socket is closed, never shut down, so that the kernel notices nothing. */
#include <fcntl.h>
#include <jansson.h>
#include <unistd.h>

#include "common/log.h"
#include "portalbd/daemon/daemon.h"

enum {
    FLUSH_US = 5 * 1000 * 1000, /* a flush first makes the next daemon's open short */
    DRAIN_US = 5 * 1000 * 1000, /* for requests under way; then it serves on */
};

/* --- draining --- */

static void drain_ended(void *arg) {
    struct daemon *d = arg;
    CHECK(d->drains_left > 0);
    d->drains_left--;
    waitq_wake_all(&d->events);
}

static void fuse_drain_fiber(void *arg) {
    struct daemon *d = arg;
    fuse_server_drain(d->fuse);
    drain_ended(d);
}

void drain_start(struct daemon *d) {
    if (d->draining)
        return;
    d->draining = true;
    if (d->nbd) {
        d->drains_left++;
        nbd_server_drain(d->nbd, drain_ended, d);
    }
    if (d->fuse) {
        d->drains_left++;
        fiber_start(d->env, fuse_drain_fiber, d);
    }
}

/* fiber. Serves on. */
static void drain_undo(struct daemon *d) {
    CHECK(d->draining);
    if (d->nbd)
        nbd_server_undrain(d->nbd);
    if (d->fuse)
        fuse_server_undrain(d->fuse);
    while (d->drains_left)
        waitq_wait_always(d->env, &d->events);
    d->draining = false;
}

/* fiber. */
static int drain(struct daemon *d, struct err *e) {
    uint64_t end_us = env_now_us(d->env) + DRAIN_US;
    drain_start(d);
    while (d->drains_left && !d->stop) {
        uint64_t now = env_now_us(d->env);
        if (now >= end_us)
            return err_set(e, -ERR_BUSY,
                           "requests of the device wait for the store: it goes on serving");
        if (waitq_wait_for(d->env, &d->events, end_us - now) == -ERR_CANCELLED)
            return err_set(e, -ERR_SHUTDOWN, "the daemon is ending");
    }
    return 0;
}

/* --- flushing --- */

struct flush {
    struct daemon *daemon;
    bool ended;
    struct err err;
};

static void flush_fiber(void *arg) {
    struct flush *f = arg;
    if (volume_flush(f->daemon->attached->volume, &f->err) == 0)
        f->err.code = 0;
    f->ended = true;
    waitq_wake_all(&f->daemon->events);
}

/* fiber. -ERR_BUSY: not within FLUSH_US. */
static int flush(struct daemon *d, struct err *e) {
    if (d->attached->target.is_snapshot)
        return 0;
    struct flush f = {.daemon = d};
    struct fiber *fiber = fiber_start(d->env, flush_fiber, &f);
    uint64_t end_us = env_now_us(d->env) + FLUSH_US;
    bool cancelled = false;
    while (!f.ended) {
        uint64_t now = env_now_us(d->env);
        if (!cancelled && (d->stop || now >= end_us)) {
            fiber_cancel(fiber);
            cancelled = true;
        }
        if (cancelled)
            waitq_wait_always(d->env, &d->events);
        else if (waitq_wait_for(d->env, &d->events, end_us - now) == -ERR_CANCELLED)
            end_us = 0;
    }
    if (f.err.code == 0)
        return 0;
    return err_set(e, -ERR_BUSY, "the store does not take what is not flushed: it goes on serving");
}

/* --- the verbs --- */

static int check_device(const struct daemon *d, struct err *e) {
    if (d->command != COMMAND_ATTACH || (!d->config.nbd_fd && !d->config.fuse_fd))
        return err_set(e, -ERR_UNSUPPORTED, "this daemon serves no device of the kernel");
    if (d->stop || d->device_fd < 0)
        return err_set(e, -ERR_SHUTDOWN, "the daemon is ending");
    return 0;
}

static int answer(struct daemon *d, json_t **ret_result, int *ret_fd, struct err *e) {
    int fd = fcntl(d->device_fd, F_DUPFD_CLOEXEC, 3);
    if (fd < 0)
        return err_from_errno(e, errno, "a copy of the device's descriptor");
    *ret_fd = fd;
    *ret_result = json_pack("{s:s}", "kind", d->fuse ? "fuse" : "nbd");
    return 0;
}

int handover_device(void *arg, json_t **ret_result, int *ret_fd, struct err *e) {
    struct daemon *d = arg;
    int rc = check_device(d, e);
    return rc < 0 ? rc : answer(d, ret_result, ret_fd, e);
}

/* fiber. Nothing of the device is under way afterwards. */
static int let_go(struct daemon *d, struct err *e) {
    bool kept = d->attached->journal || d->attached->target.is_snapshot;
    int rc = flush(d, e);
    if (rc < 0 && !kept)
        return rc;
    rc = d->stop ? 0 : drain(d, e);
    if (rc == 0 && !kept && !d->stop)
        rc = flush(d, e); /* what came meanwhile */
    if (d->stop)
        return err_set(e, -ERR_SHUTDOWN, "the daemon is ending");
    return rc;
}

int handover(void *arg, json_t **ret_result, int *ret_fd, struct err *e) {
    struct daemon *d = arg;
    int rc = check_device(d, e);
    if (rc < 0)
        return rc;
    if (d->handing_over)
        return err_set(e, -ERR_BUSY, "the device is being handed over");
    d->handing_over = true;
    rc = let_go(d, e);
    if (rc == 0)
        rc = answer(d, ret_result, ret_fd, e);
    if (rc < 0 && d->draining && !d->stop)
        drain_undo(d);
    d->handing_over = false;
    if (rc < 0)
        return rc;
    log_info("the device is in other hands: ending, the volume stays open",
             LOG_STR("volume", d->attached->target.id));
    d->handed_over = true;
    daemon_stop(d); /* takes effect in a later turn: the answer goes first */
    return 0;
}
