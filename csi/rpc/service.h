/* Typed services out of a list of their methods.
 *
 *     #define THING_METHODS(X, ...) X(__VA_ARGS__, GetInfo, get_info) X(__VA_ARGS__, PutThing,
 * put_thing) RPC_SERVICE_DECLARE(thing, Acme__V1__, THING_METHODS)                      in a header
 *     RPC_SERVICE_DEFINE(thing, Acme__V1__, acme__v1__, "acme.v1.Thing",
 *                        acme__v1__thing__descriptor, THING_METHODS)             in a .c file
 *
 * give `struct thing_ops` with a handler a method; `rpc_server_add_thing(server, ops, user)`, where
 * a NULL handler means UNIMPLEMENTED; and for clients `thing_get_info(how, request, &response, e)`.
 * Methods take <Method>Request and return <Method>Response. The compiler checks every type; that
 * the list is complete is checked when the service is added. protoc-c drops `stream`: a service
 * with streaming methods cannot be described this way. */
#pragma once

#include "csi/rpc/rpc.h"

#define RPC_SERVICE_DECLARE(service, Prefix, METHODS)                                              \
    struct service##_ops {                                                                         \
        METHODS(RPC_OP_, service, Prefix)                                                          \
    };                                                                                             \
    void rpc_server_add_##service(struct rpc_server *server, const struct service##_ops *ops,      \
                                  void *user);                                                     \
    METHODS(RPC_STUB_DECLARE_, service, Prefix)

#define RPC_SERVICE_DEFINE(service, Prefix, prefix, full_name, descriptor, METHODS)                \
    METHODS(RPC_THUNK_, service)                                                                   \
    void rpc_server_add_##service(struct rpc_server *server, const struct service##_ops *ops,      \
                                  void *user) {                                                    \
        const struct rpc_method methods[] = {METHODS(RPC_METHOD_, service)};                       \
        rpc_server_add(server, &descriptor, methods, ARRAY_LEN(methods), ops, user);               \
    }                                                                                              \
    METHODS(RPC_STUB_DEFINE_, service, Prefix, prefix, full_name)

#define RPC_OP_(service, Prefix, Method, method)                                                   \
    int (*method)(struct rpc_call * call, const Prefix##Method##Request *request,                  \
                  Prefix##Method##Response *response, struct err *e);

#define RPC_THUNK_(service, Method, method)                                                        \
    static int service##_thunk_##method(struct rpc_call *call, const void *request,                \
                                        void *response, struct err *e) {                           \
        const struct service##_ops *ops = rpc_call_ops(call);                                      \
        return ops->method(call, request, response, e);                                            \
    }

#define RPC_METHOD_(service, Method, method)                                                       \
    {#Method, ops->method ? service##_thunk_##method : NULL},

#define RPC_STUB_DECLARE_(service, Prefix, Method, method)                                         \
    int service##_##method(const struct rpc_client_call *how,                                      \
                           const Prefix##Method##Request *request,                                 \
                           Prefix##Method##Response **ret_response, struct err *e);

#define RPC_STUB_DEFINE_(service, Prefix, prefix, full_name, Method, method)                       \
    int service##_##method(const struct rpc_client_call *how,                                      \
                           const Prefix##Method##Request *request,                                 \
                           Prefix##Method##Response **ret_response, struct err *e) {               \
        ProtobufCMessage *response;                                                                \
        int rc = rpc_client_call(how, "/" full_name "/" #Method, &request->base,                   \
                                 &prefix##method##_response__descriptor, &response, e);            \
        if (rc == 0)                                                                               \
            *ret_response = (Prefix##Method##Response *)(void *)response;                          \
        return rc;                                                                                 \
    }
