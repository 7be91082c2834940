/* What comes from outside is checked here, once: every front end calls bd_validate before it
 * submits.
 *
 * Behind it a request is known to lie inside the device, to be aligned, to carry only flags that
 * its operation knows, and not to write to a read-only device: devices CHECK that instead of
 * testing it. */
#pragma once

#include "portalbd/blockdev/blockdev.h"

/* 0, or the error that its sender gets: -ERR_INVALID, -ERR_NO_SPACE (WRITE and WRITE_ZEROES behind
 * the end), -ERR_READ_ONLY. Looks at op, flags, off, len alone; measures against the size of now.
 * `e` may be NULL. */
int bd_validate(struct blockdev *dev, const struct bd_request *req, struct err *e);

/* The same as a layer: a request that is refused never reaches `below` (which it owns from now on).
 */
struct blockdev *bd_validate_open(struct blockdev *below);

const char *bd_op_name(enum bd_op op); /* "read", "write_zeroes": for logs and metrics */
