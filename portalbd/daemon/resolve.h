/* What a name or an id of `serve` means now, as the catalog says. */
#pragma once

#include "portalbd/daemon/daemon.h"

struct resolved {
    struct served_target target; /* of a volume id and name alone: the rest comes with publishing */
    bool was_ours;               /* a volume that is published to this node already */
};

/* fiber. "name": a volume; "name@snapshot"; an id of either. Waits for the store. -ERR_NOT_FOUND */
int resolve(struct daemon *d, const char *name, struct resolved *ret, struct err *e);
/* fiber. The same. Does the store fail meanwhile, or has it failed before and does not answer
 * within a second, and may_do_without(arg) is true, then -ERR_TRANSIENT. */
int resolve_unless(struct daemon *d, const char *name, bool (*may_do_without)(void *arg), void *arg,
                   struct resolved *ret, struct err *e);
