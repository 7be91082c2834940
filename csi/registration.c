/* The kubelet's plugin registration (k8s.io/kubelet, pluginregistration.v1), on a server of its
 * own, so that it neither waits for volumes nor takes a worker from them. */
#include "csi/registration.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "csi/driver.h"
#include "csi/rpc/endpoint.h"
#include "csi/rpc/registration_service.h"

enum { REFUSAL_MAX = 512, STOP_GRACE_MS = 500, STOP_STUCK_MS = 10000 };

struct registration {
    struct rpc_server *server;
    char *socket; /* as a path */
    char *endpoint;
    struct metrics_group *metrics;
    struct metrics_gauge registered;
    pthread_mutex_t mutex;     /* guards the rest: no I/O under it */
    char refusal[REFUSAL_MAX]; /* "": none */
};

static int get_info(struct rpc_call *call, const Pluginregistration__InfoRequest *request,
                    Pluginregistration__PluginInfo *response, struct err *e) {
    const struct registration *r = rpc_call_user(call);
    (void)request, (void)e;
    response->type = (char *)"CSIPlugin";
    response->name = (char *)CSI_DRIVER_NAME;
    response->endpoint = r->endpoint;
    response->n_supported_versions = 1;
    response->supported_versions = rpc_alloc(call, sizeof(char *));
    if (response->supported_versions)
        response->supported_versions[0] = (char *)"1.0.0";
    return 0;
}

/* A kubelet that refused a driver keeps it in its books and never asks again, until something
 * appears in its folder: so the socket goes and comes. The name in between is one that it ignores.
 * Refusals come at the kubelet's own pace, which backs off. */
static void ask_again(const struct registration *r) {
    const char *name = strrchr(r->socket, '/');
    size_t dir_len = name ? (size_t)(name + 1 - r->socket) : 0;
    char *hidden = xasprintf("%.*s.%s", (int)dir_len, r->socket, r->socket + dir_len);
    if (rename(r->socket, hidden) < 0 || rename(hidden, r->socket) < 0)
        log_error("the registration socket cannot be shown again", LOG_STR("socket", r->socket),
                  LOG_STR("error", strerror(errno)));
    free(hidden);
}

static int notified(struct rpc_call *call, const Pluginregistration__RegistrationStatus *request,
                    Pluginregistration__RegistrationStatusResponse *response, struct err *e) {
    struct registration *r = rpc_call_user(call);
    (void)response, (void)e;
    bool ok = request->plugin_registered;
    pthread_mutex_lock(&r->mutex);
    snprintf(r->refusal, sizeof r->refusal, "%s",
             ok                  ? ""
             : request->error[0] ? request->error
                                 : "the kubelet gave no reason");
    pthread_mutex_unlock(&r->mutex);
    metrics_gauge_set(&r->registered, ok);
    if (ok)
        log_info("the kubelet registered the driver", LOG_STR("endpoint", r->endpoint));
    else
        log_error("the kubelet does not register the driver; it is made to ask again",
                  LOG_STR("endpoint", r->endpoint), LOG_STR("reason", request->error));
    if (!ok)
        ask_again(r);
    return 0;
}

static const struct registration_ops registration_ops = {.get_info = get_info,
                                                         .notify_registration_status = notified};

void registration_free(struct registration *r) {
    if (!r)
        return;
    rpc_server_free(r->server);
    metrics_group_free(r->metrics);
    pthread_mutex_destroy(&r->mutex);
    free(r->socket);
    free(r->endpoint);
    free(r);
}

int registration_start(const struct registration_config *config, struct registration **ret,
                       struct err *e) {
    const char *path;
    if (endpoint_path(config->socket, &path, e) < 0)
        return err_wrap(e, "the kubelet's registration socket");
    struct registration *r = NEW(struct registration);
    pthread_mutex_init(&r->mutex, NULL);
    r->socket = xstrdup(path);
    r->endpoint = xstrdup(config->endpoint);
    r->metrics = metrics_group_new(config->metrics, NULL);
    metrics_gauge_register(r->metrics, &r->registered, "portalbd_csi_registered",
                           "1 once the kubelet has registered the driver.", NULL);
    r->server =
        rpc_server_new(&(struct rpc_server_config){.endpoint = config->socket, .workers = 1});
    rpc_server_add_registration(r->server, &registration_ops, r);
    int rc = rpc_server_start(r->server, e);
    if (rc < 0) {
        registration_free(r);
        return err_wrap(e, "the kubelet's registration socket");
    }
    log_info("waiting for the kubelet to register the driver", LOG_STR("socket", config->socket),
             LOG_STR("endpoint", config->endpoint));
    *ret = r;
    return 0;
}

void registration_stop(struct registration *r) {
    if (!r)
        return;
    struct err e;
    int rc = rpc_server_stop(r->server, STOP_GRACE_MS, STOP_STUCK_MS, &e);
    CHECK(rc == 0); /* its handlers do not block */
}

bool registration_refused(struct registration *r, char *text, size_t size) {
    pthread_mutex_lock(&r->mutex);
    bool refused = r->refusal[0] != '\0';
    snprintf(text, size, "%s", r->refusal);
    pthread_mutex_unlock(&r->mutex);
    return refused;
}
