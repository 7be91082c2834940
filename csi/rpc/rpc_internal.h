/* What server, call and client share: gRPC C core and its traps. Stays in this room. */
#pragma once

#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <pthread.h>
#include <stdatomic.h>

#include "csi/rpc/arena.h"
#include "csi/rpc/listener.h"
#include "csi/rpc/rpc.h"

enum {
    METHODS_MAX = 64,
    ARMED_CALLS = 8,  /* requests for a new call that wait in core at any time */
    PATH_MAX_RPC = 96 /* bytes of "/package.Service/Method" */
};

/* libgrpc is not instrumented: tell ThreadSanitizer that what comes out of the completion queue
 * happened after what went in. */
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);
#define QUEUE_PUT(tag) __tsan_release(tag)
#define QUEUE_GOT(tag) __tsan_acquire(tag)
#else
#define QUEUE_PUT(tag) ((void)0)
#define QUEUE_GOT(tag) ((void)0)
#endif

/* What core hands back when a batch is done. */
struct rpc_tag {
    void (*done)(struct rpc_call *call, bool ok); /* on the poller: must not block */
    struct rpc_call *call;
};

/* Calls that wait for a worker. */
struct rpc_queue {
    struct rpc_call *head;
    struct rpc_call *tail;
    unsigned count;
};

struct rpc_method_entry {
    char path[PATH_MAX_RPC];
    bool quick; /* has a worker of its own */
    const ProtobufCMethodDescriptor *descriptor;
    rpc_handler_fn *handler; /* NULL: UNIMPLEMENTED */
    const void *ops;         /* borrowed */
    void *user;              /* borrowed */
    struct metrics_results results;
    struct metrics_histogram duration_us;
};

/* I1 A call has one reference for each tag that core holds of it, one for the queue; the last one
 *    frees it.
 * I2 No batch is started after the completion queue was shut down: workers are joined first.
 * I3 The poller never runs a handler and never waits for a worker.
 * I4 Each call that core delivered gets exactly one final status. */
struct rpc_server {
    struct { /* guarded by the mutex */
        pthread_mutex_t mutex;
        pthread_cond_t work;    /* a call is queued, or workers_exit */
        pthread_cond_t idle;    /* live or core_stopped changed */
        struct rpc_queue queue; /* for the workers */
        struct rpc_queue quick; /* for the one of the quick calls */
        unsigned live;          /* calls that exist, the armed ones included */
        bool stopping;          /* no more calls are armed */
        bool core_stopped;      /* core says that all calls have ended */
        bool workers_exit;
    } shared;

    /* constant after start */
    struct rpc_server_config config;
    char *endpoint;   /* owned */
    const char *path; /* in endpoint */
    grpc_server *core;
    grpc_completion_queue *queue;
    struct rpc_method_entry methods[METHODS_MAX];
    size_t method_count;
    struct rpc_tag stop_tag;
    bool started;

    struct rpc_listener listener;
    pthread_t poller;
    pthread_t *workers;
    pthread_t quick_worker;

    struct metrics_group **metrics; /* one a method, then the server's own; owned */
    struct metrics_gauge in_flight;
    struct metrics_counter unknown_methods;
    struct metrics_counter overloads;
};

struct rpc_call {
    struct rpc_server *server;
    struct rpc_call *queue_next;
    const struct rpc_method_entry *method;
    struct arena arena;
    uint64_t queued_at_us;

    /* core's */
    grpc_call *core;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload;
    int close_cancelled; /* written by core before tag_close comes */

    atomic_int refs;
    atomic_bool cancelled;
    struct { /* guarded by the mutex */
        pthread_mutex_t mutex;
        int cancel_fd; /* eventfd, or -1 */
    } shared;

    struct rpc_tag tag_new, tag_payload, tag_close, tag_status;
};

/* Asks core for one more call, unless the server stops. Poller, or before it runs. */
void rpc_call_arm(struct rpc_server *s);
/* Runs the handler and sends what came of it; takes a reference away. Worker. */
void rpc_call_run(struct rpc_call *call);
/* Queues a call for a worker; false: the queue is full. Poller. */
bool rpc_server_queue(struct rpc_server *s, struct rpc_call *call);
/* A call is gone. Any thread. */
void rpc_server_call_ended(struct rpc_server *s);
const struct rpc_method_entry *rpc_server_method(const struct rpc_server *s, grpc_slice path);

/* A status message as it may go out: at most RPC_MESSAGE_MAX bytes of valid UTF-8. `out` has that
 * size + 1. */
void rpc_status_message(const char *text, char *out);

uint64_t rpc_now_us(void); /* monotonic */

/* grpc_init with our log; balanced by grpc_shutdown. Any thread. */
void rpc_core_init(void);
