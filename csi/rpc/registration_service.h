/* The service pluginregistration.Registration (proto/pluginregistration.proto), with which the
 * kubelet learns of a driver: handlers. Its messages are not named after its methods, so it is
 * written out. */
#pragma once

#include "csi/rpc/rpc.h"
#include "pluginregistration.pb-c.h"

struct registration_ops {
    int (*get_info)(struct rpc_call *call, const Pluginregistration__InfoRequest *request,
                    Pluginregistration__PluginInfo *response, struct err *e);
    int (*notify_registration_status)(struct rpc_call *call,
                                      const Pluginregistration__RegistrationStatus *request,
                                      Pluginregistration__RegistrationStatusResponse *response,
                                      struct err *e);
};
void rpc_server_add_registration(struct rpc_server *server, const struct registration_ops *ops,
                                 void *user);
