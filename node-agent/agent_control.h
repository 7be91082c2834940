/* The agent's calls on a control socket, <run_dir>/node-agent.sock, for portalctl and for people
 * (docs/control.md): what agent.proto offers, as lines of JSON. */
#pragma once

#include "node-agent/agent.h"
#include "portalbd/control/server.h"

struct agent_control;

/* wait_us: how long a request waits for its work unless it says otherwise. */
int agent_control_start(struct agent *agent, uint64_t wait_us, struct agent_control **ret,
                        struct err *e);
/* fiber. After agent_interrupt. NULL is fine. */
void agent_control_stop(struct agent_control *c);
