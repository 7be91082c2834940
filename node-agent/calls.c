/* The calls of the agent: they find an attachment or begin one, say what is wanted, and wait for
 * the attachment's fiber to get there, or for the end of their time. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "node-agent/agent_internal.h"

enum {
    FORCE_GRACE_US = 3 * 1000 * 1000, /* for a daemon whose device was taken away by force */
    STATUS_US = 1000 * 1000,          /* for a daemon to say how it is */
    HEALTH_US = 2 * 1000 * 1000,      /* for health, which a busy daemon delays */
    SAVE_POLL_US = 10 * 1000,
    RECOVERING_NORMAL_US = 10 * 1000 * 1000, /* longer is abnormal */
};

const char *attachment_phase_name(enum attachment_phase phase) {
    static const char *const names[] = {"attaching", "attached", "recovering",
                                        "detaching", "failed",   "gone"};
    return names[phase];
}

static const char *what_goes_on(const struct attachment *at) {
    switch (at->phase) {
    case ATTACHMENT_ATTACHING:
        return "waits for its daemon to open the volume";
    case ATTACHMENT_RECOVERING:
        return "recovering: requests wait for the next daemon";
    case ATTACHMENT_DETACHING:
        return at->device.path[0] ? "takes the device away" : "waits until everything is uploaded";
    case ATTACHMENT_ATTACHED:
    case ATTACHMENT_FAILED:
    case ATTACHMENT_GONE:
        break;
    }
    return attachment_phase_name(at->phase);
}

static void describe(const struct attachment *at, struct attachment_info *ret) {
    *ret = (struct attachment_info){.phase = at->phase,
                                    .publish_epoch = at->state.publish_epoch,
                                    .size_bytes = at->device.size_bytes,
                                    .daemon_pid = at->daemon ? at->daemon->pid : 0,
                                    .restarts = at->state.restarts,
                                    .read_only = at->state.read_only};
    memcpy(ret->volume, at->state.volume, sizeof ret->volume);
    memcpy(ret->device, at->device.path, sizeof ret->device);
    memcpy(ret->backend, at->state.backend, sizeof ret->backend);
    const char *why = at->why.code < 0 ? at->why.text : "";
    if (at->daemon && !at->daemon->ready && at->daemon->waits[0])
        why = at->daemon->waits;
    if (at->phase == ATTACHMENT_FAILED)
        snprintf(ret->message, sizeof ret->message, "%.*s", AGENT_MESSAGE_MAX - 1, why);
    else
        snprintf(ret->message, sizeof ret->message, "%s%s%.200s", what_goes_on(at),
                 why[0] && at->phase != ATTACHMENT_ATTACHED ? "; " : "",
                 at->phase != ATTACHMENT_ATTACHED ? why : "");
}

/* Waits for a change, at most until the deadline; -ERR_BUSY when that is over. */
static int wait_changed(struct attachment *at, uint64_t deadline_us, struct err *e) {
    struct env *env = at->agent->env;
    uint64_t now = env_now_us(env);
    int rc =
        now < deadline_us ? waitq_wait_for(env, &at->changed, deadline_us - now) : -ERR_TIMEOUT;
    if (rc == -ERR_CANCELLED || (rc == 0 && at->agent->stopping))
        return err_set(e, -ERR_CANCELLED, "the agent stops");
    if (rc < 0) {
        struct attachment_info info;
        describe(at, &info);
        return err_set(e, -ERR_BUSY, "volume '%s' is still %s: %s", at->state.volume,
                       attachment_phase_name(at->phase), info.message);
    }
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

/* Its files may go meanwhile, and would come back by ours. */
static void renew_credentials_of(struct agent *a, const char *volume) {
    struct attachment *at = agent_find(a, volume);
    struct parsed_id id;
    if (!at || at->state.own_credentials || id_parse(&id, volume, NULL) < 0)
        return;
    at->users++;
    struct job j = {0};
    struct pool_config pool;
    struct err e;
    int rc = 0;
    while (rc == 0 && at->pool.url) /* its own fiber is about to store what it has read */
        rc = fiber_sleep_us(a->env, SAVE_POLL_US);
    if (rc == 0)
        rc = load_pool(a, id.pool, NULL, &pool, &e);
    if (rc == 0) {
        j.pool = &pool;
        rc = job_run(at, &j, job_save_pool, &e);
        pool_config_release(&pool);
        if (at->phase == ATTACHMENT_GONE && !agent_find(a, volume))
            job_run(at, &j, job_forget, NULL);
    }
    if (rc < 0 && rc != -ERR_CANCELLED)
        log_warn("a daemon keeps the credentials that it has", LOG_STR("volume", volume),
                 LOG_ERR(&e));
    attachment_put(at);
}

void agent_renew_credentials(struct agent *a) {
    /* The list changes while we wait. */
    size_t count = 0, max = a->count;
    char(*volumes)[ID_MAX] = xcalloc(max + 1, sizeof *volumes);
    list_for_each (&a->attachments, n) {
        CHECK(count < max);
        const struct attachment *at = list_entry(n, struct attachment, node);
        memcpy(volumes[count++], at->state.volume, ID_MAX);
    }
    for (size_t i = 0; i < count; i++)
        renew_credentials_of(a, volumes[i]);
    free(volumes);
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

/* A cache is nothing that a volume needs: a node that has none serves without. */
static int choose_disk_cache(const struct agent *a, const struct agent_attach *req, uint64_t *ret,
                             struct err *e) {
    uint64_t asked = req->disk_cache_bytes;
    if (asked && req->no_disk_cache)
        return err_set(e, -ERR_INVALID, "a size of the disk cache, and none of it");
    if (asked && (asked < DAEMON_DISK_CACHE_MIN || asked > DAEMON_DISK_CACHE_MAX))
        return err_set(e, -ERR_INVALID, "a disk cache has from 64 MiB to 4 TiB, not %llu bytes",
                       (unsigned long long)asked);
    if (!a->config.disk_cache || req->no_disk_cache)
        *ret = 0;
    else
        *ret = asked ? asked : a->config.disk_cache_bytes;
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
    struct attach_backend *backend = agent_find_backend(a, req->backend);
    if (!backend)
        return err_set(e, -ERR_INVALID, "backend '%s' is not one that this node can use",
                       req->backend);
    if (req->publish_epoch > UINT32_MAX)
        return err_set(e, -ERR_INVALID, "publish epoch %llu is out of range",
                       (unsigned long long)req->publish_epoch);
    uint64_t disk_cache_bytes;
    rc = choose_disk_cache(a, req, &disk_cache_bytes, e);
    if (rc < 0)
        return rc;
    *ret = (struct attach_state){
        .publish_epoch = req->publish_epoch,
        .read_only = req->read_only,
        .own_credentials = req->credentials != NULL,
        .cache_bytes = req->cache_bytes ? req->cache_bytes : a->config.cache_bytes,
        .journal_bytes = req->journal_bytes ? req->journal_bytes : a->config.journal_bytes,
        .disk_cache_bytes = disk_cache_bytes,
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
    if (rc == 0 && (at->phase == ATTACHMENT_ATTACHED || at->phase == ATTACHMENT_RECOVERING))
        describe(at, ret);
    else if (rc == 0 && at->phase == ATTACHMENT_DETACHING)
        rc = err_set(e, -ERR_BUSY, "volume '%s' is being detached", at->state.volume);
    else if (rc == 0)
        rc = err_copy(e, &at->why);
    attachment_put(at);
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
    struct attachment *at = agent_find(a, want.volume);
    if (at && at->phase == ATTACHMENT_FAILED) { /* make room, if nobody uses what is left */
        rc = agent_detach(a, want.volume, false, limit_us, e);
        if (rc < 0)
            return err_wrap(e, "volume '%s' failed before", want.volume);
        at = agent_find(a, want.volume);
    }
    if (!at) {
        struct pool_config pool;
        rc = load_pool(a, id.pool, req->credentials, &pool, e);
        if (rc < 0)
            return rc;
        at = agent_find(a, want.volume); /* another call may have been faster */
        if (at) {
            pool_config_release(&pool);
            return join_attach(at, &want, deadline, ret, e);
        }
        if (a->stopping || a->count >= AGENT_ATTACHMENTS_MAX) {
            pool_config_release(&pool);
            return err_set(e, a->stopping ? -ERR_SHUTDOWN : -ERR_OVERLOAD,
                           "this agent takes no more attachments (%zu)", a->count);
        }
        at = attachment_new(a, &want, agent_find_backend(a, want.backend));
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

/* What only this node has, in the words of who has it. */
static void add_unsaved(struct attachment *at, uint64_t limit_us, struct err *e) {
    const struct daemon_address to = attachment_address(at, limit_us);
    struct daemon_status status;
    if (!at->daemon || daemon_control_status(&to, &status, NULL) < 0)
        return;
    err_set_text(e, -ERR_BUSY, "volume '%s' is still %s%s%s%s%s", at->state.volume,
                 attachment_phase_name(at->phase), status.unsaved[0] ? ": " : "", status.unsaved,
                 status.healthy ? "" : "; ", status.healthy ? "" : status.health);
}

int agent_detach(struct agent *a, const char *volume, bool force, uint64_t limit_us,
                 struct err *e) {
    uint64_t start = env_now_us(a->env), deadline = start + limit_us;
    uint64_t status_us = force ? 0 : MIN((uint64_t)STATUS_US, limit_us / 4);
    struct attachment *at = agent_find(a, volume);
    if (!at)
        return 0;
    at->users++;
    uint64_t mine = ++at->detach.asked;
    if (force)
        at->force_asked = mine;
    waitq_wake_all(&at->events);
    int rc = 0;
    while (rc == 0 && at->phase != ATTACHMENT_GONE && at->detach.done < mine) {
        bool grace = force && env_now_us(a->env) - start < FORCE_GRACE_US;
        rc = wait_changed(at, grace ? MIN(deadline, start + FORCE_GRACE_US) : deadline - status_us,
                          e);
        if (rc == -ERR_BUSY && grace) { /* neither store nor device may hold us up */
            kill_for_force(at);
            rc = 0;
        }
    }
    if (rc == -ERR_BUSY && !force)
        add_unsaved(at, status_us, e);
    if (rc == 0 && at->phase != ATTACHMENT_GONE && at->detach.result.code < 0)
        rc = err_copy(e, &at->detach.result);
    attachment_put(at);
    return rc;
}

int agent_upgrade(struct agent *a, const char *volume, uint64_t limit_us, uint64_t *ret_pause_us,
                  struct err *e) {
    uint64_t deadline = env_now_us(a->env) + limit_us;
    struct attachment *at = agent_find(a, volume);
    if (!at)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' is not attached here", volume);
    if (at->phase == ATTACHMENT_FAILED)
        return err_set(e, -ERR_IN_USE, "volume '%s': %s", volume, at->why.text);
    if (at->phase != ATTACHMENT_ATTACHED)
        return err_set(e, -ERR_BUSY, "volume '%s' is %s", volume, attachment_phase_name(at->phase));
    at->users++;
    uint64_t mine = ++at->upgrade.asked;
    waitq_wake_all(&at->events);
    int rc = 0;
    while (rc == 0 && at->upgrade.done < mine && at->phase != ATTACHMENT_GONE)
        rc = wait_changed(at, deadline, e);
    if (rc == 0 && at->upgrade.done < mine)
        rc = err_set(e, -ERR_NOT_FOUND, "volume '%s' was detached meanwhile", volume);
    else if (rc == 0 && at->upgrade.result.code < 0)
        rc = err_copy(e, &at->upgrade.result);
    else if (rc == 0)
        *ret_pause_us = at->pause_us;
    attachment_put(at);
    return rc;
}

int agent_grow(struct agent *a, const char *volume, uint64_t size_bytes, uint64_t limit_us,
               uint64_t *ret_size_bytes, struct err *e) {
    struct attachment *at = agent_find(a, volume);
    if (!at)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' is not attached here", volume);
    if (at->phase == ATTACHMENT_FAILED)
        return err_set(e, -ERR_IN_USE, "volume '%s': %s", volume, at->why.text);
    if (at->phase != ATTACHMENT_ATTACHED)
        return err_set(e, -ERR_BUSY, "volume '%s' is %s", volume, attachment_phase_name(at->phase));
    at->users++;
    struct job j = {0};
    const struct daemon_address to = attachment_address(at, limit_us);
    int rc = daemon_control_grow(&to, size_bytes, &j.size_bytes, e);
    if (rc == 0 && at->phase != ATTACHMENT_ATTACHED)
        rc = err_set(e, -ERR_BUSY, "volume '%s' is %s", volume, attachment_phase_name(at->phase));
    if (rc == 0)
        rc = job_run(at, &j, job_grow, e);
    if (rc == 0)
        *ret_size_bytes = at->state.size_bytes = at->device.size_bytes = j.size_bytes;
    attachment_put(at);
    return rc;
}

/* What the daemon says of itself. One that does not answer may be at its end: what that comes to,
 * the attachment's fiber knows in a moment, and until then nobody does. False: it is not attached
 * any more. */
static bool ask_attached(struct attachment *at, bool *ret_abnormal, struct attachment_info *ret) {
    struct env *env = at->agent->env;
    uint64_t now = env_now_us(env), deadline = now + HEALTH_US;
    struct daemon_status status;
    struct err why;
    int rc = -ERR_TIMEOUT;
    while (at->phase == ATTACHMENT_ATTACHED && rc < 0 && now < deadline) {
        const struct daemon_address to = attachment_address(at, deadline - now);
        rc = daemon_control_status(&to, &status, &why);
        now = env_now_us(env);
        if (rc < 0 && at->phase == ATTACHMENT_ATTACHED && now < deadline &&
            waitq_wait_for(env, &at->changed, deadline - now) < 0)
            break;
    }
    if (at->phase != ATTACHMENT_ATTACHED)
        return false;
    *ret_abnormal = rc < 0 || !status.healthy;
    if (rc < 0)
        snprintf(ret->message, sizeof ret->message, "the daemon does not answer: %.200s", why.text);
    else
        snprintf(ret->message, sizeof ret->message, "%s", status.health);
    return true;
}

int agent_health(struct agent *a, const char *volume, bool *ret_abnormal,
                 struct attachment_info *ret, struct err *e) {
    struct attachment *at = agent_find(a, volume);
    if (!at)
        return err_set(e, -ERR_NOT_FOUND, "volume '%s' is not attached here", volume);
    at->users++;
    describe(at, ret);
    if (at->phase != ATTACHMENT_ATTACHED || !ask_attached(at, ret_abnormal, ret)) {
        describe(at, ret);
        *ret_abnormal = at->phase == ATTACHMENT_FAILED ||
                        (at->phase == ATTACHMENT_RECOVERING &&
                         env_now_us(a->env) - at->phase_since_us >= RECOVERING_NORMAL_US);
    }
    attachment_put(at);
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
