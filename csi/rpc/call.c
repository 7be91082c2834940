/* One call on the server: from core's "there is one" to the final status.
 *
 *     armed --new--> [RECV_CLOSE] + RECV_MESSAGE --payload--> queued --> worker: decode, handler,
 *       one final batch (initial metadata, message, status) --status--> gone
 *
 * Unknown methods, a full queue and requests that never arrived whole skip the worker and get their
 * final batch from the poller. RECV_CLOSE_ON_SERVER completes whenever the call ends, and says
 * whether it was cancelled: by the client, its deadline, its death, or by the server's stop. */
#include <grpc/byte_buffer_reader.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "csi/rpc/rpc_internal.h"
#include "csi/rpc/wire_check.h"

/* --- life --- */

static void call_unref(struct rpc_call *call) {
    if (atomic_fetch_sub(&call->refs, 1) != 1)
        return;
    struct rpc_server *s = call->server;
    if (call->core)
        grpc_call_unref(call->core);
    if (call->payload)
        grpc_byte_buffer_destroy(call->payload);
    grpc_metadata_array_destroy(&call->metadata);
    grpc_call_details_destroy(&call->details);
    arena_release(&call->arena);
    if (call->shared.cancel_fd >= 0)
        close(call->shared.cancel_fd);
    pthread_mutex_destroy(&call->shared.mutex);
    free(call);
    rpc_server_call_ended(s);
}

static void start_batch(struct rpc_call *call, const grpc_op *ops, size_t count,
                        struct rpc_tag *tag) {
    atomic_fetch_add(&call->refs, 1);
    QUEUE_PUT(tag);
    grpc_call_error rc = grpc_call_start_batch(call->core, ops, count, tag, NULL);
    CHECK(rc == GRPC_CALL_OK); /* anything else is a misuse: one batch of a kind, no batch twice */
}

/* The final batch. response: NULL unless error->code is 0. */
static void call_finish(struct rpc_call *call, const struct err *error,
                        const ProtobufCMessage *response) {
    grpc_op ops[3] = {0};
    size_t n = 0;
    grpc_byte_buffer *message = NULL;
    char text[RPC_MESSAGE_MAX + 1] = "";

    ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    if (response) {
        grpc_slice bytes = grpc_slice_malloc(protobuf_c_message_get_packed_size(response));
        protobuf_c_message_pack(response, GRPC_SLICE_START_PTR(bytes));
        message = grpc_raw_byte_buffer_create(&bytes, 1);
        grpc_slice_unref(bytes);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = message;
    } else {
        rpc_status_message(error->text, text);
    }
    int code = error->code == 0 ? 0 : err_to_grpc(error->code);
    CHECK(code >= 0 && code <= 16);
    grpc_slice details = grpc_slice_from_copied_string(text);
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.status = (grpc_status_code)code;
    ops[n++].data.send_status_from_server.status_details = code == 0 ? NULL : &details;
    start_batch(call, ops, n, &call->tag_status);
    grpc_slice_unref(details);
    if (message)
        grpc_byte_buffer_destroy(message);
}

static void call_refuse(struct rpc_call *call, int code, const char *why) {
    struct err e;
    err_set_text(&e, code, "%s", why);
    call_finish(call, &e, NULL);
}

/* --- worker --- */

/* The request out of the payload, in the call's arena; NULL with *e. What cannot be parsed is
 * INTERNAL, as grpc/doc/statuscodes.md wants it. */
static const ProtobufCMessage *decode(struct rpc_call *call, struct err *e) {
    const ProtobufCMessageDescriptor *type = call->method->descriptor->input;
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, call->payload)) {
        err_set_text(e, -ERR_IO, "%s cannot be decompressed", type->name);
        return NULL;
    }
    grpc_slice bytes = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    const ProtobufCMessage *request = NULL;
    struct view wire = view_of(GRPC_SLICE_START_PTR(bytes), GRPC_SLICE_LENGTH(bytes));
    const char *why = wire_check(type, wire, RPC_DEPTH_MAX);
    if (why) {
        err_set_text(e, -ERR_IO, "malformed %s: %s", type->name, why);
    } else {
        ProtobufCAllocator allocator = arena_allocator(&call->arena);
        request = protobuf_c_message_unpack(type, &allocator, wire.len, wire.data);
        if (!request && call->arena.exhausted)
            err_set_text(e, -ERR_OVERLOAD, "%s needs more memory than a call may use", type->name);
        else if (!request)
            err_set_text(e, -ERR_IO, "malformed %s", type->name);
    }
    grpc_slice_unref(bytes);
    return request;
}

/* The handler's answer in *ret_response; the result is in *e, its code 0 for success. */
static void handle(struct rpc_call *call, const ProtobufCMessage *request,
                   ProtobufCMessage **ret_response, struct err *e) {
    const ProtobufCMessageDescriptor *type = call->method->descriptor->output;
    ProtobufCMessage *response = rpc_alloc(call, type->sizeof_message);
    if (!response) {
        err_set_text(e, -ERR_OVERLOAD, "the request left no memory for an answer");
        return;
    }
    type->message_init(response);
    int rc = call->method->handler(call, request, response, e);
    if (rc != 0) {
        CHECK(rc == e->code);
        return;
    }
    e->code = 0;
    if (call->arena.exhausted) /* there may be a NULL where a message should be */
        err_set_text(e, -ERR_OVERLOAD, "the answer needs more memory than a call may use");
    else if (protobuf_c_message_get_packed_size(response) > RPC_RESPONSE_MAX)
        err_set_text(e, -ERR_OVERLOAD, "the answer is longer than %d bytes; ask for fewer entries",
                     RPC_RESPONSE_MAX);
    else
        *ret_response = response;
}

void rpc_call_run(struct rpc_call *call) {
    struct rpc_server *s = call->server;
    struct rpc_method_entry *method = (struct rpc_method_entry *)call->method;
    struct rpc_hooks *hooks = &s->config.hooks;
    struct err e = {0};
    const ProtobufCMessage *request = NULL;
    ProtobufCMessage *response = NULL;
    uint64_t begin_us = rpc_now_us();

    metrics_gauge_add(&s->in_flight, 1);
    if (hooks->started)
        hooks->started(hooks->arg, call);
    if (rpc_call_cancelled(call))
        err_set_text(&e, -ERR_CANCELLED, "given up before it was begun");
    else
        request = decode(call, &e);
    if (request)
        handle(call, request, &response, &e);

    struct rpc_outcome outcome = {.request = request,
                                  .error = &e,
                                  .duration_us = rpc_now_us() - begin_us,
                                  .queued_us = begin_us - call->queued_at_us};
    metrics_results_add(&method->results, e.code);
    metrics_histogram_add(&method->duration_us, outcome.duration_us);
    metrics_gauge_add(&s->in_flight, -1);
    if (hooks->done)
        hooks->done(hooks->arg, call, &outcome);
    call_finish(call, &e, response);
    call_unref(call);
}

/* --- poller: never waits, never runs a handler --- */

static void on_close(struct rpc_call *call, bool ok) {
    (void)ok;
    if (call->close_cancelled) {
        pthread_mutex_lock(&call->shared.mutex);
        atomic_store(&call->cancelled, true);
        if (call->shared.cancel_fd >= 0)
            eventfd_write(call->shared.cancel_fd, 1);
        pthread_mutex_unlock(&call->shared.mutex);
    }
    call_unref(call);
}

static void on_status(struct rpc_call *call, bool ok) {
    (void)ok;
    call_unref(call);
}

static void on_payload(struct rpc_call *call, bool ok) {
    if (ok && call->payload) {
        atomic_fetch_add(&call->refs, 1);
        call->queued_at_us = rpc_now_us();
        if (!rpc_server_queue(call->server, call)) {
            atomic_fetch_sub(&call->refs, 1);
            metrics_counter_inc(&call->server->overloads);
            call_refuse(call, -ERR_OVERLOAD, "too many calls at once, try again");
        }
    } else if (grpc_call_failed_before_recv_message(call->core)) {
        call_refuse(call, -ERR_CANCELLED, "the request did not arrive whole, or is too large");
    } else {
        call_refuse(call, -ERR_UNSUPPORTED, "a call without a request");
    }
    call_unref(call);
}

static void on_new(struct rpc_call *call, bool ok) {
    if (!ok) { /* the server stops */
        call_unref(call);
        return;
    }
    rpc_call_arm(call->server);
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    close.data.recv_close_on_server.cancelled = &call->close_cancelled;
    start_batch(call, &close, 1, &call->tag_close);
    call->method = rpc_server_method(call->server, call->details.method);
    if (call->method && call->method->handler) {
        grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE};
        receive.data.recv_message.recv_message = &call->payload;
        start_batch(call, &receive, 1, &call->tag_payload);
    } else {
        char *path = grpc_slice_to_c_string(call->details.method);
        struct err e;
        err_set_text(&e, -ERR_UNSUPPORTED, "the method %s is not implemented", path);
        gpr_free(path);
        metrics_counter_inc(&call->server->unknown_methods);
        call_finish(call, &e, NULL);
    }
    call_unref(call);
}

void rpc_call_arm(struct rpc_server *s) {
    pthread_mutex_lock(&s->shared.mutex);
    bool stopping = s->shared.stopping;
    if (!stopping)
        s->shared.live++;
    pthread_mutex_unlock(&s->shared.mutex);
    if (stopping)
        return;
    struct rpc_call *call = NEW(struct rpc_call);
    call->server = s;
    arena_init(&call->arena, s->config.arena_max);
    atomic_init(&call->refs, 1);
    pthread_mutex_init(&call->shared.mutex, NULL);
    call->shared.cancel_fd = -1;
    call->tag_new = (struct rpc_tag){on_new, call};
    call->tag_payload = (struct rpc_tag){on_payload, call};
    call->tag_close = (struct rpc_tag){on_close, call};
    call->tag_status = (struct rpc_tag){on_status, call};
    grpc_call_details_init(&call->details);
    grpc_metadata_array_init(&call->metadata);
    QUEUE_PUT(&call->tag_new);
    grpc_call_error rc = grpc_server_request_call(
        s->core, &call->core, &call->details, &call->metadata, s->queue, s->queue, &call->tag_new);
    CHECK(rc == GRPC_CALL_OK);
}

/* --- what handlers see --- */

void *rpc_alloc(struct rpc_call *call, size_t size) {
    void *p = arena_alloc(&call->arena, size);
    return p ? memset(p, 0, size) : NULL;
}

char *rpc_strdup(struct rpc_call *call, const char *s) {
    size_t size = strlen(s) + 1;
    char *p = arena_alloc(&call->arena, size);
    return p ? memcpy(p, s, size) : NULL;
}

char *rpc_printf(struct rpc_call *call, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    CHECK(len >= 0);
    char *p = arena_alloc(&call->arena, (size_t)len + 1);
    if (!p)
        return NULL;
    va_start(ap, fmt);
    vsnprintf(p, (size_t)len + 1, fmt, ap);
    va_end(ap);
    return p;
}

bool rpc_call_cancelled(const struct rpc_call *call) {
    return atomic_load(&call->cancelled);
}

int rpc_call_cancel_fd(struct rpc_call *call) {
    pthread_mutex_lock(&call->shared.mutex);
    if (call->shared.cancel_fd < 0)
        call->shared.cancel_fd = eventfd(atomic_load(&call->cancelled), EFD_CLOEXEC | EFD_NONBLOCK);
    int fd = call->shared.cancel_fd;
    pthread_mutex_unlock(&call->shared.mutex);
    return fd;
}

int64_t rpc_call_time_left_ms(const struct rpc_call *call) {
    gpr_timespec deadline = call->details.deadline;
    if (gpr_time_cmp(deadline, gpr_inf_future(deadline.clock_type)) == 0)
        return INT64_MAX;
    gpr_timespec left = gpr_time_sub(deadline, gpr_now(deadline.clock_type));
    return left.tv_sec * 1000 + left.tv_nsec / 1000000;
}

const char *rpc_call_method(const struct rpc_call *call) {
    return call->method->path;
}

void *rpc_call_user(const struct rpc_call *call) {
    return call->method->user;
}

const void *rpc_call_ops(const struct rpc_call *call) {
    return call->method->ops;
}
