/* A small env for unit tests: a clock that only moves when everything that is ready has run, seeded
 * randomness, jobs that run as turns. Single-threaded and deterministic. */
#pragma once

#include "common/env.h"
#include "common/timer_heap.h"

struct virtual_env {
    struct env env;
    uint64_t now_us;
    uint64_t random_state;
    struct env_event *first;
    struct env_event **tail;
    struct timer_heap timers;
};

void virtual_env_init(struct virtual_env *v, uint64_t seed);
void virtual_env_release(struct virtual_env *v); /* nothing may be left to run */

/* Runs what is ready, now; timers that are due too. The clock stands. */
void virtual_env_run_ready(struct virtual_env *v);
/* Runs until nothing is left or until_us is reached: the clock jumps from timer to timer. */
void virtual_env_run_until(struct virtual_env *v, uint64_t until_us);
/* Runs until nothing is left. */
void virtual_env_run(struct virtual_env *v);
/* Runs fn(arg) in a fiber until nothing is left. */
void virtual_env_call(struct virtual_env *v, void (*fn)(void *arg), void *arg);
