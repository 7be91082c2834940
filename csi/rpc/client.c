/* The client: a channel, and a completion queue of its own for each call (a queue may have six
 * waiters at most), so calls share nothing and any thread may make them. */
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "csi/rpc/endpoint.h"
#include "csi/rpc/rpc_internal.h"
#include "csi/rpc/wire_check.h"

enum {
    RECONNECT_MS_MIN = 50,
    RECONNECT_MS_MAX = 1000, /* a local server that came back is found within this time */
    CONNECT_MS_MAX = 10000,  /* from the connection to the server's first word */
};

struct rpc_client {
    grpc_channel *channel;
};

int rpc_client_new(const char *endpoint, struct rpc_client **ret_client, struct err *e) {
    const char *path;
    int rc = endpoint_path(endpoint, &path, e);
    if (rc)
        return rc;
    rpc_core_init();
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS,
         .value.integer = RECONNECT_MS_MIN},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, /* despite its name */
         .value.integer = CONNECT_MS_MAX},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_MAX_RECONNECT_BACKOFF_MS,
         .value.integer = RECONNECT_MS_MAX},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL,
         .value.integer = 1},
        {.type = GRPC_ARG_INTEGER, .key = (char *)GRPC_ARG_ENABLE_RETRIES},
    };
    grpc_channel_args channel_args = {.num_args = ARRAY_LEN(args), .args = args};
    CLEANUP_FREE char *target = xasprintf("unix:%s", path);
    struct rpc_client *c = NEW(struct rpc_client);
    grpc_channel_credentials *credentials = grpc_insecure_credentials_create();
    c->channel = grpc_channel_create(target, credentials, &channel_args);
    grpc_channel_credentials_release(credentials);
    *ret_client = c;
    return 0;
}

void rpc_client_free(struct rpc_client *c) {
    if (!c)
        return;
    grpc_channel_destroy(c->channel);
    grpc_shutdown();
    free(c);
}

static grpc_byte_buffer *encode(const ProtobufCMessage *message) {
    grpc_slice bytes = grpc_slice_malloc(protobuf_c_message_get_packed_size(message));
    protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(bytes));
    grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&bytes, 1);
    grpc_slice_unref(bytes);
    return buffer;
}

static int decode(grpc_byte_buffer *buffer, const ProtobufCMessageDescriptor *type,
                  struct arena *arena, ProtobufCMessage **ret_message, struct err *e) {
    grpc_byte_buffer_reader reader;
    if (!buffer || !grpc_byte_buffer_reader_init(&reader, buffer))
        return err_set(e, -ERR_IO, "answered OK without a message");
    grpc_slice bytes = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    struct view wire = view_of(GRPC_SLICE_START_PTR(bytes), GRPC_SLICE_LENGTH(bytes));
    const char *why = wire_check(type, wire, RPC_DEPTH_MAX);
    ProtobufCAllocator allocator = arena_allocator(arena);
    ProtobufCMessage *message =
        why ? NULL : protobuf_c_message_unpack(type, &allocator, wire.len, wire.data);
    grpc_slice_unref(bytes);
    if (!message)
        return err_set(e, -ERR_IO, "malformed %s%s%s", type->name, why ? ": " : "", why ? why : "");
    *ret_message = message;
    return 0;
}

/* The state of one call that core writes to. */
struct exchange {
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *request;
    grpc_byte_buffer *response;
    grpc_status_code status;
    grpc_slice details;
};

/* All of a unary call in one batch: it completes when the status is there. */
static void run_exchange(grpc_call *call, grpc_completion_queue *queue, struct exchange *x) {
    grpc_op ops[6] = {0};
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = x->request;
    ops[2].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[3].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[3].data.recv_initial_metadata.recv_initial_metadata = &x->initial;
    ops[4].op = GRPC_OP_RECV_MESSAGE;
    ops[4].data.recv_message.recv_message = &x->response;
    ops[5].op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    ops[5].data.recv_status_on_client.trailing_metadata = &x->trailing;
    ops[5].data.recv_status_on_client.status = &x->status;
    ops[5].data.recv_status_on_client.status_details = &x->details;
    QUEUE_PUT(x);
    grpc_call_error rc = grpc_call_start_batch(call, ops, ARRAY_LEN(ops), x, NULL);
    CHECK(rc == GRPC_CALL_OK);
    grpc_event event =
        grpc_completion_queue_pluck(queue, x, gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    CHECK(event.type == GRPC_OP_COMPLETE);
    QUEUE_GOT(x);
}

static int outcome(const struct exchange *x, const char *path, struct err *e) {
    int rc = rpc_err_from_code((int)x->status);
    if (rc == 0)
        return 0;
    const char *method = strrchr(path, '/') + 1;
    int len = (int)MIN(GRPC_SLICE_LENGTH(x->details), (size_t)RPC_MESSAGE_MAX);
    const char *text = (const char *)GRPC_SLICE_START_PTR(x->details);
    return err_set(e, rc, "%s: %.*s", method, len, text);
}

int rpc_client_call(const struct rpc_client_call *how, const char *path,
                    const ProtobufCMessage *request, const ProtobufCMessageDescriptor *type,
                    ProtobufCMessage **ret_response, struct err *e) {
    struct arena *arena = how->arena ? how->arena : &how->parent->arena;
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (how->timeout_ms > 0)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_millis(how->timeout_ms, GPR_TIMESPAN));
    grpc_completion_queue *queue = grpc_completion_queue_create_for_pluck(NULL);
    grpc_slice method = grpc_slice_from_copied_string(path);
    grpc_call *call = grpc_channel_create_call(
        how->client->channel, how->parent ? how->parent->core : NULL,
        GRPC_PROPAGATE_DEADLINE | GRPC_PROPAGATE_CANCELLATION, queue, method, NULL, deadline, NULL);
    grpc_slice_unref(method);

    struct exchange x = {.request = encode(request), .details = grpc_empty_slice()};
    grpc_metadata_array_init(&x.initial);
    grpc_metadata_array_init(&x.trailing);
    run_exchange(call, queue, &x);
    int rc = outcome(&x, path, e);
    if (rc == 0)
        rc = decode(x.response, type, arena, ret_response, e);

    grpc_slice_unref(x.details);
    grpc_metadata_array_destroy(&x.initial);
    grpc_metadata_array_destroy(&x.trailing);
    grpc_byte_buffer_destroy(x.request);
    if (x.response)
        grpc_byte_buffer_destroy(x.response);
    grpc_call_unref(call);
    grpc_completion_queue_shutdown(queue);
    grpc_completion_queue_destroy(queue);
    return rc;
}
