/* The service portalbd.agent.v1.Agent (proto/agent.proto): handlers for the agent, stubs for who
 * calls it (agent_attach_volume and so on). */
#pragma once

#include "agent.pb-c.h"
#include "csi/rpc/service.h"

#define AGENT_METHODS(X, ...)                                                                      \
    X(__VA_ARGS__, AttachVolume, attach_volume)                                                    \
    X(__VA_ARGS__, DetachVolume, detach_volume)                                                    \
    X(__VA_ARGS__, ListAttachments, list_attachments)                                              \
    X(__VA_ARGS__, GrowVolume, grow_volume)                                                        \
    X(__VA_ARGS__, GetVolumeHealth, get_volume_health)                                             \
    X(__VA_ARGS__, GetInfo, get_info)

RPC_SERVICE_DECLARE(agent, Portalbd__Agent__V1__, AGENT_METHODS)
