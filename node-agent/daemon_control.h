/* What the agent asks a running daemon over its control socket. fiber: the socket work is done on a
 * worker, within limit_us. */
#pragma once

#include "common/fiber.h"

/* Who is asked, and how long its answer may take. Strings are borrowed for the call. */
struct daemon_address {
    struct env *env;
    const char *run_dir;
    const char *volume;
    uint64_t limit_us;
};

/* The volume is at least size_bytes large afterwards; its true size comes back. -ERR_TRANSIENT: no
 * daemon answers. */
int daemon_control_grow(const struct daemon_address *to, uint64_t size_bytes,
                        uint64_t *ret_size_bytes, struct err *e);

struct daemon_status {
    int64_t pid;
    bool healthy;
    char health[256];  /* "ok", or what is wrong: never empty */
    char unsaved[256]; /* what is not in the store, in words; "": everything is */
    char version[32];  /* of the daemon */
};
int daemon_control_status(const struct daemon_address *to, struct daemon_status *ret,
                          struct err *e);

/* A copy of the descriptor of the daemon's device: it goes on serving. Owned by the caller. */
int daemon_control_device(const struct daemon_address *to, int *ret_fd, struct err *e);
/* The same, and the daemon ends: a successor is to resume with it. -ERR_BUSY: it goes on serving.
 */
int daemon_control_handover(const struct daemon_address *to, int *ret_fd, struct err *e);

/* Asks for a clean end, as often as one likes. */
int daemon_control_shutdown(const struct daemon_address *to, struct err *e);
