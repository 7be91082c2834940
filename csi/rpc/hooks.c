/* The hooks that write a line of log for each call. */
#include <string.h>

#include "common/buf.h"
#include "common/log.h"
#include "csi/rpc/rpc.h"

enum { REQUEST_TEXT_MAX = 1000 }; /* bytes of a request in the log */

/* Probe, Get..., List..., Validate...: what only asks is not worth a line when it succeeds. */
static bool only_asks(const char *path) {
    static const char *const prefixes[] = {"Probe", "Get", "ControllerGet", "NodeGet",
                                           "ListAttach"};
    const char *method = strrchr(path, '/') + 1;
    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++)
        if (strncmp(method, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    return false;
}

static void log_started(void *arg, const struct rpc_call *call) {
    (void)arg;
    log_debug("call begins", LOG_STR("method", rpc_call_method(call)));
}

static void log_done(void *arg, const struct rpc_call *call, const struct rpc_outcome *o) {
    (void)arg;
    const char *path = rpc_call_method(call);
    bool quiet = o->error->code == 0 && only_asks(path);
    if (!log_enabled(quiet ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO))
        return;
    CLEANUP_BUF struct buf text = {0};
    if (o->request)
        rpc_dump(&text, o->request, REQUEST_TEXT_MAX);
    uint64_t ms = o->duration_us / 1000;
    if (quiet)
        log_debug("call done", LOG_STR("method", path), LOG_U64("ms", ms),
                  LOG_VIEW("request", buf_view(&text)));
    else if (o->error->code == 0)
        log_info("call done", LOG_STR("method", path), LOG_U64("ms", ms),
                 LOG_VIEW("request", buf_view(&text)));
    else
        log_warn("call failed, the caller was told", LOG_STR("method", path), LOG_U64("ms", ms),
                 LOG_ERR(o->error), LOG_VIEW("request", buf_view(&text)));
}

const struct rpc_hooks rpc_log_hooks = {.started = log_started, .done = log_done};
