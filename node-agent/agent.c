/* The agent: the table of attachments, start and end. The calls are in calls.c; what an attachment
 * goes through is in attachment.c (its life), daemon_life.c, recover.c and take_down.c. */
#include "node-agent/agent.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "node-agent/agent_internal.h"

enum {
    STOP_US = 5 * 1000 * 1000, /* for attachments to let go */
    UPGRADE_AT_START_US = 120 * 1000 * 1000,
};

/* --- the table --- */

struct attachment *agent_find(struct agent *a, const char *volume) {
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        if (strcmp(at->state.volume, volume) == 0)
            return at;
    }
    return NULL;
}

void attachment_put(struct attachment *at) {
    CHECK(at->users > 0);
    if (--at->users)
        return;
    daemon_free(at->daemon);
    attach_link_close(&at->link);
    pool_config_release(&at->pool);
    free(at);
}

static void count_phases(struct agent *a) {
    int64_t counts[ATTACHMENT_GONE + 1] = {0}, of_backend[AGENT_BACKENDS_MAX] = {0};
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        counts[at->phase]++;
        for (size_t i = 0; i < a->config.backend_count; i++)
            of_backend[i] += a->config.backends[i].backend == at->backend;
    }
    metrics_gauge_set(&a->attached, counts[ATTACHMENT_ATTACHED]);
    metrics_gauge_set(&a->recovering, counts[ATTACHMENT_RECOVERING]);
    metrics_gauge_set(&a->failed, counts[ATTACHMENT_FAILED]);
    for (size_t i = 0; i < a->config.backend_count; i++)
        metrics_gauge_set(&a->of_backend[i], of_backend[i]);
}

void attachment_set_phase(struct attachment *at, enum attachment_phase phase) {
    at->phase = phase;
    at->phase_since_us = env_now_us(at->agent->env);
    count_phases(at->agent);
    waitq_wake_all(&at->changed);
}

struct daemon_address attachment_address(const struct attachment *at, uint64_t limit_us) {
    return (struct daemon_address){.env = at->agent->env,
                                   .run_dir = at->agent->config.run_dir,
                                   .volume = at->state.volume,
                                   .limit_us = limit_us};
}

struct attach_backend *agent_find_backend(struct agent *a, const char *name) {
    for (size_t i = 0; i < a->config.backend_count; i++) {
        struct attach_backend *b = a->config.backends[i].backend;
        if (b && (!name || !name[0] || strcmp(b->ops->name, name) == 0))
            return b;
    }
    return NULL;
}

struct attachment *attachment_new(struct agent *a, const struct attach_state *state,
                                  struct attach_backend *backend) {
    struct attachment *at = NEW(struct attachment);
    at->agent = a;
    at->backend = backend;
    at->state = *state;
    at->link = ATTACH_LINK_NONE;
    at->users = 1;
    at->phase_since_us = env_now_us(a->env);
    waitq_init(&at->events);
    waitq_init(&at->changed);
    list_push_back(&a->attachments, &at->node);
    a->count++;
    return at;
}

void attachment_ended(struct attachment *at) {
    struct agent *a = at->agent;
    list_remove(&at->node);
    a->count--;
    count_phases(a);
    if (at->phase != ATTACHMENT_GONE)
        err_set_text(&at->why, -ERR_SHUTDOWN, "the agent stops");
    waitq_wake_all(&at->changed);
    waitq_wake_all(&a->ended);
    attachment_put(at);
}

size_t agent_count(const struct agent *a) {
    return a->count;
}

const struct agent_config *agent_config(const struct agent *a) {
    return &a->config;
}

const char *agent_default_backend(const struct agent_config *c) {
    for (size_t i = 0; i < c->backend_count; i++)
        if (c->backends[i].backend)
            return c->backends[i].name;
    return "";
}

/* --- helpers: fibers that are no attachment's --- */

struct drain_one {
    struct agent *a;
    char volume[ID_MAX];
    uint64_t limit_us;
};

static void drain_fiber(void *arg) {
    struct drain_one *d = arg;
    struct err e;
    if (agent_detach(d->a, d->volume, false, d->limit_us, &e) < 0)
        log_warn("a volume stays attached", LOG_STR("volume", d->volume), LOG_ERR(&e));
    free(d);
}

void agent_drain(struct agent *a, uint64_t limit_us) {
    struct fiber_group group;
    fiber_group_init(&group, a->env);
    list_for_each (&a->attachments, n) {
        struct drain_one *d = NEW(struct drain_one);
        *d = (struct drain_one){.a = a, .limit_us = limit_us};
        memcpy(d->volume, list_entry(n, struct attachment, node)->state.volume, sizeof d->volume);
        fiber_group_start(&group, drain_fiber, d);
    }
    fiber_group_wait(&group);
}

static struct attachment *find_outdated(struct agent *a) {
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        if (at->outdated && at->phase == ATTACHMENT_ATTACHED)
            return at;
    }
    return NULL;
}

/* Each daemon of another version once, one after the other: a bad program holds up one volume. */
static void upgrade_fiber(void *arg) {
    struct agent *a = arg;
    while (!a->stopping) {
        struct attachment *at = find_outdated(a);
        if (!at) {
            if (waitq_wait(a->env, &a->outdated) < 0)
                break;
            continue;
        }
        char volume[ID_MAX];
        uint64_t pause_us;
        memcpy(volume, at->state.volume, sizeof volume);
        at->outdated = false;
        struct err e;
        if (agent_upgrade(a, volume, UPGRADE_AT_START_US, &pause_us, &e) < 0)
            log_warn("a daemon of another version stays", LOG_STR("volume", volume), LOG_ERR(&e));
    }
    a->helpers--;
    waitq_wake_all(&a->ended);
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
        struct attach_backend *b = a->config.backends[i].backend;
        if (b)
            w->rc = b->ops->discover(b, &w->devices[i], &w->e);
    }
}

static void adopt_state(struct agent *a, const struct attach_state *state,
                        const struct attach_devices *devices) {
    struct attach_backend *backend = agent_find_backend(a, state->backend);
    if (!backend) {
        log_error("an attachment's backend is not there any more; it is left alone",
                  LOG_STR("volume", state->volume), LOG_STR("backend", state->backend));
        return;
    }
    struct attachment *at = attachment_new(a, state, backend);
    at->adopt = true;
    for (size_t i = 0; i < a->config.backend_count; i++) {
        const struct attach_device *d = attach_devices_find(&devices[i], state->volume);
        if (a->config.backends[i].backend == backend && d)
            at->device = *d;
    }
    attachment_run(at);
}

/* A device that no attach file names: somebody deleted the file. Without a daemon of ours it can
 * only be taken away. */
static void adopt_orphan(struct agent *a, struct attach_backend *backend,
                         const struct attach_device *d) {
    struct attach_state state = {.journal_memory = true};
    struct parsed_id id;
    if (agent_find(a, d->volume) || id_parse(&id, d->volume, NULL) < 0)
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

static void register_backends(struct agent *a) {
    for (size_t i = 0; i < a->config.backend_count; i++) {
        const struct agent_backend *b = &a->config.backends[i];
        const struct metrics_label *label = METRICS_LABELS({"backend", b->name});
        metrics_gauge_set(&a->usable[i], b->backend != NULL);
        metrics_gauge_register(
            a->metrics, &a->usable[i], "portalbd_agent_backend", "Ways to make devices.",
            METRICS_LABELS({"backend", b->name}, {"usable", b->backend ? "yes" : "no"}));
        metrics_gauge_register(a->metrics, &a->of_backend[i], "portalbd_agent_backend_attachments",
                               "Volumes by the way their device is made.", label);
    }
}

static void register_metrics(struct agent *a) {
    static const char states[] = "Volumes by the state of their device.";
    a->metrics = metrics_group_new(a->config.metrics, NULL);
    metrics_gauge_register(a->metrics, &a->attached, "portalbd_agent_attachments", states,
                           METRICS_LABELS({"state", "attached"}));
    metrics_gauge_register(a->metrics, &a->recovering, "portalbd_agent_attachments", states,
                           METRICS_LABELS({"state", "recovering"}));
    metrics_gauge_register(a->metrics, &a->failed, "portalbd_agent_attachments", states,
                           METRICS_LABELS({"state", "failed"}));
    metrics_counter_register(a->metrics, &a->deaths, "portalbd_agent_daemon_deaths_total",
                             "Daemons that ended while their device was there.", NULL);
    metrics_counter_register(a->metrics, &a->restarts, "portalbd_agent_daemon_restarts_total",
                             "Daemons that took the place of another.", NULL);
    metrics_counter_register(a->metrics, &a->upgrades, "portalbd_agent_upgrades_total",
                             "Daemons that handed over to the next version.", NULL);
    metrics_results_register(a->metrics, &a->attach_results, "portalbd_agent_attaches_total",
                             "Attempts to attach a volume, by result.", NULL);
    metrics_results_register(a->metrics, &a->detach_results, "portalbd_agent_detaches_total",
                             "Attempts to detach a volume, by result.", NULL);
    register_backends(a);
}

static void agent_free(struct agent *a) {
    metrics_group_free(a->metrics);
    if (a->state)
        state_close(a->state);
    free(a);
}

static void go_on(struct agent *a, const struct start_work *w) {
    for (size_t i = 0; i < w->states.count; i++)
        adopt_state(a, &w->states.items[i], w->devices);
    for (size_t b = 0; b < a->config.backend_count; b++)
        for (size_t i = 0; i < w->devices[b].count; i++)
            adopt_orphan(a, a->config.backends[b].backend, &w->devices[b].items[i]);
    if (a->config.upgrade) {
        a->helpers++;
        fiber_start(a->env, upgrade_fiber, a);
    }
}

int agent_start(const struct agent_config *config, struct agent **ret, struct err *e) {
    CHECK(config->backend_count >= 1 && config->backend_count <= AGENT_BACKENDS_MAX);
    struct agent *a = NEW(struct agent);
    a->config = *config;
    a->env = loop_env(config->loop);
    list_init(&a->attachments);
    waitq_init(&a->ended);
    waitq_init(&a->outdated);
    register_metrics(a);
    struct start_work w = {.a = a};
    fiber_run_job(a->env, start_work, &w);
    if (w.rc == 0) {
        go_on(a, &w);
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
    waitq_wake_all(&a->outdated);
    list_for_each (&a->attachments, n) {
        struct attachment *at = list_entry(n, struct attachment, node);
        waitq_wake_all(&at->events);
        waitq_wake_all(&at->changed);
    }
}

int agent_stop(struct agent *a, struct err *e) {
    agent_interrupt(a);
    uint64_t deadline = env_now_us(a->env) + STOP_US;
    while (a->count || a->helpers) {
        uint64_t now = env_now_us(a->env);
        if (now >= deadline || waitq_wait_for(a->env, &a->ended, deadline - now) < 0)
            return err_set(e, -ERR_TIMEOUT, "%zu devices do not answer", a->count);
    }
    agent_free(a);
    return 0;
}
