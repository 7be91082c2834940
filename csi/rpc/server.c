/* The server: one poller, N workers behind a bounded queue, a listener of our own.
 *
 * Threads: `rpc-listen` accepts connections; `rpc-poll` takes completions out of core's queue and
 * never blocks; `rpc-work` N times run handlers; `rpc-quick` runs those that never block, so that
 * a question for the program's health does not wait behind handlers that all wait for a store. Core
 * has a few threads of its own.
 *
 * The order of the stop is the one that core allows: listener closed; shutdown_and_notify (core
 * tells clients to go away and fails the armed requests); wait for calls, for a while; cancel them;
 * wait; workers out; only then the completion queue (a batch started after that is fatal); poller
 * out; destroy. */
#include <grpc/grpc_posix.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/mem.h"
#include "csi/rpc/endpoint.h"
#include "csi/rpc/rpc_internal.h"
#include "csi/rpc/thread.h"

/* --- set-up --- */

static void on_core_stopped(struct rpc_call *server, bool ok);

struct rpc_server *rpc_server_new(const struct rpc_server_config *config) {
    struct rpc_server *s = NEW(struct rpc_server);
    s->config = *config;
    s->endpoint = xstrdup(config->endpoint);
    s->config.endpoint = s->endpoint;
    if (s->config.mode == 0)
        s->config.mode = 0600;
    if (s->config.workers == 0)
        s->config.workers = RPC_WORKERS_DEFAULT;
    if (s->config.queue_max == 0)
        s->config.queue_max = RPC_QUEUE_MAX_DEFAULT;
    if (s->config.request_max == 0)
        s->config.request_max = RPC_REQUEST_MAX_DEFAULT;
    if (s->config.arena_max == 0)
        s->config.arena_max = RPC_ARENA_MAX_DEFAULT;
    CHECK(s->config.request_max <= INT32_MAX);

    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&s->shared.mutex, NULL);
    pthread_cond_init(&s->shared.work, NULL);
    pthread_cond_init(&s->shared.idle, &monotonic);
    pthread_condattr_destroy(&monotonic);
    /* The one tag that carries the server; only on_core_stopped looks at it. */
    s->stop_tag = (struct rpc_tag){on_core_stopped, (struct rpc_call *)(void *)s};
    return s;
}

void rpc_server_add(struct rpc_server *s, const ProtobufCServiceDescriptor *service,
                    const struct rpc_method *methods, size_t count, const void *ops, void *user) {
    CHECK(!s->started);
    CHECK(count == service->n_methods); /* else the list of methods misses what the .proto has */
    for (size_t i = 0; i < count; i++) {
        CHECK(s->method_count < METHODS_MAX);
        struct rpc_method_entry *m = &s->methods[s->method_count++];
        m->descriptor = protobuf_c_service_descriptor_get_method_by_name(service, methods[i].name);
        CHECK(m->descriptor);
        int len = snprintf(m->path, sizeof m->path, "/%s/%s", service->name, methods[i].name);
        CHECK(len > 0 && len < (int)sizeof m->path);
        m->handler = methods[i].handler;
        m->ops = ops;
        m->user = user;
    }
}

void rpc_server_mark_quick(struct rpc_server *s, const ProtobufCServiceDescriptor *service) {
    CHECK(!s->started);
    bool found = false;
    for (size_t i = 0; i < s->method_count; i++) {
        struct rpc_method_entry *m = &s->methods[i];
        size_t len = strlen(service->name);
        if (strncmp(m->path + 1, service->name, len) == 0 && m->path[1 + len] == '/')
            m->quick = found = true;
    }
    CHECK(found);
}

static void register_metrics(struct rpc_server *s) {
    s->metrics = xcalloc(s->method_count + 1, sizeof *s->metrics);
    for (size_t i = 0; i < s->method_count; i++) {
        struct rpc_method_entry *m = &s->methods[i];
        if (!m->handler)
            continue;
        s->metrics[i] = metrics_group_new(s->config.metrics, METRICS_LABELS({"method", m->path}));
        metrics_results_register(s->metrics[i], &m->results, "portalbd_rpc_calls_total",
                                 "Calls answered, by method and outcome.", NULL);
        metrics_histogram_register(s->metrics[i], &m->duration_us, METRICS_MICROSECONDS,
                                   "portalbd_rpc_duration_seconds", "Time in the handler.", NULL);
    }
    struct metrics_group *own = metrics_group_new(s->config.metrics, NULL);
    s->metrics[s->method_count] = own;
    metrics_gauge_register(own, &s->in_flight, "portalbd_rpc_in_flight_calls",
                           "Calls in handlers now.", NULL);
    metrics_counter_register(own, &s->unknown_methods, "portalbd_rpc_unknown_methods_total",
                             "Calls of methods that are not implemented.", NULL);
    metrics_counter_register(own, &s->overloads, "portalbd_rpc_overloads_total",
                             "Calls refused because too many were waiting.", NULL);
}

/* --- the queue of calls --- */

static void queue_push(struct rpc_queue *q, struct rpc_call *call) {
    call->queue_next = NULL;
    if (q->tail)
        q->tail->queue_next = call;
    else
        q->head = call;
    q->tail = call;
    q->count++;
}

static struct rpc_call *queue_pop(struct rpc_queue *q) {
    struct rpc_call *call = q->head;
    if (!call)
        return NULL;
    q->head = call->queue_next;
    if (!q->head)
        q->tail = NULL;
    q->count--;
    return call;
}

bool rpc_server_queue(struct rpc_server *s, struct rpc_call *call) {
    struct rpc_queue *q = call->method->quick ? &s->shared.quick : &s->shared.queue;
    pthread_mutex_lock(&s->shared.mutex);
    bool room = q->count < s->config.queue_max;
    if (room) {
        queue_push(q, call);
        pthread_cond_broadcast(&s->shared.work); /* which of the workers, only they know */
    }
    pthread_mutex_unlock(&s->shared.mutex);
    return room;
}

/* Runs calls of one queue until told to exit; not before the queue is empty. */
static void run_calls(struct rpc_server *s, struct rpc_queue *q) {
    pthread_mutex_lock(&s->shared.mutex);
    for (;;) {
        struct rpc_call *call = queue_pop(q);
        if (call) {
            pthread_mutex_unlock(&s->shared.mutex);
            rpc_call_run(call);
            pthread_mutex_lock(&s->shared.mutex);
        } else if (s->shared.workers_exit) {
            break;
        } else {
            pthread_cond_wait(&s->shared.work, &s->shared.mutex);
        }
    }
    pthread_mutex_unlock(&s->shared.mutex);
}

static void *worker_main(void *arg) {
    struct rpc_server *s = arg;
    run_calls(s, &s->shared.queue);
    return NULL;
}

static void *quick_worker_main(void *arg) {
    struct rpc_server *s = arg;
    run_calls(s, &s->shared.quick);
    return NULL;
}

/* --- the poller --- */

static void *poller_main(void *arg) {
    struct rpc_server *s = arg;
    for (;;) {
        grpc_event event =
            grpc_completion_queue_next(s->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        if (event.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        CHECK(event.type == GRPC_OP_COMPLETE);
        struct rpc_tag *tag = event.tag;
        QUEUE_GOT(tag);
        tag->done(tag->call, event.success != 0);
    }
}

void rpc_server_call_ended(struct rpc_server *s) {
    pthread_mutex_lock(&s->shared.mutex);
    CHECK(s->shared.live > 0);
    if (--s->shared.live == 0)
        pthread_cond_broadcast(&s->shared.idle);
    pthread_mutex_unlock(&s->shared.mutex);
}

static void on_core_stopped(struct rpc_call *server, bool ok) {
    (void)ok;
    struct rpc_server *s = (struct rpc_server *)(void *)server;
    pthread_mutex_lock(&s->shared.mutex);
    s->shared.core_stopped = true;
    pthread_cond_broadcast(&s->shared.idle);
    pthread_mutex_unlock(&s->shared.mutex);
}

const struct rpc_method_entry *rpc_server_method(const struct rpc_server *s, grpc_slice path) {
    for (size_t i = 0; i < s->method_count; i++)
        if (grpc_slice_str_cmp(path, s->methods[i].path) == 0)
            return &s->methods[i];
    return NULL;
}

/* --- start and stop --- */

static void on_accepted(void *arg, int fd) {
    struct rpc_server *s = arg;
    grpc_server_credentials *credentials = grpc_insecure_server_credentials_create();
    grpc_server_add_channel_from_fd(s->core, fd, credentials);
    grpc_server_credentials_release(credentials);
}

static void start_core(struct rpc_server *s) {
    rpc_core_init();
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)s->config.request_max},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_MAX_CONCURRENT_STREAMS,
         .value.integer = (int)s->config.queue_max + (int)s->config.workers + ARMED_CALLS},
        /* Clients (grpc-go) ping idle connections as often as they like. */
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_HTTP2_MAX_PING_STRIKES},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS,
         .value.integer = 1},
    };
    grpc_channel_args channel_args = {.num_args = ARRAY_LEN(args), .args = args};
    s->core = grpc_server_create(&channel_args, NULL);
    s->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_server_register_completion_queue(s->core, s->queue, NULL);
    grpc_server_start(s->core);
}

static void stop_core(struct rpc_server *s) {
    grpc_server_destroy(s->core);
    grpc_completion_queue_destroy(s->queue);
    grpc_shutdown();
}

int rpc_server_start(struct rpc_server *s, struct err *e) {
    CHECK(!s->started);
    int rc = endpoint_path(s->endpoint, &s->path, e);
    if (rc)
        return rc;
    start_core(s);
    /* A connection may come as soon as the listener is open; its calls wait until they are armed.
     */
    s->listener =
        (struct rpc_listener){.accepted = on_accepted, .arg = s, .any_peer = s->config.any_peer};
    rc = rpc_listener_open(&s->listener, s->path, s->config.mode, e);
    if (rc) {
        grpc_server_shutdown_and_notify(s->core, s->queue, &s->stop_tag);
        grpc_completion_queue_next(s->queue, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
        grpc_completion_queue_shutdown(s->queue);
        stop_core(s);
        return rc;
    }
    s->started = true;
    register_metrics(s);
    for (unsigned i = 0; i < ARMED_CALLS; i++)
        rpc_call_arm(s);
    s->workers = xcalloc(s->config.workers, sizeof *s->workers);
    for (unsigned i = 0; i < s->config.workers; i++)
        thread_start(&s->workers[i], "rpc-work", worker_main, s);
    thread_start(&s->quick_worker, "rpc-quick", quick_worker_main, s);
    thread_start(&s->poller, "rpc-poll", poller_main, s);
    return 0;
}

/* Waits until no call is left, at most timeout_ms. */
static bool wait_for_calls(struct rpc_server *s, uint32_t timeout_ms) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (end.tv_nsec >= 1000000000) {
        end.tv_sec++;
        end.tv_nsec -= 1000000000;
    }
    int rc = 0;
    pthread_mutex_lock(&s->shared.mutex);
    while ((!s->shared.core_stopped || s->shared.live > 0) && rc == 0)
        rc = pthread_cond_timedwait(&s->shared.idle, &s->shared.mutex, &end);
    bool done = s->shared.core_stopped && s->shared.live == 0;
    pthread_mutex_unlock(&s->shared.mutex);
    return done;
}

int rpc_server_stop(struct rpc_server *s, uint32_t grace_ms, uint32_t stuck_ms, struct err *e) {
    CHECK(s->started && !s->shared.stopping);
    rpc_listener_close(&s->listener);
    grpc_server_shutdown_and_notify(s->core, s->queue, &s->stop_tag);
    pthread_mutex_lock(&s->shared.mutex);
    s->shared.stopping = true;
    pthread_mutex_unlock(&s->shared.mutex);
    if (!wait_for_calls(s, grace_ms)) {
        grpc_server_cancel_all_calls(s->core);
        if (!wait_for_calls(s, stuck_ms))
            return err_set(e, -ERR_TIMEOUT, "a call's handler does not return");
    }
    pthread_mutex_lock(&s->shared.mutex);
    s->shared.workers_exit = true;
    pthread_cond_broadcast(&s->shared.work);
    pthread_mutex_unlock(&s->shared.mutex);
    for (unsigned i = 0; i < s->config.workers; i++)
        CHECK(pthread_join(s->workers[i], NULL) == 0);
    CHECK(pthread_join(s->quick_worker, NULL) == 0);
    grpc_completion_queue_shutdown(s->queue);
    CHECK(pthread_join(s->poller, NULL) == 0);
    stop_core(s);
    s->started = false;
    return 0;
}

void rpc_server_free(struct rpc_server *s) {
    if (!s)
        return;
    CHECK(!s->started);
    for (size_t i = 0; s->metrics && i <= s->method_count; i++)
        metrics_group_free(s->metrics[i]);
    free(s->metrics);
    free(s->workers);
    free(s->endpoint);
    pthread_cond_destroy(&s->shared.work);
    pthread_cond_destroy(&s->shared.idle);
    pthread_mutex_destroy(&s->shared.mutex);
    free(s);
}
