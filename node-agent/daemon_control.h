/* What the agent asks a running daemon over its control socket. fiber: the socket work is done on a
 * worker, within limit_us. */
#pragma once

#include "common/fiber.h"

/* The volume is at least size_bytes large afterwards; its true size comes back. -ERR_TRANSIENT: no
 * daemon answers. */
int daemon_control_grow(struct env *env, const char *run_dir, const char *volume,
                        uint64_t size_bytes, uint64_t limit_us, uint64_t *ret_size_bytes,
                        struct err *e);

/* *ret_healthy and a sentence: never empty. */
int daemon_control_health(struct env *env, const char *run_dir, const char *volume,
                          uint64_t limit_us, bool *ret_healthy, char *text, size_t text_size,
                          struct err *e);

/* Asks for a clean end, as often as one likes. */
int daemon_control_shutdown(struct env *env, const char *run_dir, const char *volume,
                            uint64_t limit_us, struct err *e);
