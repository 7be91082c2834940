/* Manifests on the store: the newest, the next, and "is mine still the newest?" (design: numbered
 * records). Fibers. */
#pragma once

#include "portalbd/format/root.h"
#include "portalbd/objstore/objstore_fiber.h"

/* The newest manifest. -ERR_NOT_FOUND only when the volume has none at all; one that went away
 * between LIST and GET is listed again. */
int manifest_newest(struct objstore *s, const struct volume_key *v, struct manifest *ret,
                    struct err *e);
/* The number of the newest; 0 when there is none. */
int manifest_newest_number(struct objstore *s, const struct volume_key *v, uint64_t *ret_n,
                           struct err *e);
int manifest_get(struct objstore *s, const struct volume_key *v, uint64_t n, struct manifest *ret,
                 struct err *e);
/* Puts m at m->number. 0; -ERR_EXISTS: somebody else's is there; -ERR_STALE: unknown. */
int manifest_put(struct objstore *s, const struct volume_key *v, const struct manifest *m,
                 struct err *e);
/* 0 when number n is the newest, else -ERR_FENCED. What follows every put that opens, collects,
 * restores, grows, deletes. */
int manifest_check_newest(struct objstore *s, const struct volume_key *v, uint64_t n,
                          struct err *e);
