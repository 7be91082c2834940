/* The agent's questions to a daemon, over portalbd/control: blocking calls, each in a job. */
#include "node-agent/daemon_control.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "portalbd/control/client.h"

struct question {
    const struct daemon_address *to;
    const char *verb;
    json_t *args; /* owned by the caller; may be NULL */
    bool wants_fd;
    json_t *result; /* owned by the caller once rc is 0 */
    int fd;         /* owned by the caller; -1: none */
    int rc;
    struct err e;
};

static void ask_job(void *arg) {
    struct question *q = arg;
    const struct daemon_address *to = q->to;
    q->rc = q->wants_fd ? control_call_fd(to->run_dir, to->volume, q->verb, q->args, to->limit_us,
                                          &q->result, &q->fd, &q->e)
                        : control_call(to->run_dir, to->volume, q->verb, q->args, to->limit_us,
                                       &q->result, &q->e);
}

static int ask(struct question *q, struct err *e) {
    q->fd = -1;
    fiber_run_job(q->to->env, ask_job, q);
    if (q->rc == 0)
        return 0;
    if (q->rc == -ERR_NOT_FOUND) /* not the volume: its daemon */
        return err_set(e, -ERR_TRANSIENT, "no daemon answers for volume '%s'", q->to->volume);
    return err_copy(e, &q->e);
}

int daemon_control_grow(const struct daemon_address *to, uint64_t size_bytes,
                        uint64_t *ret_size_bytes, struct err *e) {
    if (size_bytes > INT64_MAX)
        return err_set(e, -ERR_INVALID, "%llu bytes are beyond any volume",
                       (unsigned long long)size_bytes);
    struct question q = {
        .to = to, .verb = "grow", .args = json_pack("{s:I}", "size_bytes", (json_int_t)size_bytes)};
    int rc = ask(&q, e);
    json_decref(q.args);
    if (rc < 0)
        return rc;
    rc = control_arg_u64(q.result, "size_bytes", ret_size_bytes, e);
    json_decref(q.result);
    return rc < 0 ? err_wrap(e, "the daemon's answer to grow") : 0;
}

static const char *text_of(const json_t *result, const char *name, const char *otherwise) {
    const char *text = json_string_value(json_object_get(result, name));
    return text && text[0] ? text : otherwise;
}

int daemon_control_status(const struct daemon_address *to, struct daemon_status *ret,
                          struct err *e) {
    struct question q = {.to = to, .verb = "status"};
    int rc = ask(&q, e);
    if (rc < 0)
        return rc;
    *ret = (struct daemon_status){0};
    const char *health = text_of(q.result, "health", "unknown health");
    ret->healthy = strcmp(health, "ok") == 0;
    if (ret->healthy)
        snprintf(ret->health, sizeof ret->health, "ok");
    else
        snprintf(ret->health, sizeof ret->health, "%s: %s", health,
                 text_of(q.result, "why", "no reason given"));
    snprintf(ret->unsaved, sizeof ret->unsaved, "%s", text_of(q.result, "unsaved", ""));
    ret->pid = json_integer_value(json_object_get(q.result, "pid")); /* 0: it does not say */
    snprintf(ret->version, sizeof ret->version, "%s", text_of(q.result, "version", ""));
    json_decref(q.result);
    return 0;
}

static int take_fd(const struct daemon_address *to, const char *verb, int *ret_fd, struct err *e) {
    struct question q = {.to = to, .verb = verb, .wants_fd = true};
    int rc = ask(&q, e);
    if (rc < 0)
        return rc;
    json_decref(q.result);
    if (q.fd < 0)
        return err_set(e, -ERR_CORRUPT, "the daemon's answer to %s has no descriptor", verb);
    *ret_fd = q.fd;
    return 0;
}

int daemon_control_device(const struct daemon_address *to, int *ret_fd, struct err *e) {
    return take_fd(to, "device", ret_fd, e);
}

int daemon_control_handover(const struct daemon_address *to, int *ret_fd, struct err *e) {
    return take_fd(to, "handover", ret_fd, e);
}

int daemon_control_shutdown(const struct daemon_address *to, struct err *e) {
    struct question q = {.to = to, .verb = "shutdown"};
    int rc = ask(&q, e);
    if (rc == 0)
        json_decref(q.result);
    return rc;
}
