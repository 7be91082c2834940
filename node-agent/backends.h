/* Which ways of making devices this node has. */
#pragma once

#include "node-agent/agent.h"

struct backends_config {
    const char *const *names; /* wanted, the preferred one first */
    size_t count;
    const char *run_dir;
    struct attach_nbd_config nbd;
};

/* Opens and probes them; what a node cannot do stays in the list with the reason. -ERR_CONFIG: not
 * a backend's name. -ERR_UNSUPPORTED: none works; ret is filled in nevertheless. Blocks. */
int backends_open(const struct backends_config *config,
                  struct agent_backend ret[AGENT_BACKENDS_MAX], size_t *ret_count, struct err *e);
void backends_close(struct agent_backend *backends, size_t count);
