/* The agent's questions to a daemon, over portalbd/control: blocking calls, each in a job. */
#include "node-agent/daemon_control.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "portalbd/control/client.h"

struct question {
    const char *run_dir, *volume, *verb;
    json_t *args; /* owned by the caller; may be NULL */
    uint64_t limit_us;
    json_t *result; /* owned by the caller once rc is 0 */
    int rc;
    struct err e;
};

static void ask_job(void *arg) {
    struct question *q = arg;
    q->rc = control_call(q->run_dir, q->volume, q->verb, q->args, q->limit_us, &q->result, &q->e);
}

static int ask(struct env *env, struct question *q, struct err *e) {
    fiber_run_job(env, ask_job, q);
    if (q->rc == 0)
        return 0;
    if (q->rc == -ERR_NOT_FOUND) /* not the volume: its daemon */
        return err_set(e, -ERR_TRANSIENT, "no daemon answers for volume '%s'", q->volume);
    return err_copy(e, &q->e);
}

int daemon_control_grow(struct env *env, const char *run_dir, const char *volume,
                        uint64_t size_bytes, uint64_t limit_us, uint64_t *ret_size_bytes,
                        struct err *e) {
    if (size_bytes > INT64_MAX)
        return err_set(e, -ERR_INVALID, "%llu bytes are beyond any volume",
                       (unsigned long long)size_bytes);
    struct question q = {.run_dir = run_dir,
                         .volume = volume,
                         .verb = "grow",
                         .args = json_pack("{s:I}", "size_bytes", (json_int_t)size_bytes),
                         .limit_us = limit_us};
    int rc = ask(env, &q, e);
    json_decref(q.args);
    if (rc < 0)
        return rc;
    rc = control_arg_u64(q.result, "size_bytes", ret_size_bytes, e);
    json_decref(q.result);
    return rc < 0 ? err_wrap(e, "the daemon's answer to grow") : 0;
}

int daemon_control_health(struct env *env, const char *run_dir, const char *volume,
                          uint64_t limit_us, bool *ret_healthy, char *text, size_t text_size,
                          struct err *e) {
    struct question q = {
        .run_dir = run_dir, .volume = volume, .verb = "status", .limit_us = limit_us};
    int rc = ask(env, &q, e);
    if (rc < 0)
        return rc;
    const char *health = json_string_value(json_object_get(q.result, "health"));
    const char *why = json_string_value(json_object_get(q.result, "why"));
    *ret_healthy = health && strcmp(health, "ok") == 0;
    if (*ret_healthy)
        snprintf(text, text_size, "ok");
    else
        snprintf(text, text_size, "%s: %s", health ? health : "unknown health",
                 why && why[0] ? why : "no reason given");
    json_decref(q.result);
    return 0;
}

int daemon_control_shutdown(struct env *env, const char *run_dir, const char *volume,
                            uint64_t limit_us, struct err *e) {
    struct question q = {
        .run_dir = run_dir, .volume = volume, .verb = "shutdown", .limit_us = limit_us};
    int rc = ask(env, &q, e);
    if (rc == 0)
        json_decref(q.result);
    return rc;
}
