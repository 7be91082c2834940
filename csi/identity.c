/* csi.v1.Identity. All instances of one version say the same, whatever their mode. */
#include "csi/driver.h"

static int get_plugin_info(struct rpc_call *call, const Csi__V1__GetPluginInfoRequest *request,
                           Csi__V1__GetPluginInfoResponse *response, struct err *e) {
    (void)request;
    (void)e;
    const struct identity *identity = rpc_call_user(call);
    response->name = (char *)CSI_DRIVER_NAME;
    response->vendor_version = (char *)identity->version;
    return 0;
}

static Csi__V1__PluginCapability *capability_new(struct rpc_call *call) {
    return RPC_NEW(call, Csi__V1__PluginCapability, csi__v1__plugin_capability__init);
}

static int get_plugin_capabilities(struct rpc_call *call,
                                   const Csi__V1__GetPluginCapabilitiesRequest *request,
                                   Csi__V1__GetPluginCapabilitiesResponse *response,
                                   struct err *e) {
    (void)request;
    (void)e;
    Csi__V1__PluginCapability *controller = capability_new(call), *expansion = capability_new(call);
    response->capabilities = RPC_NEW_ARRAY(call, Csi__V1__PluginCapability *, 2);
    if (!controller || !expansion || !response->capabilities)
        return 0; /* rpc_alloc: answered with RESOURCE_EXHAUSTED */
    controller->type_case = CSI__V1__PLUGIN_CAPABILITY__TYPE_SERVICE;
    controller->service = RPC_NEW(call, Csi__V1__PluginCapability__Service,
                                  csi__v1__plugin_capability__service__init);
    expansion->type_case = CSI__V1__PLUGIN_CAPABILITY__TYPE_VOLUME_EXPANSION;
    expansion->volume_expansion = RPC_NEW(call, Csi__V1__PluginCapability__VolumeExpansion,
                                          csi__v1__plugin_capability__volume_expansion__init);
    if (!controller->service || !expansion->volume_expansion)
        return 0;
    controller->service->type = CSI__V1__PLUGIN_CAPABILITY__SERVICE__TYPE__CONTROLLER_SERVICE;
    expansion->volume_expansion->type = CSI__V1__PLUGIN_CAPABILITY__VOLUME_EXPANSION__TYPE__ONLINE;
    response->n_capabilities = 2;
    response->capabilities[0] = controller;
    response->capabilities[1] = expansion;
    return 0;
}

static int probe(struct rpc_call *call, const Csi__V1__ProbeRequest *request,
                 Csi__V1__ProbeResponse *response, struct err *e) {
    (void)request;
    const struct identity *identity = rpc_call_user(call);
    if (identity->ready && !identity->ready(identity->arg, e))
        return e->code;
    response->ready =
        RPC_NEW(call, Google__Protobuf__BoolValue, google__protobuf__bool_value__init);
    if (response->ready)
        response->ready->value = 1;
    return 0;
}

const struct csi_identity_ops identity_ops = {
    .get_plugin_info = get_plugin_info,
    .get_plugin_capabilities = get_plugin_capabilities,
    .probe = probe,
};
