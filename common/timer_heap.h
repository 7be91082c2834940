/* A binary heap of timers, for implementations of struct env. Ties run in the order of their
 * starts. */
#pragma once

#include "common/env.h"

struct timer_heap {
    struct env_timer **items; /* owned array of borrowed timers */
    size_t count;
    size_t cap;
    uint64_t order; /* next tie breaker */
};

void timer_heap_release(struct timer_heap *h);
void timer_heap_start(struct timer_heap *h, struct env_timer *t, uint64_t due_us);
void timer_heap_stop(struct timer_heap *h, struct env_timer *t);
struct env_timer *timer_heap_first(const struct timer_heap *h); /* earliest, or NULL */
