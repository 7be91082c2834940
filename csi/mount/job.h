/* Work that may block for ever (a system call on a dead device) or for long (fsck of a large
 * filesystem), on a thread of its own, so that a call can stop waiting for it.
 *
 * A job has a key, such as "mount /dev/loop3 on /x". While one with the same key is still under
 * way, a further call does not start a second one: it waits for the first one's result. */
#pragma once

#include "common/err.h"

enum {
    JOB_KEY_MAX = 512,   /* bytes; what is longer is told apart by its first bytes and its length */
    JOB_JOBS_MAX = 64,   /* jobs at once, those that nobody waits for included */
    JOB_DATA_MAX = 16384 /* bytes of arguments and results */
};

/* Runs fn on a copy of data (size bytes) and copies the changed data back. Waits timeout_ms. 0 and
 * -ERR_x come from fn; -ERR_BUSY: it has not ended yet, it goes on, and the same call may be
 * repeated to wait for it; -ERR_OVERLOAD: JOB_JOBS_MAX jobs are stuck. fn must own what it uses:
 * data holds no pointers to memory of the caller. Any thread. */
int job_run(const char *key, int (*fn)(void *data, struct err *e), void *data, size_t size,
            uint32_t timeout_ms, struct err *e);
