/* portalbd-csi: the CSI driver's program. Wiring and life cycle only.
 *
 * Threads: main waits for signals; the rpc server's own (csi/rpc/server.c); with the controller
 * service `catalog`, the loop on which everything that touches a pool runs, and its workers; with
 * /metrics the http server's. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/http.h"
#include "common/log.h"
#include "common/loop.h"
#include "common/mem.h"
#include "common/options.h"
#include "csi/driver.h"
#include "csi/housekeeping.h"
#include "csi/mount/run.h"
#include "csi/registration.h"
#include "csi/rpc/endpoint.h"

enum {
    LOOP_WORKERS = 4,
    STUCK_MS = 2000,     /* after the grace time, for handlers to notice */
    KILLED_WAIT_MS = 300 /* for programs that were told to end */
};

enum mode { MODE_CONTROLLER, MODE_NODE, MODE_ALL };
static const char *const mode_names[] = {"controller", "node", "all", NULL};

struct config {
    char *endpoint;
    int mode;
    char *pools;
    char *cluster_id;
    char *agent;
    char *registration_socket;
    char *kubelet_endpoint;
    uint64_t volumes_max;
    uint64_t workers;
    uint64_t grace_us;
    char *http_address;
    uint64_t http_port;
    int log_level;
    int log_format;
};

static const struct option_spec options[] = {
    {"endpoint", OPTION_STRING, offsetof(struct config, endpoint), .env = "CSI_ENDPOINT",
     .def = "unix:///csi/csi.sock", .group = "Driver", .help = "The unix socket to serve CSI on."},
    {"mode", OPTION_ENUM, offsetof(struct config, mode), .def = "all", .choices = mode_names,
     .help = "Which services to offer: controller (next to Kubernetes' sidecars), node (on every "
             "node), or all."},
    {"workers", OPTION_U64, offsetof(struct config, workers), .def = "16", .min = 1, .max = 256,
     .help = "Calls that run at the same time."},
    {"grace", OPTION_DURATION, offsetof(struct config, grace_us), .def = "20s",
     .max = UINT64_C(600) * 1000 * 1000, .help = "How long calls may go on after SIGTERM."},
    {"pools", OPTION_STRING, offsetof(struct config, pools), .def = "/etc/portalbd/pools.conf",
     .group = "Controller", .arg = "FILE", .help = "The pool file; read again when it changes."},
    {"cluster-id", OPTION_STRING, offsetof(struct config, cluster_id),
     .help = "Name of this cluster: a pool that belongs to another one is refused."},
    {"agent", OPTION_STRING, offsetof(struct config, agent),
     .def = "unix:///run/portalbd/agent.sock", .group = "Node", .help = "The node agent's socket."},
    {"volumes-max", OPTION_U64, offsetof(struct config, volumes_max), .def = "64", .max = 65536,
     .help = "Volumes that Kubernetes may put on this node; 0: any number."},
    {"registration-socket", OPTION_STRING, offsetof(struct config, registration_socket),
     .arg = "FILE",
     .help = "A socket in the kubelet's folder plugins_registry, on which it learns of this "
             "driver; without it: somebody else registers the driver, or nobody."},
    {"kubelet-endpoint", OPTION_STRING, offsetof(struct config, kubelet_endpoint), .arg = "FILE",
     .help = "The CSI socket's path as the kubelet sees it; without it: the path of --endpoint."},
    {"http-address", OPTION_STRING, offsetof(struct config, http_address), .group = "Observation",
     .arg = "ADDRESS", .help = "Serve /metrics and /healthz at this IP address; without it: not."},
    {"http-port", OPTION_U64, offsetof(struct config, http_port), .def = "9811", .max = 65535,
     .help = "... and this port; 0: the kernel chooses, and the log says which."},
    {"log-level", OPTION_ENUM, offsetof(struct config, log_level), .def = "info",
     .choices = log_level_names, .help = "The least important lines to print."},
    {"log-format", OPTION_ENUM, offsetof(struct config, log_format), .def = "logfmt",
     .choices = log_format_names, .help = "How lines of the log look."},
    {0}};

static const struct option_program program = {
    .name = "portalbd-csi",
    .summary = "the Container Storage Interface of portalbd",
    .description =
        "Serves CSI: the controller service creates, publishes, snapshots and grows volumes in the "
        "pools' records on the object store; the node service attaches them through the node "
        "agent, "
        "formats, mounts and grows them.\n\n"
        "It keeps no state, and may be restarted at any time.",
    .env_prefix = "PORTALBD_",
    .options = options,
};

struct driver {
    struct config config;
    struct metrics *metrics;
    struct oplocks *locks;
    struct loop *loop; /* controller only, as are the next three */
    struct pools *pools;
    struct housekeeping *housekeeping;
    struct rpc_client *agent;                    /* node only */
    _Atomic(struct registration *) registration; /* node only, if asked for; read by /healthz */
    struct http_server *http;                    /* if asked for */
    struct rpc_server *rpc;

    struct identity identity;
    struct controller controller;
    struct node node;
};

static bool has_controller(const struct driver *d) {
    return d->config.mode != MODE_NODE;
}

static bool has_node(const struct driver *d) {
    return d->config.mode != MODE_CONTROLLER;
}

/* --- start --- */

static void start_controller(struct driver *d) {
    d->loop = loop_new(LOOP_WORKERS);
    d->pools = pools_new(&(struct pools_config){.loop = d->loop,
                                                .path = d->config.pools,
                                                .cluster_id = d->config.cluster_id,
                                                .metrics = d->metrics});
    loop_thread_start(d->loop, "catalog");
    d->housekeeping = housekeeping_start(d->loop, d->pools, d->metrics);
    d->controller.loop = d->loop;
    d->controller.pools = d->pools;
    d->controller.locks = d->locks;
    rpc_server_add_csi_controller(d->rpc, &controller_ops, &d->controller);
}

static int start_node(struct driver *d, struct err *e) {
    int rc = rpc_client_new(d->config.agent, &d->agent, e);
    if (rc)
        return rc;
    d->node = (struct node){.agent = d->agent,
                            .locks = d->locks,
                            .version = PORTALBD_VERSION,
                            .volumes_max = (int64_t)d->config.volumes_max};
    rpc_server_add_csi_node(d->rpc, &node_ops, &d->node);
    return 0;
}

static int start_registration(struct driver *d, struct err *e) {
    const char *endpoint = d->config.kubelet_endpoint;
    int rc = 0;
    if (!endpoint || !endpoint[0])
        rc = endpoint_path(d->config.endpoint, &endpoint, e);
    if (rc < 0)
        return rc;
    const struct registration_config config = {
        .socket = d->config.registration_socket, .endpoint = endpoint, .metrics = d->metrics};
    struct registration *r;
    rc = registration_start(&config, &r, e);
    if (rc == 0)
        atomic_store(&d->registration, r);
    return rc;
}

static bool healthy(void *arg, struct buf *text) {
    const struct driver *d = arg;
    char why[512];
    struct registration *r = atomic_load(&d->registration);
    if (r && registration_refused(r, why, sizeof why)) {
        buf_printf(text, "the kubelet does not register the driver: %s\n", why);
        return false;
    }
    buf_printf(text, "serving %s on %s\n", mode_names[d->config.mode], d->config.endpoint);
    return true;
}

static int start_http(struct driver *d, struct err *e) {
    struct http_config config = {.addr = d->config.http_address,
                                 .port = (uint16_t)d->config.http_port,
                                 .metrics = d->metrics,
                                 .healthy = healthy,
                                 .arg = d};
    int rc = http_server_start(&config, &d->http, e);
    if (rc)
        return rc;
    log_info("metrics are served", LOG_STR("address", d->config.http_address),
             LOG_U64("port", http_server_port(d->http)));
    return 0;
}

static int start(struct driver *d, struct err *e) {
    d->metrics = metrics_new();
    d->locks = oplocks_new();
    d->rpc = rpc_server_new(&(struct rpc_server_config){.endpoint = d->config.endpoint,
                                                        .workers = (unsigned)d->config.workers,
                                                        .metrics = d->metrics,
                                                        .hooks = rpc_log_hooks});
    d->identity = (struct identity){.version = PORTALBD_VERSION};
    rpc_server_add_csi_identity(d->rpc, &identity_ops, &d->identity);
    rpc_server_mark_quick(d->rpc, &csi__v1__identity__descriptor);
    if (has_controller(d))
        start_controller(d);
    int rc = has_node(d) ? start_node(d, e) : 0;
    if (rc == 0 && d->config.http_address)
        rc = start_http(d, e);
    if (rc == 0)
        rc = rpc_server_start(d->rpc, e);
    if (rc) {
        rpc_server_free(d->rpc);
        d->rpc = NULL;
    }
    if (rc == 0 && has_node(d) && d->config.registration_socket)
        rc = start_registration(d, e);
    return rc;
}

/* --- stop --- */

/* A handler sits in a system call that does not return: nothing can be freed any more. */
NORETURN static void leave_at_once(const struct err *e) {
    log_error("calls do not end, leaving without them", LOG_ERR(e));
    run_stop_all();
    usleep(KILLED_WAIT_MS * 1000);
    _exit(1);
}

static void free_pools(void *pools) {
    pools_free(pools);
}

static void stop(struct driver *d) {
    struct err e;
    atomic_store(&d->controller.stopping, true);
    registration_stop(atomic_load(&d->registration));
    if (d->rpc && rpc_server_stop(d->rpc, (uint32_t)(d->config.grace_us / 1000), STUCK_MS, &e) != 0)
        leave_at_once(&e);
    run_stop_all();
    rpc_server_free(d->rpc);
    http_server_stop(d->http);
    registration_free(atomic_load(&d->registration));
    if (d->housekeeping)
        housekeeping_stop(d->housekeeping);
    if (d->loop) {
        loop_call(d->loop, free_pools, d->pools);
        loop_thread_stop(d->loop);
        loop_free(d->loop);
    }
    rpc_client_free(d->agent);
    oplocks_free(d->locks);
    metrics_free(d->metrics);
}

int main(int argc, char **argv) {
    struct driver d = {0};
    struct option_args args;
    struct err e;
    options_parse_or_exit(&program, argc, argv, &d.config, &args);
    log_init(&(struct log_config){.program = "csi",
                                  .level = (enum log_level)d.config.log_level,
                                  .format = (enum log_format)d.config.log_format});
    /* Before any thread: they inherit the mask, and main takes the signals with sigwait. */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);

    int rc = start(&d, &e);
    if (rc) {
        log_error("the driver cannot start", LOG_ERR(&e));
    } else {
        log_info("serving", LOG_STR("mode", mode_names[d.config.mode]),
                 LOG_STR("endpoint", d.config.endpoint), LOG_STR("version", PORTALBD_VERSION));
        int signum = 0;
        sigwait(&signals, &signum);
        log_info("stopping", LOG_STR("signal", strsignal(signum)));
    }
    stop(&d);
    options_release(&program, &d.config);
    return rc ? 1 : 0;
}
