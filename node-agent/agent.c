/* The agent's attachments.
 *
 *            agent_attach                  daemon serves, device is there
 *   (none) ----------------> ATTACHING ---------------------------------> ATTACHED
 *                               |  bring_up fails                         |      |
 *                               v                       agent_detach      |      | daemon ends:
 *                             GONE <---------- DETACHING <----------------+      | on_daemon_end
 *                               ^    take_down    |  ^                           v
 *                               |                 |  +----------------------- FAILED
 *                               +-----------------+  device in use: back to where it was
 *
 * An attachment is run by one fiber, attachment_main, which alone changes its phase. Calls write
 * wishes (detach_asked, force) and wait on `changed`; the fiber, its daemon's pidfd and its
 * daemon's first line wake each other on `events`. System calls that may block run on workers.
 *
 * I1  an attach file exists before anything of the attachment exists, and after everything of it;
 * I2  one daemon for each attachment; it is ended before the attach file goes;
 * I3  our copy of the device's descriptor is closed once the daemon has it: its death ends the
 * device by itself (until a daemon can take over what its predecessor acknowledged,
 * policy_after_death is: the device is over). */
#include "node-agent/agent.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/log.h"
#include "common/mem.h"
#include "node-agent/daemon_control.h"
#include "node-agent/supervisor.h"

enum {
    KILL_WAIT_US = 10 * 1000 * 1000,  /* for a process that got SIGKILL */
    FORCE_GRACE_US = 3 * 1000 * 1000, /* for a daemon whose device was taken away by force */
    END_HEARD_US = 5 * 1000 * 1000,   /* for a daemon to end because its device did */
    SECOND_US = 1000 * 1000,
};

struct attachment {
    struct list_node node; /* agent's attachments */
    struct agent *agent;
    struct attach_backend *backend;
    struct attach_state state;
    struct pool_config pool; /* until bring_up has stored it */
    bool adopt;              /* an earlier agent brought it up */

    enum attachment_phase phase;
    struct attach_device device;
    struct daemon *daemon; /* NULL: none */
    struct err why;        /* FAILED, GONE: the reason */

    uint64_t detach_asked; /* number of the newest wish ... */
    uint64_t detach_done;  /* ... and of the last that an attempt answered, with this: */
    struct err detach_result;
    bool force;

    struct waitq events;  /* for attachment_main */
    struct waitq changed; /* for calls */
    unsigned users;       /* fibers that look at it */
};

struct agent {
    struct agent_config config;
    struct env *env;
    struct state_dir *state;
    struct list_node attachments;
    size_t count;
    bool stopping;
    struct waitq ended; /* an attachment's fiber has ended */
    struct metrics_group *metrics;
    struct metrics_gauge attached, failed;
    struct metrics_counter deaths;
    struct metrics_results attach_results, detach_results;
};

/* --- the table --- */

static struct attachment *find(struct agent *a, const char *volume) {
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        if (strcmp(at->state.volume, volume) == 0)
            return at;
    }
    return NULL;
}

static void put(struct attachment *at) {
    CHECK(at->users > 0);
    if (--at->users)
        return;
    daemon_free(at->daemon);
    pool_config_release(&at->pool);
    free(at);
}

static void count_phases(struct agent *a) {
    int64_t attached = 0, failed = 0;
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        attached += at->phase == ATTACHMENT_ATTACHED;
        failed += at->phase == ATTACHMENT_FAILED;
    }
    metrics_gauge_set(&a->attached, attached);
    metrics_gauge_set(&a->failed, failed);
}

static void set_phase(struct attachment *at, enum attachment_phase phase) {
    at->phase = phase;
    count_phases(at->agent);
    waitq_wake_all(&at->changed);
}

static struct attach_backend *find_backend(struct agent *a, const char *name) {
    for (size_t i = 0; i < a->config.backend_count; i++)
        if (!name || !name[0] || strcmp(a->config.backends[i]->ops->name, name) == 0)
            return a->config.backends[i];
    return NULL;
}

static struct attachment *attachment_new(struct agent *a, const struct attach_state *state,
                                         struct attach_backend *backend) {
    struct attachment *at = NEW(struct attachment);
    at->agent = a;
    at->backend = backend;
    at->state = *state;
    at->users = 1;
    waitq_init(&at->events);
    waitq_init(&at->changed);
    list_push_back(&a->attachments, &at->node);
    a->count++;
    return at;
}

/* --- work on workers --- */

struct work {
    struct attachment *at;
    const struct pool_config *pool;
    bool force;
    struct attach_link link;
    uint64_t size_bytes;
    struct attach_device device;
    int rc;
    struct err e;
};

static int run(struct attachment *at, struct work *w, void (*fn)(void *work), struct err *e) {
    w->at = at;
    fiber_run_job(at->agent->env, fn, w);
    return w->rc < 0 ? err_copy(e, &w->e) : 0;
}

static void save_all_work(void *arg) {
    struct work *w = arg;
    struct state_dir *dir = w->at->agent->state;
    w->rc = state_save_pool(dir, w->at->state.volume, w->pool, &w->e);
    if (w->rc == 0)
        w->rc = state_save(dir, &w->at->state, &w->e);
    if (w->rc < 0)
        state_remove(dir, w->at->state.volume, NULL);
}

static void save_work(void *arg) {
    struct work *w = arg;
    w->rc = state_save(w->at->agent->state, &w->at->state, &w->e);
}

static void remove_work(void *arg) {
    struct work *w = arg;
    w->rc = state_remove(w->at->agent->state, w->at->state.volume, &w->e);
}

static void prepare_work(void *arg) {
    struct work *w = arg;
    struct attach_backend *b = w->at->backend;
    w->rc = b->ops->prepare(b, w->at->state.volume, &w->link, &w->e);
}

static void attach_work(void *arg) {
    struct work *w = arg;
    struct attach_backend *b = w->at->backend;
    const struct attach_how how = {.publish_epoch = w->at->state.publish_epoch,
                                   .size_bytes = w->at->daemon ? w->at->daemon->size_bytes : 0,
                                   .read_only = w->at->state.read_only};
    w->rc = b->ops->attach(b, w->at->state.volume, &how, &w->link, &w->device, &w->e);
}

static void detach_work(void *arg) {
    struct work *w = arg;
    struct attach_backend *b = w->at->backend;
    w->rc = b->ops->detach(b, w->at->state.volume, w->force, &w->e);
}

/* What of the device is left; when the kernel does not say, what was known before. */
static void look_work(void *arg) {
    struct work *w = arg;
    struct attach_backend *b = w->at->backend;
    struct attach_devices all;
    w->rc = b->ops->discover(b, &all, &w->e);
    if (w->rc < 0)
        return;
    const struct attach_device *found = attach_devices_find(&all, w->at->state.volume);
    w->device = found ? *found : (struct attach_device){0};
    attach_devices_release(&all);
}

static void fail_work(void *arg) {
    struct work *w = arg;
    w->rc = 0;
    w->at->backend->ops->fail(w->at->backend, w->at->state.volume);
}

static void grow_work(void *arg) {
    struct work *w = arg;
    struct attach_backend *b = w->at->backend;
    w->rc = b->ops->grow(b, w->at->state.volume, w->size_bytes, &w->e);
}

/* --- up --- */

static int start_daemon(struct attachment *at, int device_fd, struct err *e) {
    struct agent *a = at->agent;
    CLEANUP_FREE char *pool_path = state_pool_path(a->state, at->state.volume);
    const struct daemon_spec spec = {
        .program = a->config.daemon_program,
        .volume = at->state.volume,
        .pool_file = pool_path,
        .node_id = a->config.node_id,
        .run_dir = a->config.run_dir,
        .publish_epoch = at->state.publish_epoch,
        .cache_bytes = at->state.cache_bytes,
        .journal_bytes = at->state.journal_bytes,
        .read_only = at->state.read_only,
        .device_fd = device_fd,
    };
    int rc = daemon_spawn(a->config.loop, &spec, &at->events, &at->daemon, e);
    if (rc < 0)
        return rc;
    at->state.pid = at->daemon->pid;
    at->state.pid_start = at->daemon->pid_start;
    struct work w = {0};
    return run(at, &w, save_work, e);
}

/* As long as the store takes, unless somebody wants it detached. */
static int wait_until_served(struct attachment *at, struct err *e) {
    for (;;) {
        int rc = daemon_is_ready(at->daemon, e);
        if (rc != -ERR_BUSY)
            return rc;
        if (at->detach_asked > at->detach_done)
            return err_set(e, -ERR_CANCELLED, "detached before it served");
        if (at->agent->stopping || waitq_wait(at->agent->env, &at->events) < 0)
            return err_set(e, -ERR_CANCELLED, "the agent stops");
    }
}

static int bring_up(struct attachment *at, struct err *e) {
    struct work w = {.pool = &at->pool, .link = ATTACH_LINK_NONE};
    int rc = run(at, &w, save_all_work, e);
    pool_config_release(&at->pool);
    if (rc == 0)
        rc = run(at, &w, prepare_work, e);
    if (rc < 0)
        return rc;
    rc = start_daemon(at, w.link.daemon_fd, e);
    attach_link_close(&w.link); /* I3 */
    if (rc == 0)
        rc = wait_until_served(at, e);
    if (rc == 0)
        rc = run(at, &w, attach_work, e);
    if (rc < 0)
        return rc;
    at->device = w.device;
    at->state.served = true;
    return run(at, &w, save_work, e);
}

/* --- down --- */

static void kill_daemon(struct attachment *at) {
    if (!at->daemon || at->daemon->exited)
        return;
    daemon_signal(at->daemon, SIGKILL);
    if (daemon_wait_exit(at->daemon, KILL_WAIT_US) == -ERR_TIMEOUT)
        log_error("a daemon does not die of SIGKILL; its process is left alone",
                  LOG_STR("volume", at->state.volume), LOG_I64("pid", at->daemon->pid));
}

/* The device is gone: the daemon ends by itself once everything is in the store, however long that
 * takes; a force says when to stop waiting (agent_detach kills it). One that has not heard of the
 * device's end is asked over its socket: a signal would be a second reason to end, which daemons
 * take for impatience. */
static int wait_until_uploaded(struct attachment *at, struct err *e) {
    struct env *env = at->agent->env;
    if (!at->daemon)
        return 0;
    if (daemon_wait_exit(at->daemon, END_HEARD_US) == -ERR_TIMEOUT)
        (void)daemon_control_shutdown(env, at->agent->config.run_dir, at->state.volume,
                                      2 * SECOND_US, NULL);
    while (!at->daemon->exited)
        if (at->agent->stopping || waitq_wait(env, &at->events) < 0)
            return err_set(e, -ERR_CANCELLED, "the agent stops");
    if (at->force || !at->daemon->ours || at->daemon->exit_code == 0)
        return 0;
    if (at->daemon->exit_code == DAEMON_EXIT_FENCED) {
        log_warn("another writer has the volume; what this node had not stored is lost",
                 LOG_STR("volume", at->state.volume));
        return 0;
    }
    char how[64];
    daemon_describe_end(at->daemon, how, sizeof how);
    return err_set(e, -ERR_IO, "volume '%s': the daemon %s before its clean close",
                   at->state.volume, how);
}

/* 0: nothing is left. -ERR_BUSY: the device is in use and still there. Another error: the device is
 * gone, but not everything went as it should; the next attempt finds less to do. */
static int take_down(struct attachment *at, struct err *e) {
    struct work w = {.force = at->force};
    int rc = run(at, &w, detach_work, e);
    if (rc < 0) {
        at->why = *e;
        if (run(at, &w, look_work, NULL) == 0)
            at->device = w.device;
        return rc;
    }
    at->device = (struct attach_device){0};
    rc = wait_until_uploaded(at, e);
    if (rc == -ERR_CANCELLED)
        return rc;
    daemon_free(at->daemon);
    at->daemon = NULL;
    at->state.pid = 0;
    if (rc < 0) { /* said once; nothing is left that a repetition could save */
        at->why = *e;
        return rc;
    }
    return run(at, &w, remove_work, e);
}

/* After a bring_up that failed: best effort, in the order of take_down, without waiting for
 * uploads: nobody has seen the device. */
static void clean_up(struct attachment *at) {
    struct work w = {.force = true};
    kill_daemon(at);
    if (run(at, &w, detach_work, &w.e) < 0 || run(at, &w, remove_work, &w.e) < 0)
        log_error("what is left of an attachment stays until it is attached again",
                  LOG_STR("volume", at->state.volume), LOG_ERR(&w.e));
}

/* --- the fiber --- */

/* What the death of a serving daemon means. Until the journal outlives it, the writes that it
 * acknowledged and had not stored are lost: going on would break prefix consistency for the
 * filesystem above, so the device ends. */
static void policy_after_death(struct attachment *at) {
    char how[64];
    struct work w = {0};
    daemon_describe_end(at->daemon, how, sizeof how);
    err_set_text(&at->why, -ERR_IO, "the daemon %s: unmount, detach and attach again", how);
    log_error("a daemon died; its device gives errors until it is detached",
              LOG_STR("volume", at->state.volume), LOG_STR("device", at->device.path),
              LOG_I64("pid", at->daemon->pid), LOG_STR("how", how));
    metrics_counter_inc(&at->agent->deaths);
    run(at, &w, fail_work, &w.e);
    daemon_free(at->daemon);
    at->daemon = NULL;
    set_phase(at, ATTACHMENT_FAILED);
}

/* One attempt for all wishes of now. True: nothing is left. */
static bool attempt_detach(struct attachment *at) {
    uint64_t asked = at->detach_asked;
    enum attachment_phase before = at->phase;
    struct err e = {0};
    set_phase(at, ATTACHMENT_DETACHING);
    int rc = take_down(at, &e);
    metrics_results_add(&at->agent->detach_results, rc);
    at->detach_done = asked;
    at->detach_result = e;
    at->detach_result.code = rc;
    if (rc == 0)
        return true;
    if (rc != -ERR_BUSY && rc != -ERR_CANCELLED)
        log_error("detaching did not go well; repeat it", LOG_STR("volume", at->state.volume),
                  LOG_ERR(&e));
    bool still_served = at->device.path[0] && at->daemon;
    set_phase(at, still_served && before == ATTACHMENT_ATTACHED ? ATTACHMENT_ATTACHED
                                                                : ATTACHMENT_FAILED);
    return false;
}

static void serve_wishes(struct attachment *at) {
    for (;;) {
        if (at->agent->stopping)
            return;
        if (at->detach_asked > at->detach_done) {
            if (attempt_detach(at)) {
                log_info("detached", LOG_STR("volume", at->state.volume));
                set_phase(at, ATTACHMENT_GONE);
                return;
            }
            continue;
        }
        if (at->phase == ATTACHMENT_ATTACHED && at->daemon->exited)
            policy_after_death(at);
        if (waitq_wait(at->agent->env, &at->events) < 0)
            return;
    }
}

/* True: it is attached, or failed with something to detach. */
static bool begin_new(struct attachment *at) {
    struct err e;
    uint64_t start = env_now_us(at->agent->env);
    int rc = bring_up(at, &e);
    metrics_results_add(&at->agent->attach_results, rc);
    if (rc == -ERR_CANCELLED && at->agent->stopping)
        return false; /* the next agent finds the attach file and cleans up */
    if (rc < 0) {
        log_warn("not attached", LOG_STR("volume", at->state.volume), LOG_ERR(&e));
        clean_up(at);
        at->why = e;
        set_phase(at, ATTACHMENT_GONE);
        return false;
    }
    log_info("attached", LOG_STR("volume", at->state.volume), LOG_STR("device", at->device.path),
             LOG_U64("size_bytes", at->device.size_bytes), LOG_I64("pid", at->daemon->pid),
             LOG_U64("ms", (env_now_us(at->agent->env) - start) / 1000));
    set_phase(at, ATTACHMENT_ATTACHED);
    return true;
}

static bool begin_adopted(struct attachment *at) {
    struct err e;
    struct work w = {0};
    int rc = daemon_adopt(at->agent->config.loop, at->state.pid, at->state.pid_start, &at->events,
                          &at->daemon, &e);
    bool alive = rc == 0;
    if (alive && at->state.served && !at->device.path[0] &&
        run(at, &w, attach_work, &e) == 0) /* cut off between detaching the device and the rest */
        at->device = w.device;
    if (alive && at->state.served && at->device.path[0]) {
        log_info("found attached", LOG_STR("volume", at->state.volume),
                 LOG_STR("device", at->device.path), LOG_I64("pid", at->daemon->pid));
        set_phase(at, ATTACHMENT_ATTACHED);
        return true;
    }
    if (!at->device.path[0]) {
        log_info("what an earlier agent had begun is undone", LOG_STR("volume", at->state.volume));
        clean_up(at);
        err_set_text(&at->why, -ERR_CANCELLED, "an earlier agent did not finish attaching it");
        set_phase(at, ATTACHMENT_GONE);
        return false;
    }
    kill_daemon(at);
    daemon_free(at->daemon);
    at->daemon = NULL;
    run(at, &w, fail_work, &e);
    err_set_text(&at->why, -ERR_IO, "its daemon died while no agent ran: detach and attach again");
    log_error("a device has no daemon; it gives errors until it is detached",
              LOG_STR("volume", at->state.volume), LOG_STR("device", at->device.path));
    set_phase(at, ATTACHMENT_FAILED);
    return true;
}

static void attachment_main(void *arg) {
    struct attachment *at = arg;
    struct agent *a = at->agent;
    if (at->adopt ? begin_adopted(at) : begin_new(at))
        serve_wishes(at);
    list_remove(&at->node);
    a->count--;
    count_phases(a);
    if (at->phase != ATTACHMENT_GONE)
        err_set_text(&at->why, -ERR_SHUTDOWN, "the agent stops");
    waitq_wake_all(&at->changed);
    waitq_wake_all(&a->ended);
    put(at);
}

static void attachment_run(struct attachment *at) {
    fiber_start(at->agent->env, attachment_main, at);
}

/* --- calls --- */

static const char *phase_word(enum attachment_phase phase) {
    static const char *const words[] = {"attaching", "attached", "detaching", "failed", "gone"};
    return words[phase];
}

static void describe(const struct attachment *at, struct attachment_info *ret) {
    *ret = (struct attachment_info){.phase = at->phase,
                                    .publish_epoch = at->state.publish_epoch,
                                    .size_bytes = at->device.size_bytes,
                                    .daemon_pid = at->daemon ? at->daemon->pid : 0,
                                    .read_only = at->state.read_only};
    memcpy(ret->volume, at->state.volume, sizeof ret->volume);
    memcpy(ret->device, at->device.path, sizeof ret->device);
    memcpy(ret->backend, at->state.backend, sizeof ret->backend);
    const char *message = phase_word(at->phase);
    if (at->phase == ATTACHMENT_FAILED)
        message = at->why.text;
    else if (at->phase == ATTACHMENT_ATTACHING)
        message = "waits for its daemon to open the volume";
    else if (at->phase == ATTACHMENT_DETACHING)
        message =
            at->device.path[0] ? "takes the device away" : "waits until everything is uploaded";
    snprintf(ret->message, sizeof ret->message, "%.*s", AGENT_MESSAGE_MAX - 1, message);
}

/* Waits for a change, at most until the deadline; -ERR_BUSY when that is over. */
static int wait_changed(struct attachment *at, uint64_t deadline_us, struct err *e) {
    struct env *env = at->agent->env;
    uint64_t now = env_now_us(env);
    int rc =
        now < deadline_us ? waitq_wait_for(env, &at->changed, deadline_us - now) : -ERR_TIMEOUT;
    if (rc == -ERR_CANCELLED)
        return err_set(e, rc, "the agent stops");
    if (rc < 0)
        return err_set(e, -ERR_BUSY, "volume '%s' is still %s", at->state.volume,
                       phase_word(at->phase));
    return 0;
}

struct pool_work {
    const char *path;
    const char *pool;
    struct pool_config config;
    int rc;
    struct err e;
};

static void pool_work(void *arg) {
    struct pool_work *w = arg;
    struct pool_file file;
    w->rc = pool_file_read(w->path, &file, &w->e);
    if (w->rc < 0)
        return;
    const struct pool_config *found = pool_file_find(&file, w->pool);
    if (found)
        pool_config_copy(&w->config, found);
    else
        w->rc = err_set(&w->e, -ERR_NOT_FOUND, "no pool '%s' in %s", w->pool, w->path);
    pool_file_release(&file);
}

static int load_pool(struct agent *a, const char *pool, const struct pool_config *credentials,
                     struct pool_config *ret, struct err *e) {
    struct pool_work w = {.path = a->config.pools_path, .pool = pool};
    fiber_run_job(a->env, pool_work, &w);
    if (w.rc < 0)
        return err_copy(e, &w.e);
    if (credentials) {
        free(w.config.access_key_id);
        w.config.access_key_id = xstrdup(credentials->access_key_id);
        secret_copy(&w.config.secret_access_key, &credentials->secret_access_key);
        secret_copy(&w.config.session_token, &credentials->session_token);
    }
    *ret = w.config;
    return 0;
}

static int check_same(const struct attachment *at, const struct attach_state *want, struct err *e) {
    const char *v = at->state.volume;
    if (at->state.publish_epoch != want->publish_epoch)
        return err_set(e, -ERR_IN_USE, "volume '%s' is attached with publish epoch %llu, not %llu",
                       v, (unsigned long long)at->state.publish_epoch,
                       (unsigned long long)want->publish_epoch);
    if (at->state.read_only != want->read_only)
        return err_set(e, -ERR_IN_USE, "volume '%s' is attached %s", v,
                       at->state.read_only ? "read-only" : "writable");
    if (strcmp(at->state.backend, want->backend) != 0)
        return err_set(e, -ERR_IN_USE, "volume '%s' is attached by backend %s", v,
                       at->state.backend);
    return 0;
}

static int make_state(struct agent *a, const struct agent_attach *req, struct parsed_id *ret_id,
                      struct attach_state *ret, struct err *e) {
    int rc = id_parse(ret_id, req->volume, e);
    if (rc < 0)
        return rc;
    if (ret_id->kind == ID_SNAPSHOT && !req->read_only)
        return err_set(e, -ERR_INVALID, "'%s' is a snapshot: it can only be attached read-only",
                       req->volume);
    struct attach_backend *backend = find_backend(a, req->backend);
    if (!backend)
        return err_set(e, -ERR_INVALID, "backend '%s' is not one that this node can use",
                       req->backend);
    if (req->publish_epoch > UINT32_MAX)
        return err_set(e, -ERR_INVALID, "publish epoch %llu is out of range",
                       (unsigned long long)req->publish_epoch);
    *ret = (struct attach_state){
        .publish_epoch = req->publish_epoch,
        .read_only = req->read_only,
        .own_credentials = req->credentials != NULL,
        .cache_bytes = req->cache_bytes ? req->cache_bytes : a->config.cache_bytes,
        .journal_bytes = req->journal_bytes ? req->journal_bytes : a->config.journal_bytes,
    };
    memcpy(ret->volume, req->volume, strlen(req->volume) + 1);
    snprintf(ret->backend, sizeof ret->backend, "%s", backend->ops->name);
    return 0;
}

/* Waits until it is attached, or not any more. */
static int join_attach(struct attachment *at, const struct attach_state *want, uint64_t deadline_us,
                       struct attachment_info *ret, struct err *e) {
    at->users++;
    int rc = check_same(at, want, e);
    while (rc == 0 && at->phase == ATTACHMENT_ATTACHING)
        rc = wait_changed(at, deadline_us, e);
    if (rc == 0 && at->phase == ATTACHMENT_ATTACHED)
        describe(at, ret);
    else if (rc == 0 && at->phase == ATTACHMENT_DETACHING)
        rc = err_set(e, -ERR_BUSY, "volume '%s' is being detached", at->state.volume);
    else if (rc == 0)
        rc = err_copy(e, &at->why);
    put(at);
    return rc;
}

int agent_attach(struct agent *a, const struct agent_attach *req, uint64_t limit_us,
                 struct attachment_info *ret, struct err *e) {
    uint64_t deadline = env_now_us(a->env) + limit_us;
    struct attach_state want;
    struct parsed_id id;
    int rc = make_state(a, req, &id, &want, e);
    if (rc < 0)
        return rc;
    struct attachment *at = find(a, want.volume);
    if (at && at->phase == ATTACHMENT_FAILED) { /* make room, if nobody uses what is left */
        rc = agent_detach(a, want.volume, false, limit_us, e);
        if (rc < 0)
            return err_wrap(e, "volume '%s' failed before", want.volume);
        at = find(a, want.volume);
    }
    if (!at) {
        struct pool_config pool;
        rc = load_pool(a, id.pool, req->credentials, &pool, e);
        if (rc < 0)
            return rc;
        at = find(a, want.volume); /* another call may have been faster */
        if (at) {
            pool_config_release(&pool);
            return join_attach(at, &want, deadline, ret, e);
        }
        if (a->stopping || a->count >= AGENT_ATTACHMENTS_MAX) {
            pool_config_release(&pool);
            return err_set(e, a->stopping ? -ERR_SHUTDOWN : -ERR_OVERLOAD,
                           "this agent takes no more attachments (%zu)", a->count);
        }
        at = attachment_new(a, &want, find_backend(a, want.backend));
        at->pool = pool;
        attachment_run(at);
    }
    return join_attach(at, &want, deadline, ret, e);
}

static void kill_for_force(struct attachment *at) {
    if (!at->daemon || at->daemon->exited)
        return;
    log_warn("a daemon is killed by a forced detach", LOG_STR("volume", at->state.volume),
             LOG_I64("pid", at->daemon->pid));
    daemon_signal(at->daemon, SIGKILL);
}

int agent_detach(struct agent *a, const char *volume, bool force, uint64_t limit_us,
                 struct err *e) {
    uint64_t start = env_now_us(a->env), deadline = start + limit_us;
    struct attachment *at = find(a, volume);
    if (!at)
        return 0;
    at->users++;
    uint64_t mine = ++at->detach_asked;
    at->force |= force;
    waitq_wake_all(&at->events);
    int rc = 0;
    while (rc == 0 && at->phase != ATTACHMENT_GONE && at->detach_done < mine) {
        bool grace = force && env_now_us(a->env) - start < FORCE_GRACE_US;
        rc = wait_changed(at, grace ? MIN(deadline, start + FORCE_GRACE_US) : deadline, e);
        if (rc == -ERR_BUSY && grace) { /* neither store nor device may hold us up */
            kill_for_force(at);
            rc = 0;
        }
    }
    if (rc == 0 && at->phase != ATTACHMENT_GONE && at->detach_result.code < 0)
        rc = err_copy(e, &at->detach_result);
    put(at);
    return rc;
}

int agent_grow(struct agent *a, const char *volume, uint64_t size_bytes, uint64_t limit_us,
               uint64_t *ret_size_bytes, struct err *e) {
    struct attachment *at = find(a, volume);
    if (!at)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' is not attached here", volume);
    if (at->phase == ATTACHMENT_FAILED)
        return err_set(e, -ERR_IN_USE, "volume '%s': %s", volume, at->why.text);
    if (at->phase != ATTACHMENT_ATTACHED)
        return err_set(e, -ERR_BUSY, "volume '%s' is %s", volume, phase_word(at->phase));
    at->users++;
    struct work w = {0};
    int rc = daemon_control_grow(a->env, a->config.run_dir, volume, size_bytes, limit_us,
                                 &w.size_bytes, e);
    if (rc == 0 && at->phase != ATTACHMENT_ATTACHED)
        rc = err_set(e, -ERR_BUSY, "volume '%s' is %s", volume, phase_word(at->phase));
    if (rc == 0)
        rc = run(at, &w, grow_work, e);
    if (rc == 0)
        *ret_size_bytes = at->device.size_bytes = w.size_bytes;
    put(at);
    return rc;
}

int agent_health(struct agent *a, const char *volume, bool *ret_abnormal,
                 struct attachment_info *ret, struct err *e) {
    struct attachment *at = find(a, volume);
    if (!at)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' is not attached here", volume);
    at->users++;
    describe(at, ret);
    *ret_abnormal = at->phase == ATTACHMENT_FAILED;
    if (at->phase == ATTACHMENT_ATTACHED) {
        struct err why;
        bool healthy;
        int rc = daemon_control_health(a->env, a->config.run_dir, volume, 2 * SECOND_US, &healthy,
                                       ret->message, sizeof ret->message, &why);
        *ret_abnormal = rc < 0 || !healthy;
        if (rc < 0)
            snprintf(ret->message, sizeof ret->message, "the daemon does not answer: %.200s",
                     why.text);
    }
    put(at);
    return 0;
}

size_t agent_list(struct agent *a, struct attachment_info *items, size_t max) {
    size_t n = 0;
    list_for_each (&a->attachments, node) {
        if (n == max)
            break;
        describe(list_entry(node, struct attachment, node), &items[n++]);
    }
    return n;
}

const struct agent_config *agent_config(const struct agent *a) {
    return &a->config;
}

/* --- start and stop --- */

struct start_work {
    struct agent *a;
    struct attach_states states;
    struct attach_devices devices[AGENT_BACKENDS_MAX];
    int rc;
    struct err e;
};

static void start_work(void *arg) {
    struct start_work *w = arg;
    struct agent *a = w->a;
    w->rc = state_open(a->config.run_dir, &a->state, &w->e);
    if (w->rc == 0)
        w->rc = state_list(a->state, &w->states, &w->e);
    for (size_t i = 0; w->rc == 0 && i < a->config.backend_count; i++) {
        struct attach_backend *b = a->config.backends[i];
        w->rc = b->ops->discover(b, &w->devices[i], &w->e);
    }
}

static void adopt_state(struct agent *a, const struct attach_state *state,
                        const struct attach_devices *devices) {
    struct attach_backend *backend = find_backend(a, state->backend);
    if (!backend) {
        log_error("an attachment's backend is not there any more; it is left alone",
                  LOG_STR("volume", state->volume), LOG_STR("backend", state->backend));
        return;
    }
    struct attachment *at = attachment_new(a, state, backend);
    at->adopt = true;
    for (size_t i = 0; i < a->config.backend_count; i++) {
        const struct attach_device *d = attach_devices_find(&devices[i], state->volume);
        if (a->config.backends[i] == backend && d)
            at->device = *d;
    }
    attachment_run(at);
}

/* A device that no attach file names: somebody deleted the file. Without a daemon of ours it can
 * only be taken away. */
static void adopt_orphan(struct agent *a, struct attach_backend *backend,
                         const struct attach_device *d) {
    struct attach_state state = {0};
    struct parsed_id id;
    if (find(a, d->volume) || id_parse(&id, d->volume, NULL) < 0)
        return;
    memcpy(state.volume, d->volume, sizeof d->volume);
    snprintf(state.backend, sizeof state.backend, "%s", backend->ops->name);
    log_warn("a device without an attach file", LOG_STR("volume", d->volume),
             LOG_STR("device", d->path));
    struct attachment *at = attachment_new(a, &state, backend);
    at->adopt = true;
    at->device = *d;
    attachment_run(at);
}

static void register_metrics(struct agent *a) {
    a->metrics = metrics_group_new(a->config.metrics, NULL);
    metrics_gauge_register(a->metrics, &a->attached, "portalbd_agent_attachments",
                           "Volumes by the state of their device.",
                           METRICS_LABELS({"state", "attached"}));
    metrics_gauge_register(a->metrics, &a->failed, "portalbd_agent_attachments",
                           "Volumes by the state of their device.",
                           METRICS_LABELS({"state", "failed"}));
    metrics_counter_register(a->metrics, &a->deaths, "portalbd_agent_daemon_deaths_total",
                             "Daemons that died while they served.", NULL);
    metrics_results_register(a->metrics, &a->attach_results, "portalbd_agent_attaches_total",
                             "Attempts to attach a volume, by result.", NULL);
    metrics_results_register(a->metrics, &a->detach_results, "portalbd_agent_detaches_total",
                             "Attempts to detach a volume, by result.", NULL);
}

static void agent_free(struct agent *a) {
    metrics_group_free(a->metrics);
    if (a->state)
        state_close(a->state);
    free(a);
}

int agent_start(const struct agent_config *config, struct agent **ret, struct err *e) {
    CHECK(config->backend_count >= 1 && config->backend_count <= AGENT_BACKENDS_MAX);
    struct agent *a = NEW(struct agent);
    a->config = *config;
    a->env = loop_env(config->loop);
    list_init(&a->attachments);
    waitq_init(&a->ended);
    register_metrics(a);
    struct start_work w = {.a = a};
    fiber_run_job(a->env, start_work, &w);
    if (w.rc == 0) {
        for (size_t i = 0; i < w.states.count; i++)
            adopt_state(a, &w.states.items[i], w.devices);
        for (size_t b = 0; b < config->backend_count; b++)
            for (size_t i = 0; i < w.devices[b].count; i++)
                adopt_orphan(a, config->backends[b], &w.devices[b].items[i]);
        *ret = a;
    } else {
        err_copy(e, &w.e);
        agent_free(a);
    }
    attach_states_release(&w.states);
    for (size_t b = 0; b < config->backend_count; b++)
        attach_devices_release(&w.devices[b]);
    return w.rc;
}

void agent_interrupt(struct agent *a) {
    a->stopping = true;
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        waitq_wake_all(&at->events);
        waitq_wake_all(&at->changed);
    }
}

void agent_stop(struct agent *a) {
    agent_interrupt(a);
    while (a->count)
        if (waitq_wait(a->env, &a->ended) < 0)
            return; /* cancelled: the process ends with what it has */
    agent_free(a);
}
