/* The world as a state machine sees it: time, randomness, turns of the loop and jobs on workers.
 *
 * An env belongs to one owner thread. Whatever runs "on the env" runs on that thread, one thing at
 * a time, and never inside somebody else's call: callbacks are always asynchronous. common/loop.h
 * implements it on libuv, tests/sim on a virtual clock. Code that only uses an env (and an object
 * store) is deterministic: given the same events it does the same. */
#pragma once

#include "common/list.h"

struct env;

/* One turn: fn runs once on the owner thread. The owner of the struct keeps it alive until fn has
 * been entered. */
struct env_event {
    struct env_event *next; /* env's own */
    void (*fn)(struct env_event *event);
};

/* A one-shot timer. Zero-initialised is stopped. It must be stopped before its memory goes. */
struct env_timer {
    void (*fn)(struct env_timer *timer);
    uint64_t due_us;   /* env's own */
    uint64_t order;    /* env's own */
    size_t heap_index; /* env's own: index + 1, 0 when stopped */
};

/* Work for another thread: run() on a worker, must not touch what the owner thread owns; then
 * done() on the owner thread. */
struct env_job {
    struct env_job *next;   /* env's own */
    struct env *env;        /* env's own */
    struct env_event event; /* env's own */
    void (*run)(struct env_job *job);
    void (*done)(struct env_job *job);
};

struct env_ops {
    uint64_t (*now_us)(struct env *env);
    uint64_t (*wall_ms)(struct env *env);
    void (*random)(struct env *env, void *buf, size_t len);
    void (*post)(struct env *env, struct env_event *event);
    void (*timer_start)(struct env *env, struct env_timer *timer, uint64_t delay_us);
    void (*timer_stop)(struct env *env, struct env_timer *timer);
    void (*job_submit)(struct env *env, struct env_job *job);
};

struct fiber;

struct env {
    const struct env_ops *ops;
    struct fiber *fiber_current; /* common/fiber.c's own: the fiber that runs now, or NULL */
    struct list_node fibers;     /* common/fiber.c's own: all that have not ended */
    void *fiber_stacks;          /* common/fiber.c's own: free stacks */
};

/* Microseconds on a clock that only goes forward; the zero point means nothing. Owner thread. */
static inline uint64_t env_now_us(struct env *env) {
    return env->ops->now_us(env);
}

/* Milliseconds since 1970 UTC, for people and records only: no decision may hang on it. */
static inline uint64_t env_wall_ms(struct env *env) {
    return env->ops->wall_ms(env);
}

/* Random bytes, good enough for nonces and ids (in the real env from the kernel). */
static inline void env_random(struct env *env, void *buf, size_t len) {
    env->ops->random(env, buf, len);
}

static inline uint64_t env_random_u64(struct env *env) {
    uint64_t v;
    env->ops->random(env, &v, sizeof v);
    return v;
}

/* Runs event->fn in a later turn, in the order of the posts. Any thread. */
static inline void env_post(struct env *env, struct env_event *event) {
    env->ops->post(env, event);
}

/* (Re)starts the timer: fn runs once, delay_us from now or later. Owner thread. */
static inline void env_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_us) {
    env->ops->timer_start(env, timer, delay_us);
}

/* Stops the timer if it is running; fn does not run any more. Owner thread. */
static inline void env_timer_stop(struct env *env, struct env_timer *timer) {
    env->ops->timer_stop(env, timer);
}

static inline bool env_timer_running(const struct env_timer *timer) {
    return timer->heap_index != 0;
}

/* Owner thread. job stays alive until done() has been entered. */
static inline void env_job_submit(struct env *env, struct env_job *job) {
    job->env = env;
    env->ops->job_submit(env, job);
}

/* Called by implementations of env, first and last. env_release CHECKs that no fiber is left. */
void env_init(struct env *env, const struct env_ops *ops);
void env_release(struct env *env);
/* Its fibers use the same free stacks as those of `with`, which has the same owner thread: for
 * programs in which envs come and go. */
void env_init_sharing_stacks(struct env *env, const struct env_ops *ops, struct env *with);
