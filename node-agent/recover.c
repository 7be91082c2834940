/* Devices that outlive their daemons.
 *
 * A daemon that ends while its device stays is followed by another: the backend gives a descriptor
 * of the device, the next daemon replays the journal of its predecessor, serves, and the requests
 * that waited go to it. To who uses the device that is a pause. It is tried for ever, first at
 * once, then after 100 ms to 10 s; every failure is logged and stands in the attachment's message.
 *
 * There is no way on when another writer has the volume, when the daemon's journal died with it
 * (what it had acknowledged is lost, so going on would break the order of writes for the filesystem
 * above), or when the kernel's side of the device is over. Then the device fails.
 *
 * A daemon that was told to end (SIGTERM) while its device stays has stored and closed everything:
 * the next one goes on from there.
 *
 * A daemon that is stopped (SIGSTOP, a debugger) is a pause, not a death: nothing here happens. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "node-agent/agent_internal.h"

enum {
    STEADY_US = 10 * 1000 * 1000,      /* a daemon that served so long has not died of its start */
    HANDOVER_US = 20 * 1000 * 1000,    /* for a daemon to flush, answer what it has and hand over */
    HANDED_OVER_US = 10 * 1000 * 1000, /* ... and to exit after that */
    LEARN_US = 2 * 1000 * 1000,        /* for an adopted daemon to say what we need to know of it */
    LEARN_AGAIN_US = 1000 * 1000,      /* after that it is asked again */
};

/* Where the connection lives as long as one of its descriptors, and can be resumed with it alone.
 */
static bool needs_descriptor(const struct attachment *at) {
    return strcmp(at->backend->ops->name, "fuse") == 0;
}

/* --- one try, and the next --- */

/* Whether a copy of it is kept while a daemon serves: not where the backend has said that requests
 * of a dead daemon are never sent again, for they would hang instead of fail. */
static bool keeps_descriptor(const struct attachment *at) {
    const struct agent_config *c = &at->agent->config;
    for (size_t i = 0; i < c->backend_count; i++)
        if (c->backends[i].backend == at->backend)
            return needs_descriptor(at) && !c->backends[i].note[0];
    return false;
}

static int recover_once(struct attachment *at, const struct job *until, struct err *e) {
    struct job j = {0};
    int rc = 0;
    if (at->link.daemon_fd < 0)
        rc = job_run(at, &j, job_resume, e);
    if (rc == 0)
        rc = attachment_start_daemon(at, false, e);
    if (rc == 0)
        rc = attachment_wait_served(at, until, e);
    if (rc == 0 && needs_descriptor(at) && !keeps_descriptor(at))
        attach_link_close(&at->link);
    if (rc == 0)
        rc = job_run(at, &j, job_reattach, e);
    return rc;
}

/* What another try would not change. */
static bool is_final(struct attachment *at, int rc) {
    at->fenced |= at->daemon && daemon_is_fenced(at->daemon);
    bool resumed = at->daemon || at->link.daemon_fd >= 0;
    return at->fenced || (rc == -ERR_NOT_FOUND && !resumed) ||
           (rc == -ERR_IO && !resumed && needs_descriptor(at));
}

/* Where we have the last descriptor, the connection would end with us. A daemon that has it opens
 * the volume meanwhile; the next agent finds it by the attach file. */
static void leave_to_a_daemon(struct attachment *at) {
    struct job j = {0};
    struct err e;
    if (!at->agent->stopping || !needs_descriptor(at))
        return;
    int rc = at->link.daemon_fd < 0 ? job_run(at, &j, job_resume, &e) : 0;
    if (rc == 0)
        rc = attachment_start_daemon(at, false, &e);
    if (rc < 0)
        log_error("a device ends with this agent: no daemon could be started for it",
                  LOG_STR("volume", at->state.volume), LOG_ERR(&e));
}

int attachment_recover(struct attachment *at, const struct job *until, struct err *e) {
    struct agent *a = at->agent;
    if (env_now_us(a->env) - at->served_since_us >= STEADY_US)
        at->backoff_us = 0;
    attachment_end_daemon(at);
    for (;;) {
        if (!attachment_back_off(at, until)) {
            leave_to_a_daemon(at);
            return err_set(e, -ERR_CANCELLED, "recovering was interrupted");
        }
        int rc = recover_once(at, until, e);
        if (rc == 0)
            break;
        if (rc == -ERR_CANCELLED || is_final(at, rc))
            return rc;
        attachment_end_daemon(at);
        at->why = *e;
        log_warn("no daemon took the device over yet; the next try follows",
                 LOG_STR("volume", at->state.volume), LOG_ERR(e),
                 LOG_U64("ms", at->backoff_us / 1000));
        waitq_wake_all(&at->changed);
    }
    at->why = (struct err){0};
    at->serving = true;
    at->served_since_us = env_now_us(a->env);
    at->state.restarts++;
    metrics_counter_inc(&a->restarts);
    struct job j = {0};
    if (job_run(at, &j, job_save, &j.e) < 0)
        log_warn("an attach file could not be brought up to date",
                 LOG_STR("volume", at->state.volume), LOG_ERR(&j.e));
    return 0;
}

/* --- the end of a daemon --- */

void attachment_give_up(struct attachment *at) {
    struct job j = {0};
    log_error("a device gives errors until it is detached", LOG_STR("volume", at->state.volume),
              LOG_STR("device", at->device.path), LOG_ERR(&at->why));
    job_run(at, &j, job_fail, NULL);
    attachment_end_daemon(at);
    attach_link_close(&at->link);
    attachment_set_phase(at, ATTACHMENT_FAILED);
}

static void give_up_with(struct attachment *at, const char *reason) {
    err_set_text(&at->why, at->fenced ? -ERR_FENCED : -ERR_IO, "%s: unmount and detach", reason);
    attachment_give_up(at);
}

void attachment_go_on_recovering(struct attachment *at) {
    struct agent *a = at->agent;
    struct err e;
    int rc = attachment_recover(at, NULL, &e);
    if (rc == 0) {
        log_info("another daemon serves the device", LOG_STR("volume", at->state.volume),
                 LOG_STR("device", at->device.path), LOG_I64("pid", at->daemon->pid),
                 LOG_U64("ms", (env_now_us(a->env) - at->phase_since_us) / 1000));
        attachment_set_phase(at, ATTACHMENT_ATTACHED);
    } else if (at->fenced) {
        give_up_with(at, "fenced: another writer has the volume");
    } else if (rc != -ERR_CANCELLED) {
        at->why = e;
        attachment_give_up(at);
    }
}

/* It ended with everything in the store. */
static bool has_stored_all(const struct daemon *d) {
    return d->ours &&
           (d->exit_code == DAEMON_EXIT_CLEAN || d->exit_code == DAEMON_EXIT_HANDED_OVER);
}

/* After a handover with a journal in memory the volume stays open and the journal is gone: the next
 * daemon opens the volume like the first one. */
static void note_handed_over(struct attachment *at) {
    const struct daemon *d = at->daemon;
    if (at->state.journal_memory && d->ours && d->exit_code == DAEMON_EXIT_HANDED_OVER)
        at->state.opened = false;
}

void attachment_on_daemon_end(struct attachment *at) {
    char how[64], text[160];
    struct job j = {0};
    daemon_describe_end(at->daemon, how, sizeof how);
    log_warn("a daemon ended while its device was there", LOG_STR("volume", at->state.volume),
             LOG_STR("device", at->device.path), LOG_I64("pid", at->daemon->pid),
             LOG_STR("how", how));
    metrics_counter_inc(&at->agent->deaths);
    at->fenced = daemon_is_fenced(at->daemon);
    err_set_text(&at->why, -ERR_IO, "the daemon %s", how);
    if (at->fenced) {
        give_up_with(at, "fenced: another writer has the volume");
        return;
    }
    note_handed_over(at);
    if (at->state.journal_memory && !at->state.read_only && !has_stored_all(at->daemon)) {
        snprintf(text, sizeof text, "the daemon %s, and its journal with it", how);
        give_up_with(at, text);
        return;
    }
    if (job_run(at, &j, job_look, NULL) == 0 && !j.device.path[0]) {
        at->device = j.device;
        give_up_with(at, "somebody else took the device away");
        return;
    }
    attachment_set_phase(at, ATTACHMENT_RECOVERING);
    attachment_go_on_recovering(at);
}

/* --- upgrade --- */

/* The daemon has handed over and ends by itself. */
static void await_handed_over(struct attachment *at) {
    if (daemon_wait_exit(at->daemon, HANDED_OVER_US) == -ERR_TIMEOUT)
        log_warn("a daemon does not exit after its handover and is killed",
                 LOG_STR("volume", at->state.volume), LOG_I64("pid", at->daemon->pid));
    note_handed_over(at);
    attachment_end_daemon(at);
}

static void note_upgrade(struct attachment *at, uint64_t asked, int rc, const struct err *e) {
    at->upgrade.done = asked;
    at->upgrade.result = e ? *e : (struct err){0};
    at->upgrade.result.code = rc;
    waitq_wake_all(&at->changed);
}

void attachment_upgrade(struct attachment *at) {
    struct env *env = at->agent->env;
    uint64_t asked = at->upgrade.asked;
    struct err e;
    const struct daemon_address to = attachment_address(at, HANDOVER_US);
    int rc = daemon_control_handover(&to, &at->link.daemon_fd, &e);
    if (rc < 0) {
        log_warn("a daemon does not hand over; it goes on as it is",
                 LOG_STR("volume", at->state.volume), LOG_ERR(&e));
        note_upgrade(at, asked, rc, &e);
        return;
    }
    uint64_t start = env_now_us(env);
    if (needs_descriptor(at) && at->link.kernel_fd < 0)
        at->link.kernel_fd = fcntl(at->link.daemon_fd, F_DUPFD_CLOEXEC, 0);
    at->backoff_us = 0;
    at->served_since_us = start;
    err_set_text(&at->why, -ERR_BUSY, "its daemon handed over; the next one starts");
    attachment_set_phase(at, ATTACHMENT_RECOVERING);
    await_handed_over(at);
    attachment_go_on_recovering(at);
    if (at->phase != ATTACHMENT_ATTACHED) {
        note_upgrade(at, asked, at->agent->stopping ? -ERR_SHUTDOWN : -ERR_IO, &at->why);
        return;
    }
    at->outdated = false;
    at->pause_us = env_now_us(env) - start;
    metrics_counter_inc(&at->agent->upgrades);
    log_info("upgraded", LOG_STR("volume", at->state.volume), LOG_I64("pid", at->daemon->pid),
             LOG_U64("pause_ms", at->pause_us / 1000));
    note_upgrade(at, asked, 0, NULL);
}

/* --- adoption --- */

/* The daemon lives and so does its device: what has to be known for the day it does not. One that
 * is still opening the volume, or is stopped, will say it later. */
static void learn_from_daemon(struct attachment *at) {
    struct err e;
    const struct daemon_address to = attachment_address(at, LEARN_US);
    struct daemon_status status;
    int rc = daemon_control_status(&to, &status, &e);
    if (rc == 0 && keeps_descriptor(at) && at->link.kernel_fd < 0)
        rc = daemon_control_device(&to, &at->link.kernel_fd, &e);
    at->unlearned = rc == -ERR_TRANSIENT || rc == -ERR_TIMEOUT || rc == -ERR_BUSY;
    if (rc < 0 && !at->unlearned)
        log_warn("a daemon does not say what the next one needs: the device may fail if it dies",
                 LOG_STR("volume", at->state.volume), LOG_ERR(&e));
    if (rc == 0)
        at->outdated = status.version[0] && strcmp(status.version, PORTALBD_VERSION) != 0;
    if (at->outdated)
        waitq_wake_all(&at->agent->outdated);
}

void attachment_learn(struct attachment *at) {
    CHECK(at->unlearned);
    if (waitq_wait_for(at->agent->env, &at->events, LEARN_AGAIN_US) == -ERR_TIMEOUT)
        learn_from_daemon(at);
}

static bool adopt_without_device(struct attachment *at) {
    if (at->state.opened || (at->daemon && at->state.served)) {
        log_info("what an earlier agent was detaching is uploaded",
                 LOG_STR("volume", at->state.volume));
        at->detach.asked++;
        attachment_set_phase(at, ATTACHMENT_DETACHING);
        return true;
    }
    log_info("what an earlier agent had begun is undone", LOG_STR("volume", at->state.volume));
    attachment_clean_up(at);
    err_set_text(&at->why, -ERR_CANCELLED, "an earlier agent did not finish attaching it");
    attachment_set_phase(at, ATTACHMENT_GONE);
    return false;
}

/* The daemon that the attach file names; or one that was started in its place and never noted (the
 * agent died just then, or the run folder was full): it answers at the volume's socket. */
static bool find_daemon(struct attachment *at) {
    struct loop *loop = at->agent->config.loop;
    struct attach_state *s = &at->state;
    const struct daemon_address to = attachment_address(at, LEARN_US);
    struct daemon_status status;
    struct job j = {0};
    if (daemon_adopt(loop, s->pid, s->pid_start, &at->events, &at->daemon, NULL) == 0)
        return true;
    if (s->pid == 0 || daemon_control_status(&to, &status, NULL) < 0 ||
        daemon_adopt(loop, status.pid, 0, &at->events, &at->daemon, NULL) < 0)
        return false;
    s->pid = at->daemon->pid;
    s->pid_start = at->daemon->pid_start;
    if (job_run(at, &j, job_save, NULL) < 0)
        log_warn("an attach file could not be brought up to date", LOG_STR("volume", s->volume),
                 LOG_ERR(&j.e));
    return true;
}

bool attachment_adopt(struct attachment *at) {
    struct agent *a = at->agent;
    bool alive = find_daemon(at);
    if (!at->device.path[0])
        return adopt_without_device(at);
    if (alive && (at->state.served || at->state.size_bytes)) {
        at->state.served = true;
        learn_from_daemon(at);
        log_info("found attached", LOG_STR("volume", at->state.volume),
                 LOG_STR("device", at->device.path), LOG_I64("pid", at->daemon->pid));
        at->serving = true;
        at->served_since_us = env_now_us(a->env);
        attachment_set_phase(at, ATTACHMENT_ATTACHED);
        return true;
    }
    err_set_text(&at->why, -ERR_IO, "its daemon died while no agent ran");
    if (at->state.opened && !at->state.journal_memory && !needs_descriptor(at)) {
        attachment_set_phase(at, ATTACHMENT_RECOVERING);
        return true;
    }
    give_up_with(at, at->state.journal_memory
                         ? "its daemon died while no agent ran, and its journal with it"
                         : "its daemon died while no agent ran, and the FUSE connection with it");
    return true;
}
