/* The services of csi.v1 as typed handlers and stubs, out of the lists of their methods. */
#include "csi/rpc/csi_service.h"

RPC_SERVICE_DEFINE(csi_identity, Csi__V1__, csi__v1__, "csi.v1.Identity",
                   csi__v1__identity__descriptor, CSI_IDENTITY_METHODS)
RPC_SERVICE_DEFINE(csi_controller, Csi__V1__, csi__v1__, "csi.v1.Controller",
                   csi__v1__controller__descriptor, CSI_CONTROLLER_METHODS)
RPC_SERVICE_DEFINE(csi_node, Csi__V1__, csi__v1__, "csi.v1.Node", csi__v1__node__descriptor,
                   CSI_NODE_METHODS)
