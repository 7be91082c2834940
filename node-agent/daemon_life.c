/* Starting, awaiting and ending the daemon of an attachment. What a daemon reports is stored in the
 * attach file before anything is built on it: a next agent knows how to go on. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "node-agent/agent_internal.h"

enum {
    LAST_WORDS_US = 2 * 1000 * 1000, /* for a daemon to exit that has said why it will */
    KILL_WAIT_US = 10 * 1000 * 1000, /* for a process that got SIGKILL */
    BACKOFF_MIN_US = 100 * 1000,
    BACKOFF_MAX_US = 10 * 1000 * 1000,
};

int attachment_start_daemon(struct attachment *at, bool upload, struct err *e) {
    struct agent *a = at->agent;
    CHECK(!at->daemon);
    CHECK(upload || at->link.daemon_fd >= 0);
    bool disk_cache = a->config.disk_cache && at->state.disk_cache_bytes && !upload;
    CLEANUP_FREE char *pool_path = state_pool_path(a->state, at->state.volume);
    const struct daemon_spec spec = {
        .program = a->config.daemon_program,
        .volume = at->state.volume,
        .pool_file = pool_path,
        .node_id = a->config.node_id,
        .run_dir = a->config.run_dir,
        .state_dir = a->config.state_dir,
        .publish_epoch = at->state.publish_epoch,
        .cache_bytes = at->state.cache_bytes,
        .journal_bytes = at->state.journal_bytes,
        .disk_cache = disk_cache ? a->config.disk_cache : NULL,
        .disk_cache_bytes = at->state.disk_cache_bytes,
        .read_only = at->state.read_only,
        .resume = at->state.opened,
        .device_flag = upload ? NULL : at->backend->ops->daemon_flag,
        .device_fd = at->link.daemon_fd,
    };
    int rc = daemon_spawn(a->config.loop, &spec, &at->events, &at->daemon, e);
    if (rc < 0)
        return rc;
    if (at->link.daemon_fd >= 0)
        close(at->link.daemon_fd);
    at->link.daemon_fd = -1;
    at->state.pid = at->daemon->pid;
    at->state.pid_start = at->daemon->pid_start;
    waitq_wake_all(&at->changed);
    struct job j = {0};
    rc = job_run(at, &j, job_started, e);
    if (rc == 0 || !at->state.opened)
        return rc;
    /* What fills the run folder may be the journal that this daemon is there to empty. */
    log_warn("an attach file could not be brought up to date", LOG_STR("volume", at->state.volume),
             LOG_ERR(&j.e));
    return 0;
}

/* What it has reported by now goes into the attach file. */
static int note_report(struct attachment *at, struct err *e) {
    const struct daemon *d = at->daemon;
    struct attach_state *s = &at->state;
    struct job j = {0};
    bool news = d->opened && !s->opened;
    if (d->ready)
        news |= s->size_bytes != d->size_bytes || s->nbd_flags != d->nbd_flags ||
                s->journal_memory != d->journal_memory;
    if (!news)
        return 0;
    s->opened = d->opened;
    if (d->ready) {
        s->size_bytes = d->size_bytes;
        s->nbd_flags = d->nbd_flags;
        s->journal_memory = d->journal_memory;
    }
    return job_run(at, &j, job_save, e);
}

static bool is_interrupted(const struct attachment *at, const struct job *until) {
    return at->agent->stopping || attachment_is_forced(at) ||
           (wish_is_open(&at->detach) && !at->state.served && !at->going_down) ||
           (until && until->done);
}

int attachment_wait_served(struct attachment *at, const struct job *until, struct err *e) {
    for (;;) {
        struct err how;
        int ready = daemon_is_ready(at->daemon, &how); /* before: all that it said is noted then */
        int rc = note_report(at, e);
        if (rc < 0 || ready == 0)
            return rc;
        if (ready != -ERR_BUSY)
            return err_copy(e, &how);
        if (daemon_is_ready(at->daemon, &how) != -ERR_BUSY)
            continue; /* it went on while that was stored */
        if (is_interrupted(at, until) || waitq_wait(at->agent->env, &at->events) < 0)
            return err_set(e, -ERR_CANCELLED, "%s",
                           at->agent->stopping ? "the agent stops" : "detached before it served");
    }
}

void attachment_end_daemon(struct attachment *at) {
    struct daemon *d = at->daemon;
    at->serving = false;
    if (!d)
        return;
    if (!d->exited && d->said.code < 0)
        daemon_wait_exit(d, LAST_WORDS_US);
    if (!d->exited) {
        daemon_signal(d, SIGKILL);
        if (daemon_wait_exit(d, KILL_WAIT_US) == -ERR_TIMEOUT)
            log_error("a daemon does not die of SIGKILL; its process is left alone",
                      LOG_STR("volume", at->state.volume), LOG_I64("pid", d->pid));
    }
    daemon_free(d);
    at->daemon = NULL;
    waitq_wake_all(&at->changed);
}

bool attachment_back_off(struct attachment *at, const struct job *until) {
    struct env *env = at->agent->env;
    uint64_t begin = env_now_us(env), delay = at->backoff_us;
    at->backoff_us = MIN(MAX(2 * delay, (uint64_t)BACKOFF_MIN_US), (uint64_t)BACKOFF_MAX_US);
    while (!is_interrupted(at, until)) {
        uint64_t passed = env_now_us(env) - begin;
        if (passed >= delay)
            return true;
        if (waitq_wait_for(env, &at->events, delay - passed) == -ERR_CANCELLED)
            return false;
    }
    return false;
}
