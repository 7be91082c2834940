/* The agent's calls as gRPC handlers. */
#pragma once

#include "csi/rpc/agent_service.h"
#include "node-agent/agent.h"

struct agent_rpc {
    struct agent *agent;  /* borrowed */
    struct loop *loop;    /* the agent's */
    uint64_t wait_us_max; /* how long a call waits for its work before it answers ABORTED */
    const char *version;
};

/* For rpc_server_add_agent, with a struct agent_rpc as user. */
extern const struct agent_ops agent_rpc_ops;
