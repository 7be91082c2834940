/* One operation at a time on a volume or snapshot.
 *
 * A call that repeats one that is under way (a sidecar gave up waiting and asks again) waits for it
 * and then runs itself: every operation is idempotent, so it finds the work done and gives the same
 * answer. Other calls wait only a moment and are then ABORTED, with what stands in their way. */
#pragma once

#include "common/list.h"
#include "csi/rpc/rpc.h"

enum {
    OPLOCK_OTHER_WAIT_MS = 5000,    /* how long a call waits for a different one */
    OPLOCK_SAME_WAIT_MS = 60000,    /* ... for an equal one, when the client set no deadline */
    OPLOCK_DEADLINE_SPARE_MS = 500, /* before its deadline a call is answered */
    OPLOCK_WAITERS_MAX = 4          /* calls that wait for one volume; more are ABORTED at once */
};

struct oplocks;
struct oplocks *oplocks_new(void);
void oplocks_free(struct oplocks *l); /* nothing may be held */

struct oplock;
/* Holds `key` (a volume's id, ...) for this call; `request` tells equal calls from different ones.
 * -ERR_BUSY (ABORTED), -ERR_CANCELLED. */
int oplock_acquire(struct oplocks *l, const char *key, const struct rpc_call *call,
                   const ProtobufCMessage *request, struct oplock **ret, struct err *e);
void oplock_release(struct oplock *o); /* NULL is fine */

static inline void oplock_cleanup(struct oplock **o) {
    oplock_release(*o);
}
#define CLEANUP_OPLOCK CLEANUP(oplock_cleanup)
