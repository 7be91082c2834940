/* Fibers: straight-line code for sequences of waits (open, snapshot, GC, catalog calls), on the
 * owner thread of an env.
 *
 * A fiber has a small stack of its own and runs until it waits; there is no preemption and nothing
 * runs in parallel with it on its env, so what holds between two waits needs no lock. Functions
 * that may wait are marked "fiber": they may be called only inside one.
 *
 * Cancelling a fiber makes its present and every later wait return -ERR_CANCELLED at once; the
 * fiber then unwinds like after any other error, so its cleanup runs. A fiber that was cancelled
 * must not start new work: object store calls in it are refused without any effect
 * (portalbd/objstore/objstore_fiber.h). */
#pragma once

#include "common/env.h"
#include "common/err.h"

enum {
    FIBER_STACK_SIZE = 128 * 1024
}; /* bytes; reserved address space, touched on demand, with a guard page */

/* Something to wait for, in the order of the waits. Zero-initialised is NOT valid: waitq_init. */
struct waitq {
    struct list_node waiters;
};

struct fiber;

/* Starts fn(arg) in a new fiber, in a later turn of env. Owner thread. The handle is valid until fn
 * returns. */
struct fiber *fiber_start(struct env *env, void (*fn)(void *arg), void *arg);

/* The fiber that runs now, or NULL outside of any. */
struct fiber *fiber_self(struct env *env);

/* Cancels one fiber, or all of the env. Owner thread, not from the fiber itself. The fibers end in
 * later turns. */
void fiber_cancel(struct fiber *f);
void fiber_cancel_all(struct env *env);
bool fiber_cancelled(
    struct env *env); /* is the running fiber cancelled? false outside of any fiber */

void waitq_init(struct waitq *q);
bool waitq_empty(const struct waitq *q);

/* fiber. Waits until woken. 0, or -ERR_CANCELLED. */
int waitq_wait(struct env *env, struct waitq *q);
/* fiber. Waits until woken or until the delay is over: -ERR_TIMEOUT. */
int waitq_wait_for(struct env *env, struct waitq *q, uint64_t delay_us);
/* fiber. Waits until woken, even when cancelled: for completions that borrow this fiber's stack. */
void waitq_wait_always(struct env *env, struct waitq *q);
/* Owner thread, any context. The woken fibers run in later turns. */
void waitq_wake_one(struct waitq *q);
void waitq_wake_all(struct waitq *q);

/* fiber. 0, or -ERR_CANCELLED when cancelled before the time was over. */
int fiber_sleep_us(struct env *env, uint64_t delay_us);
/* fiber. Lets everything else that is ready run first. */
int fiber_yield(struct env *env);

/* fiber. Runs fn(arg) on a worker and waits for it; not cancellable: returns only when fn has
 * returned. */
void fiber_run_job(struct env *env, void (*fn)(void *arg), void *arg);
/* fiber. The same for what is now and then so little that a worker is not worth it: that, at once.
 */
void fiber_run_job_if(struct env *env, bool large, void (*fn)(void *arg), void *arg);

/* A one-shot flag with waiters: what an asynchronous completion sets. */
struct fiber_done {
    bool done;
    struct waitq waiters;
};
void fiber_done_init(struct fiber_done *d);
void fiber_done_set(struct fiber_done *d);
int fiber_done_wait(struct env *env, struct fiber_done *d); /* fiber. 0, or -ERR_CANCELLED */
/* fiber. Waits even when cancelled: for completions that borrow this fiber's stack. */
void fiber_done_wait_always(struct env *env, struct fiber_done *d);

/* Several fibers as one: start some, wait for all. A group lives on the stack of the fiber that
 * waits. */
struct fiber_group {
    struct env *env;
    struct list_node members; /* those that still run */
    struct waitq waiters;
};
void fiber_group_init(struct fiber_group *g, struct env *env);
void fiber_group_start(struct fiber_group *g, void (*fn)(void *arg), void *arg);
/* fiber. Waits for all of them, also when cancelled (then it cancels them first); -ERR_CANCELLED in
 * that case. */
int fiber_group_wait(struct fiber_group *g);

/* A mutual exclusion that may be held across waits. First come, first served. */
struct fiber_mutex {
    bool held;
    struct waitq waiters;
};
void fiber_mutex_init(struct fiber_mutex *m);
int fiber_mutex_lock(struct env *env,
                     struct fiber_mutex *m); /* fiber. 0, or -ERR_CANCELLED and not held */
void fiber_mutex_unlock(struct fiber_mutex *m);
