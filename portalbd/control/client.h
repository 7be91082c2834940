/* The other end of the control socket, for portalctl and the node agent. Blocking; any thread that
 * may block; nothing is shared between calls. */
#pragma once

#include "portalbd/control/wire.h"

/* Asks the daemon that serves this volume (its id) on this node and waits at most timeout_us for
 * the answer. args may be NULL. *ret_result (an object) is owned by the caller. -ERR_NOT_FOUND: no
 * daemon listens here. -ERR_TIMEOUT: no answer yet; what was asked may still happen. Else what the
 * daemon says. */
int control_call(const char *run_dir, const char *volume, const char *verb, const json_t *args,
                 uint64_t timeout_us, json_t **ret_result, struct err *e);

/* The same of a verb that hands a descriptor over: *ret_fd is owned by the caller, close-on-exec,
 * -1 when none came. */
int control_call_fd(const char *run_dir, const char *volume, const char *verb, const json_t *args,
                    uint64_t timeout_us, json_t **ret_result, int *ret_fd, struct err *e);

/* Does a daemon listen for this volume? */
bool control_is_live(const char *run_dir, const char *volume);

/* In the place of a volume's id this means the node agent, whose socket stands beside those of the
 * daemons. */
#define CONTROL_AGENT_NAME "node-agent"

/* Ids of the volumes that have a control socket in this run folder, live or not: an array of count
 * strings, all owned by the caller. No folder: none. The agent is not among them. */
int control_list(const char *run_dir, char ***ret_volumes, size_t *ret_count, struct err *e);
