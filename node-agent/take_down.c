/* The way down: the device, then what only this node has, then the files.
 *
 * The device goes first: without force that sends everything written to the daemon, so the daemon
 * has to live, or be followed by another, until it is done. Then the daemon stores what is left,
 * closes the volume and ends by itself. One that dies before is followed by one without a device
 * that only uploads, as long as there is a journal. Force waits for nothing: requests fail, the
 * daemon is killed, the journal stays for the next attach on this node. */
#include <signal.h>

#include "common/log.h"
#include "node-agent/agent_internal.h"

enum { END_HEARD_US = 5 * 1000 * 1000 }; /* for a daemon to end because its device did */

/* Is it the end of the device that the daemon has ended for? */
static bool is_device_gone(struct attachment *at) {
    struct job j = {0};
    return job_run(at, &j, job_look, NULL) == 0 && !j.device.volume[0];
}

/* Waits for job_detach and sees to it that it can end. */
static int take_device(struct attachment *at, struct err *e) {
    struct job j = {.force = attachment_is_forced(at)}, fail = {0};
    bool failed = j.force, give_up = false, gone = false;
    job_start(at, &j, job_detach);
    while (!j.done) {
        give_up |= attachment_is_forced(at);
        if (!failed && give_up) {
            failed = true;
            job_run(at, &fail, job_fail, NULL);
        } else if (!failed && !gone && at->daemon && at->daemon->exited) {
            gone = is_device_gone(at);
            if (gone || j.done)
                continue;
            struct err why;
            int rc = attachment_recover(at, &j, &why);
            give_up = rc < 0 && rc != -ERR_CANCELLED;
            if (give_up)
                at->why = why;
        } else {
            waitq_wait_always(at->agent->env, &at->events);
        }
    }
    return j.rc < 0 ? err_copy(e, &j.e) : 0;
}

/* Until the daemon has ended. It does so by itself when its device is gone and everything is in the
 * store, however long that takes; a force says when to stop waiting (agent_detach kills it). One
 * that has not heard of the device's end is asked over its socket: a signal would be a second
 * reason to end, which daemons take for impatience. */
static int wait_ended(struct attachment *at, bool uploads, struct err *e) {
    struct env *env = at->agent->env;
    if (!uploads && daemon_wait_exit(at->daemon, END_HEARD_US) == -ERR_TIMEOUT) {
        const struct daemon_address to = attachment_address(at, 2 * SECOND_US);
        (void)daemon_control_shutdown(&to, NULL);
    }
    while (!at->daemon->exited)
        if (at->agent->stopping || waitq_wait(env, &at->events) < 0)
            return err_set(e, -ERR_CANCELLED, "the agent stops");
    return 0;
}

/* Is there a journal that another daemon could store? */
static bool is_unsaved(struct attachment *at) {
    struct job j = {0};
    if (!at->state.opened || at->state.journal_memory || at->fenced)
        return false;
    job_run(at, &j, job_journal, NULL);
    return j.left;
}

/* The daemon has ended and nothing follows it. */
static int judge_end(struct attachment *at, struct err *e) {
    const struct daemon *d = at->daemon;
    char how[64];
    if (attachment_is_forced(at) || !d->ours || d->exit_code == DAEMON_EXIT_CLEAN)
        return 0;
    if (daemon_is_fenced(d)) {
        log_warn("another writer has the volume; what this node had not stored is lost",
                 LOG_STR("volume", at->state.volume));
        return 0;
    }
    daemon_describe_end(d, how, sizeof how);
    return err_set(e, -ERR_IO, "volume '%s': the daemon %s before its clean close",
                   at->state.volume, how);
}

/* The device is gone: until everything is in the store, or was given up. */
static int finish_upload(struct attachment *at, struct err *e) {
    bool uploads = false;
    int rc = 0;
    for (;;) {
        if (at->daemon) {
            rc = wait_ended(at, uploads, e);
            if (rc < 0)
                return rc;
            at->fenced |= daemon_is_fenced(at->daemon);
        }
        if (!is_unsaved(at))
            return at->daemon ? judge_end(at, e) : 0;
        if (attachment_is_forced(at)) {
            log_warn("what was not uploaded stays in the journal; the next attach on this node "
                     "replays it",
                     LOG_STR("volume", at->state.volume));
            return 0;
        }
        if (at->daemon) {
            char how[64];
            daemon_describe_end(at->daemon, how, sizeof how);
            err_set_text(&at->why, -ERR_IO, "the daemon %s%s%s", how,
                         at->daemon->said.code < 0 ? ": " : "",
                         at->daemon->said.code < 0 ? at->daemon->said.text : "");
            log_warn("a daemon ended before everything was uploaded; another one goes on",
                     LOG_STR("volume", at->state.volume), LOG_ERR(&at->why));
            daemon_free(at->daemon);
            at->daemon = NULL;
        }
        if (!attachment_back_off(at, NULL) && at->agent->stopping)
            return err_set(e, -ERR_CANCELLED, "the agent stops");
        if (attachment_is_forced(at))
            continue;
        uploads = true;
        if (attachment_start_daemon(at, true, &at->why) == 0)
            metrics_counter_inc(&at->agent->restarts);
        else
            log_warn("the daemon that uploads cannot be started",
                     LOG_STR("volume", at->state.volume), LOG_ERR(&at->why));
    }
}

static int take_down(struct attachment *at, struct err *e) {
    struct job j = {0};
    int rc = take_device(at, e);
    if (rc < 0) {
        at->why = *e;
        if (job_run(at, &j, job_look, NULL) == 0)
            at->device = j.device;
        return rc;
    }
    at->device = (struct attach_device){0};
    attach_link_close(&at->link);
    waitq_wake_all(&at->changed);
    rc = finish_upload(at, e);
    if (rc == -ERR_CANCELLED)
        return rc;
    daemon_free(at->daemon);
    at->daemon = NULL;
    at->state.pid = 0;
    if (rc < 0) { /* said once; nothing is left that a repetition could save */
        at->why = *e;
        return rc;
    }
    return job_run(at, &j, job_forget, e);
}

int attachment_take_down(struct attachment *at, struct err *e) {
    at->going_down = true;
    int rc = take_down(at, e);
    at->going_down = false;
    return rc;
}

void attachment_clean_up(struct attachment *at) {
    struct job j = {.force = true};
    attachment_end_daemon(at);
    attach_link_close(&at->link);
    if (job_run(at, &j, job_detach, &j.e) < 0 || job_run(at, &j, job_forget, &j.e) < 0)
        log_error("what is left of an attachment stays until it is attached again",
                  LOG_STR("volume", at->state.volume), LOG_ERR(&j.e));
}
