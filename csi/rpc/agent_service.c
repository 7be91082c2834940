/* The node agent's service as typed handlers and stubs, out of the list of its methods. */
#include "csi/rpc/agent_service.h"

RPC_SERVICE_DEFINE(agent, Portalbd__Agent__V1__, portalbd__agent__v1__, "portalbd.agent.v1.Agent",
                   portalbd__agent__v1__agent__descriptor, AGENT_METHODS)
