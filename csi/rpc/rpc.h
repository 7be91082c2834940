/* Remote procedure calls over unix sockets: gRPC on the wire, protobuf-c structs in the program.
 *
 * This room is the only one that sees gRPC C core. A service is a struct of handlers
 * (csi/rpc/csi_service.h, csi/rpc/agent_service.h); a handler left NULL answers UNIMPLEMENTED, like
 * any method nobody knows. A handler is straight-line code on a worker thread: it may block. It
 * returns 0 or -ERR_x with the error's text, which become the status (common/err_codes.def has the
 * gRPC code of each).
 *
 * What a handler puts into a response is allocated with rpc_alloc and its like, or borrowed from
 * the request, or a constant: nothing is freed by hand. Strings of a request are never NULL, valid
 * UTF-8 and without embedded NULs. Do not put a message of the request into the response: unknown
 * fields in it would be sent back. */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "common/err.h"
#include "common/metrics.h"
#include "csi/rpc/arena.h"

enum {
    RPC_WORKERS_DEFAULT = 16,
    RPC_QUEUE_MAX_DEFAULT = 256,         /* calls that wait for a worker */
    RPC_REQUEST_MAX_DEFAULT = 1 << 20,   /* bytes of an encoded request */
    RPC_ARENA_MAX_DEFAULT = 16 << 20,    /* bytes of memory for request and response of a call */
    RPC_RESPONSE_MAX = (4 << 20) - 4096, /* bytes of an encoded response: clients refuse 4 MiB */
    RPC_MESSAGE_MAX = 1024,              /* bytes of a status message; more breaks clients */
    RPC_DEPTH_MAX = 32,                  /* messages inside messages */
};

/* --- a call, as its handler sees it --- */

/* One call. Valid only inside its handler (and the hooks), on the handler's thread, except where
 * said. */
struct rpc_call;

/* Zeroed memory that lives as long as the call. NULL when the call's cap is reached: then the
 * answer is RESOURCE_EXHAUSTED whatever the handler returns, so a NULL may be put into the
 * response. */
void *rpc_alloc(struct rpc_call *call, size_t size);
char *rpc_strdup(struct rpc_call *call, const char *s);
char *rpc_printf(struct rpc_call *call, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* A message or an array of pointers to messages; `init` is the generated ..._init function. */
#define RPC_NEW(call, type, init)                                                                  \
    ({                                                                                             \
        type *rpc_new_ = rpc_alloc((call), sizeof(type));                                          \
        if (rpc_new_)                                                                              \
            init(rpc_new_);                                                                        \
        rpc_new_;                                                                                  \
    })
#define RPC_NEW_ARRAY(call, type, count) ((type *)rpc_alloc((call), sizeof(type) * (count)))

/* The client is gone or gave up, the deadline passed, or the server stops. Any thread. */
bool rpc_call_cancelled(const struct rpc_call *call);
/* Becomes readable when that happens; -1 if there is none to be had. Owned by the call. */
int rpc_call_cancel_fd(struct rpc_call *call);
/* Milliseconds until the client's deadline, negative when it is over, INT64_MAX without one. Any
 * thread. */
int64_t rpc_call_time_left_ms(const struct rpc_call *call);
const char *rpc_call_method(const struct rpc_call *call); /* "/csi.v1.Node/NodeStageVolume" */
void *rpc_call_user(const struct rpc_call *call);         /* what was given with the service */

/* --- server --- */

/* What a call came to, for the hook `done`. */
struct rpc_outcome {
    const ProtobufCMessage *request; /* NULL: it could not be decoded, or was not wanted any more */
    const struct err *error;         /* error->code is 0: OK */
    uint64_t duration_us;            /* in the handler */
    uint64_t queued_us;              /* before that, waiting for a worker */
};

/* Called on the worker's thread around each call that reaches a worker. */
struct rpc_hooks {
    void (*started)(void *arg, const struct rpc_call *call);
    void (*done)(void *arg, const struct rpc_call *call, const struct rpc_outcome *outcome);
    void *arg;
};

/* A line for each call: what failed, and what is not just a question, at level info; secrets are
 * left out. */
extern const struct rpc_hooks rpc_log_hooks;

struct rpc_server_config {
    const char *endpoint;    /* unix:///run/x.sock or /run/x.sock; copied */
    unsigned mode;           /* of the socket; 0: 0600 */
    bool any_peer;           /* false: only root and our own user may connect */
    unsigned workers;        /* 0: the defaults above */
    unsigned queue_max;      /* beyond it: RESOURCE_EXHAUSTED */
    size_t request_max;      /* bytes; beyond it: RESOURCE_EXHAUSTED */
    size_t arena_max;        /* bytes */
    struct metrics *metrics; /* borrowed until free; NULL: none */
    struct rpc_hooks hooks;
};

struct rpc_server;

struct rpc_server *rpc_server_new(const struct rpc_server_config *config);

/* Binds the socket and starts the threads; the services were added before. -ERR_IN_USE: another
 * process serves there. -ERR_CONFIG: no socket can be there. */
int rpc_server_start(struct rpc_server *s, struct err *e);

/* Takes no more calls, lets those that run finish for grace_ms, then cancels them and waits
 * stuck_ms more for their handlers to return. -ERR_TIMEOUT: some did not (a system call on a dead
 * device): the server must not be freed, the process may only _exit. Once, after a successful
 * start. */
int rpc_server_stop(struct rpc_server *s, uint32_t grace_ms, uint32_t stuck_ms, struct err *e);
void rpc_server_free(struct rpc_server *s); /* stopped, or never started; NULL is fine */

/* How services are added; services.h makes typed functions of it. `ops` and `user` are borrowed
 * until free. */
typedef int rpc_handler_fn(struct rpc_call *call, const void *request, void *response,
                           struct err *e);
struct rpc_method {
    const char *name; /* as in the service's descriptor */
    rpc_handler_fn *handler;
};
void rpc_server_add(struct rpc_server *s, const ProtobufCServiceDescriptor *service,
                    const struct rpc_method *methods, size_t count, const void *ops, void *user);
const void *rpc_call_ops(const struct rpc_call *call);

/* The handlers of this service, added before, never block: they get a worker of their own, so that
 * they are answered while all others are busy (health checks). */
void rpc_server_mark_quick(struct rpc_server *s, const ProtobufCServiceDescriptor *service);

/* --- client --- */

/* Connects when it is first used, and again whenever the server comes back. Any thread, many calls
 * at once. */
struct rpc_client;
int rpc_client_new(const char *endpoint, struct rpc_client **ret_client, struct err *e);
void rpc_client_free(struct rpc_client *c); /* no call may be under way; NULL is fine */

/* How a call is made. */
struct rpc_client_call {
    struct rpc_client *client;
    struct rpc_call *parent; /* the call we answer: its deadline and its cancellation are ours too;
                                NULL: none */
    uint32_t timeout_ms;     /* 0: none but the parent's */
    struct arena *arena;     /* the response lives in it, borrowed; NULL: the parent's own memory */
};

/* Blocks. 0, or -ERR_x: what the server answered (a gRPC code maps to the error that the table
 * lists first for it), -ERR_TRANSIENT when there is no server, -ERR_TIMEOUT, -ERR_CANCELLED. */
int rpc_client_call(const struct rpc_client_call *how, const char *path,
                    const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                    ProtobufCMessage **ret_response, struct err *e);

/* --- both --- */

/* google.rpc.Code -> -ERR_x; 0 -> 0. */
int rpc_err_from_code(int grpc_code);

/* Appends a message as one line of JSON with fields called `secrets` left out, cut at max bytes. */
struct buf;
void rpc_dump(struct buf *out, const ProtobufCMessage *message, size_t max);
