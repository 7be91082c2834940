/* The verbs of the agent's control socket. Each waits like a call of agent.proto does, in the fiber
 * that the control server gives it. */
#include "node-agent/agent_control.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/control/client.h"

enum {
    PAGE_MAX = 48, /* devices in an answer: a line has 64 KiB */
    WAIT_MS_MAX = 24 * 3600 * 1000,
};

struct agent_control {
    struct agent *agent;
    uint64_t wait_us;
    struct control_server *server;
};

/* --- arguments --- */

static int optional_u64(const json_t *args, const char *name, uint64_t *ret, struct err *e) {
    return json_object_get(args, name) ? control_arg_u64(args, name, ret, e) : 0;
}

static int optional_bool(const json_t *args, const char *name, bool *ret, struct err *e) {
    const json_t *value = json_object_get(args, name);
    if (value && !json_is_boolean(value))
        return err_set(e, -ERR_INVALID, "%s is true or false", name);
    *ret = json_is_true(value);
    return 0;
}

static int wait_of(const struct agent_control *c, const json_t *args, uint64_t *ret_us,
                   struct err *e) {
    uint64_t wait_ms = c->wait_us / 1000;
    int rc = optional_u64(args, "wait_ms", &wait_ms, e);
    if (rc == 0 && wait_ms > WAIT_MS_MAX)
        rc = err_set(e, -ERR_INVALID, "wait_ms is at most %d", WAIT_MS_MAX);
    *ret_us = wait_ms * 1000;
    return rc;
}

/* --- verbs --- */

/* Somebody who asks for it here hears that there is none. */
static int take_disk_cache(const struct agent_control *c, const json_t *args,
                           struct agent_attach *req, struct err *e) {
    int rc = optional_u64(args, "disk_cache_bytes", &req->disk_cache_bytes, e);
    if (rc == 0)
        rc = optional_bool(args, "no_disk_cache", &req->no_disk_cache, e);
    if (rc == 0 && req->disk_cache_bytes && !agent_config(c->agent)->disk_cache)
        rc = err_set(e, -ERR_INVALID,
                     "this node has no disk cache; node-agent --disk-cache DIR gives it one");
    return rc;
}

static int on_attach(struct agent_control *c, const json_t *args, json_t **ret, struct err *e) {
    struct agent_attach req = {.backend = json_string_value(json_object_get(args, "backend"))};
    struct attachment_info info;
    uint64_t wait_us;
    int rc = control_arg_string(args, "volume", &req.volume, e);
    if (rc == 0)
        rc = control_arg_u64(args, "publish_epoch", &req.publish_epoch, e);
    if (rc == 0)
        rc = optional_bool(args, "read_only", &req.read_only, e);
    if (rc == 0)
        rc = optional_u64(args, "cache_bytes", &req.cache_bytes, e);
    if (rc == 0)
        rc = optional_u64(args, "journal_bytes", &req.journal_bytes, e);
    if (rc == 0)
        rc = take_disk_cache(c, args, &req, e);
    if (rc == 0)
        rc = wait_of(c, args, &wait_us, e);
    if (rc == 0)
        rc = agent_attach(c->agent, &req, wait_us, &info, e);
    if (rc < 0)
        return rc;
    *ret = json_pack("{s:s,s:I,s:s}", "device", info.device, "size_bytes",
                     (json_int_t)info.size_bytes, "backend", info.backend);
    return 0;
}

static int on_detach(struct agent_control *c, const json_t *args, json_t **ret, struct err *e) {
    const char *volume;
    bool force = false;
    uint64_t wait_us;
    int rc = control_arg_string(args, "volume", &volume, e);
    if (rc == 0)
        rc = optional_bool(args, "force", &force, e);
    if (rc == 0)
        rc = wait_of(c, args, &wait_us, e);
    if (rc == 0)
        rc = agent_detach(c->agent, volume, force, wait_us, e);
    if (rc == 0)
        *ret = json_object();
    return rc;
}

static int on_grow(struct agent_control *c, const json_t *args, json_t **ret, struct err *e) {
    const char *volume;
    uint64_t wait_us, size_bytes;
    int rc = control_arg_string(args, "volume", &volume, e);
    if (rc == 0)
        rc = control_arg_u64(args, "size_bytes", &size_bytes, e);
    if (rc == 0)
        rc = wait_of(c, args, &wait_us, e);
    if (rc == 0)
        rc = agent_grow(c->agent, volume, size_bytes, wait_us, &size_bytes, e);
    if (rc == 0)
        *ret = json_pack("{s:I}", "size_bytes", (json_int_t)size_bytes);
    return rc;
}

static int on_upgrade(struct agent_control *c, const json_t *args, json_t **ret, struct err *e) {
    const char *volume;
    uint64_t wait_us, pause_us = 0;
    int rc = control_arg_string(args, "volume", &volume, e);
    if (rc == 0)
        rc = wait_of(c, args, &wait_us, e);
    if (rc == 0)
        rc = agent_upgrade(c->agent, volume, wait_us, &pause_us, e);
    if (rc == 0)
        *ret = json_pack("{s:I}", "pause_ms", (json_int_t)(pause_us / 1000));
    return rc;
}

static int by_volume(const void *a, const void *b) {
    const struct attachment_info *x = a, *y = b;
    return strcmp(x->volume, y->volume);
}

static json_t *row_of(const struct attachment_info *i) {
    return json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:b,s:I,s:I,s:s}", "volume", i->volume, "state",
                     attachment_phase_name(i->phase), "device", i->device, "backend", i->backend,
                     "publish_epoch", (json_int_t)i->publish_epoch, "size_bytes",
                     (json_int_t)i->size_bytes, "read_only", i->read_only, "daemon_pid",
                     (json_int_t)i->daemon_pid, "restarts", (json_int_t)i->restarts, "message",
                     i->message);
}

static int on_devices(struct agent_control *c, const json_t *args, json_t **ret, struct err *e) {
    (void)e;
    const char *after = json_string_value(json_object_get(args, "after"));
    CLEANUP_FREE struct attachment_info *items =
        xcalloc(AGENT_ATTACHMENTS_MAX, sizeof(struct attachment_info));
    size_t count = agent_list(c->agent, items, AGENT_ATTACHMENTS_MAX), i = 0;
    qsort(items, count, sizeof *items, by_volume);
    while (after && i < count && strcmp(items[i].volume, after) <= 0)
        i++;
    json_t *rows = json_array();
    size_t end = MIN(count, i + PAGE_MAX);
    bool more = end < count;
    for (; i < end; i++) {
        json_t *row = row_of(&items[i]);
        if (row) /* else a text that is not UTF-8 */
            json_array_append_new(rows, row);
    }
    *ret = json_pack("{s:o,s:s}", "devices", rows, "next", more ? items[end - 1].volume : "");
    return 0;
}

static int on_info(struct agent_control *c, const json_t *args, json_t **ret, struct err *e) {
    (void)args, (void)e;
    const struct agent_config *config = agent_config(c->agent);
    json_t *backends = json_array();
    for (size_t i = 0; i < config->backend_count; i++) {
        const struct agent_backend *b = &config->backends[i];
        json_array_append_new(backends, json_pack("{s:s,s:b,s:s}", "name", b->name, "usable",
                                                  b->backend != NULL, "note", b->note));
    }
    *ret = json_pack("{s:s,s:s,s:i,s:s,s:o,s:s}", "version", config->version, "node_id",
                     config->node_id, "pid", (int)getpid(), "pools", config->pools_path, "backends",
                     backends, "default_backend", agent_default_backend(config));
    return 0;
}

static const struct {
    const char *name;
    int (*run)(struct agent_control *c, const json_t *args, json_t **ret, struct err *e);
} verbs[] = {
    {"attach", on_attach},   {"detach", on_detach}, {"devices", on_devices},
    {"upgrade", on_upgrade}, {"grow", on_grow},     {"info", on_info},
};

static int handle(void *arg, const char *verb, const json_t *args, json_t **ret_result, int *ret_fd,
                  struct err *e) {
    (void)ret_fd;
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
        if (strcmp(verbs[i].name, verb) == 0)
            return verbs[i].run(arg, args, ret_result, e);
    return err_set(e, -ERR_UNSUPPORTED, "no verb '%s'", verb);
}

/* --- life --- */

int agent_control_start(struct agent *agent, uint64_t wait_us, struct agent_control **ret,
                        struct err *e) {
    const struct agent_config *config = agent_config(agent);
    struct agent_control *c = NEW(struct agent_control);
    c->agent = agent;
    c->wait_us = wait_us;
    int rc = control_server_start(&(struct control_server_config){.loop = config->loop,
                                                                  .run_dir = config->run_dir,
                                                                  .volume = CONTROL_AGENT_NAME,
                                                                  .handle = handle,
                                                                  .arg = c},
                                  &c->server, e);
    if (rc < 0) {
        free(c);
        return rc;
    }
    *ret = c;
    return 0;
}

void agent_control_stop(struct agent_control *c) {
    if (!c)
        return;
    control_server_stop(c->server);
    free(c);
}
