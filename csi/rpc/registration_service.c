/* The kubelet's registration service as typed handlers. */
#include "csi/rpc/registration_service.h"

static int get_info(struct rpc_call *call, const void *request, void *response, struct err *e) {
    const struct registration_ops *ops = rpc_call_ops(call);
    return ops->get_info(call, request, response, e);
}

static int notify(struct rpc_call *call, const void *request, void *response, struct err *e) {
    const struct registration_ops *ops = rpc_call_ops(call);
    return ops->notify_registration_status(call, request, response, e);
}

void rpc_server_add_registration(struct rpc_server *server, const struct registration_ops *ops,
                                 void *user) {
    static const struct rpc_method methods[] = {{"GetInfo", get_info},
                                                {"NotifyRegistrationStatus", notify}};
    rpc_server_add(server, &pluginregistration__registration__descriptor, methods,
                   ARRAY_LEN(methods), ops, user);
}
