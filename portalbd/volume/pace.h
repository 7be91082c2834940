/* How fast writers may fill the journal: as it gets full, only as fast as it drains, so that nobody
 * runs at full speed into a wall and then waits for seconds. And how fast they may make garbage
 * that GC has not caught up with. Pure arithmetic; times are env's. */
#pragma once

#include "common/mem.h"

struct pace {
    uint64_t rate;     /* bytes a second that became free lately; 0: not known */
    uint64_t bytes;    /* ... freed since `since_us` */
    uint64_t since_us; /* 0: there is nothing to drain */
    uint64_t next_us;  /* when the next write may come */
};

/* There is something to drain from now on. */
void pace_start(struct pace *p, uint64_t now_us);
/* So many bytes became free; `empty`: nothing is left to drain. */
void pace_freed(struct pace *p, uint64_t now_us, uint64_t bytes, bool empty);
/* A write of len bytes, with `used` of `size` bytes taken, at no more than rate_max bytes a second:
 * 0: it may come now, and counts; else in how many microseconds to ask again. */
uint64_t pace_admit(struct pace *p, uint64_t now_us, uint64_t used, uint64_t size, uint64_t len,
                    uint64_t rate_max);

#define PACE_FREE UINT64_MAX
/* The rate_max of a volume where `live` bytes are needed and `debt` bytes of dead ones could go. */
uint64_t pace_debt_rate(uint64_t debt, uint64_t live);
