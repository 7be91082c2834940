/* The ways to write a unix socket's address: unix:///run/x.sock, unix:/run/x.sock, /run/x.sock. */
#pragma once

#include "common/err.h"

/* The absolute path in it, borrowed from `endpoint`. -ERR_INVALID: not one of these forms, or the
 * path does not fit a socket address (107 bytes). */
int endpoint_path(const char *endpoint, const char **ret_path, struct err *e);
