/* The kubelet's plugin registration (k8s.io/kubelet, pluginregistration.v1), on a server of its
 * own, so that it neither waits for volumes nor takes a worker from them. */
#include "csi/registration.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/log.h"
#include "common/mem.h"
#include "csi/driver.h"
#include "csi/rpc/registration_service.h"

enum { REFUSAL_MAX = 512, STOP_GRACE_MS = 500, STOP_STUCK_MS = 10000 };

struct registration {
    struct rpc_server *server;
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
        log_error("the kubelet does not register the driver; it will ask again",
                  LOG_STR("endpoint", r->endpoint), LOG_STR("reason", request->error));
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
    free(r->endpoint);
    free(r);
}

int registration_start(const struct registration_config *config, struct registration **ret,
                       struct err *e) {
    struct registration *r = NEW(struct registration);
    pthread_mutex_init(&r->mutex, NULL);
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
