/* The life of an attachment.
 *
 *            agent_attach                  daemon serves, device is there
 *   (none) ----------------> ATTACHING ---------------------------------> ATTACHED <-----------+
 *                               |  bring_up fails                          | | |               |
 *                               v                       agent_detach:      | | | daemon ends, or
 * hands over: GONE <---------- DETACHING <-----------------+ | | on_daemon_end, upgrade ^ take_down
 * |  ^ ^                      | v               |
 *                               +----------------+  | +------- (forced) RECOVERING ------------+
 *                                                   |                        | |   go_on_recovering
 *                device in use: back to where it was|        give_up         v v
 *                                                   +--------------------- FAILED
 *
 * An attachment is run by one fiber, attachment_main, which alone changes its phase. Calls write
 * wishes (detach, upgrade) and wait on `changed`; the fiber, its daemon's pidfd and what its daemon
 * says wake each other on `events`. System calls that may block run on workers. A graceful detach
 * waits for the end of RECOVERING: what was written has to reach a daemon.
 *
 * I1  an attach file exists before anything of the attachment exists, and after everything of it;
 * I2  one daemon for each attachment; it is ended before the next, and before the attach file goes;
 * I3  our copy of the daemon's descriptor is closed once the daemon has it; of the kernel's side we
 *     keep what the device needs to outlive its daemon (link.kernel_fd);
 * I4  a volume that a daemon of ours has owned is closed cleanly, found fenced, or given up by
 *     force before its attach file goes. */
#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "node-agent/agent_internal.h"

/* --- up --- */

/* A job that the daemon answers: when it dies the job is made to fail, for nobody else will. */
static int run_served(struct attachment *at, struct job *j, void (*fn)(void *job), struct err *e) {
    struct job fail = {0};
    bool failed = false;
    job_start(at, j, fn);
    while (!j->done) {
        if (at->daemon->exited && !failed) {
            failed = true;
            job_run(at, &fail, job_fail, NULL);
        } else {
            waitq_wait_always(at->agent->env, &at->events);
        }
    }
    return j->rc < 0 ? err_copy(e, &j->e) : 0;
}

static int bring_up_once(struct attachment *at, struct err *e) {
    struct job j = {0};
    int rc = job_run(at, &j, job_prepare, e);
    if (rc == 0)
        rc = attachment_start_daemon(at, false, e);
    if (rc == 0)
        rc = attachment_wait_served(at, NULL, e);
    if (rc == 0)
        rc = run_served(at, &j, job_attach, e);
    if (rc < 0)
        return rc;
    at->device = j.device;
    at->state.served = true;
    return job_run(at, &j, job_save, e);
}

/* The daemon died on its way, after the volume was its own: what it was about to replay has to be
 * seen through. */
static bool is_worth_another(struct attachment *at, int rc) {
    const struct daemon *d = at->daemon;
    at->fenced |= d && daemon_is_fenced(d);
    return rc != -ERR_CANCELLED && at->state.opened && !at->fenced && d &&
           (d->exited || d->said.code < 0);
}

/* As long as the store takes, unless somebody wants it detached. */
static int bring_up(struct attachment *at, struct err *e) {
    struct job j = {.pool = &at->pool, .force = true};
    int rc = job_run(at, &j, job_save_all, e);
    pool_config_release(&at->pool);
    if (rc < 0)
        return rc;
    for (;;) {
        rc = bring_up_once(at, e);
        if (rc == 0 || !is_worth_another(at, rc))
            return rc;
        at->why = *e;
        log_warn("a daemon died before it served; the next try follows",
                 LOG_STR("volume", at->state.volume), LOG_ERR(e));
        attachment_end_daemon(at);
        attach_link_close(&at->link);
        waitq_wake_all(&at->changed);
        if ((rc = job_run(at, &j, job_detach, e)) < 0)
            return rc;
        if (!attachment_back_off(at, NULL))
            return err_set(e, -ERR_CANCELLED, "%s",
                           at->agent->stopping ? "the agent stops" : "detached before it served");
        at->state.restarts++;
        metrics_counter_inc(&at->agent->restarts);
    }
}

/* Of an attach that did not come about: what a daemon owned is closed, the rest undone. */
static void undo(struct attachment *at, const struct err *why) {
    struct err e;
    if (!at->state.opened || at->fenced) {
        attachment_clean_up(at);
        return;
    }
    at->why = *why;
    waitq_wake_all(&at->changed);
    if (attachment_take_down(at, &e) < 0 && !at->agent->stopping)
        log_error("what is left of an attachment stays until it is attached again",
                  LOG_STR("volume", at->state.volume), LOG_ERR(&e));
}

/* True: it is attached. */
static bool begin_new(struct attachment *at) {
    struct err e;
    struct env *env = at->agent->env;
    int rc = bring_up(at, &e);
    metrics_results_add(&at->agent->attach_results, rc);
    if (rc < 0) {
        if (at->agent->stopping)
            return false; /* the next agent finds the attach file and goes on */
        log_warn("not attached", LOG_STR("volume", at->state.volume), LOG_ERR(&e));
        undo(at, &e);
        if (at->agent->stopping)
            return false;
        at->why = e;
        attachment_set_phase(at, ATTACHMENT_GONE);
        return false;
    }
    at->why = (struct err){0};
    at->serving = true;
    at->served_since_us = env_now_us(env);
    log_info("attached", LOG_STR("volume", at->state.volume), LOG_STR("device", at->device.path),
             LOG_U64("size_bytes", at->device.size_bytes), LOG_I64("pid", at->daemon->pid),
             LOG_U64("ms", (env_now_us(env) - at->phase_since_us) / 1000));
    attachment_set_phase(at, ATTACHMENT_ATTACHED);
    return true;
}

/* --- the fiber --- */

/* One attempt for all wishes of now. True: nothing is left. */
static bool attempt_detach(struct attachment *at) {
    uint64_t asked = at->detach.asked;
    enum attachment_phase before = at->phase;
    struct err e = {0};
    attachment_set_phase(at, ATTACHMENT_DETACHING);
    int rc = attachment_take_down(at, &e);
    bool forced = attachment_is_forced(at);
    metrics_results_add(&at->agent->detach_results, rc);
    at->detach.result = e;
    at->detach.result.code = rc;
    at->detach.done = asked;
    if (rc == 0)
        return true;
    if (rc != -ERR_BUSY && rc != -ERR_CANCELLED)
        log_error("detaching did not go well; repeat it", LOG_STR("volume", at->state.volume),
                  LOG_ERR(&e));
    bool goes_on = at->device.path[0] && at->daemon && before == ATTACHMENT_ATTACHED && !forced;
    attachment_set_phase(at, !goes_on      ? ATTACHMENT_FAILED
                             : at->serving ? ATTACHMENT_ATTACHED
                                           : ATTACHMENT_RECOVERING);
    return false;
}

static void serve_wishes(struct attachment *at) {
    for (;;) {
        if (at->agent->stopping)
            return;
        bool recovering = at->phase == ATTACHMENT_RECOVERING;
        if (wish_is_open(&at->detach) && (!recovering || attachment_is_forced(at))) {
            if (attempt_detach(at)) {
                log_info("detached", LOG_STR("volume", at->state.volume));
                attachment_set_phase(at, ATTACHMENT_GONE);
                return;
            }
        } else if (recovering) {
            attachment_go_on_recovering(at);
        } else if (at->phase == ATTACHMENT_ATTACHED && at->daemon->exited) {
            attachment_on_daemon_end(at);
        } else if (at->phase == ATTACHMENT_ATTACHED && wish_is_open(&at->upgrade)) {
            attachment_upgrade(at);
        } else if (at->phase == ATTACHMENT_ATTACHED && at->unlearned) {
            attachment_learn(at);
        } else if (waitq_wait(at->agent->env, &at->events) < 0) {
            return;
        }
    }
}

static void attachment_main(void *arg) {
    struct attachment *at = arg;
    if (at->adopt ? attachment_adopt(at) : begin_new(at))
        serve_wishes(at);
    attachment_ended(at);
}

void attachment_run(struct attachment *at) {
    fiber_start(at->agent->env, attachment_main, at);
}
