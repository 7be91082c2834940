/* Pacing of writers.
 *
 * Below 3/4 of the journal they are free. From there on the rate that is allowed falls evenly, from
 * twice the drain rate to nothing at the end, so that it settles at 7/8 if they could go faster. A
 * measurement that is too low corrects itself: the journal then drains to where it does not count.
 *
 * While nothing drains at all (a PUT that takes seconds, a store that is away) what is left of the
 * journal is given out over LAST_S.
 *
 * The debt of GC is dead bytes that it could free, and has not yet. Below a twelfth of what is live
 * it is no reason to wait. From there on the allowed rate falls with the fourth power of the debt,
 * from as fast as anybody can to a trickle: wherever GC's own pace lies, there is a place in
 * between where it keeps up, and nothing has to be known about it; and there is no wall.
 *
 * I1 A write is held back only if the journal is at 3/4 or more or there is a rate_max, and never
 * for more than WAIT_US_MAX at a time. */
#include "portalbd/volume/pace.h"

enum {
    SAMPLE_US = 250 * 1000, /* of the drain rate */
    BURST_US = 2 * 1000,    /* timers are not more exact */
    WAIT_US_MAX = 1000 * 1000,
    LAST_S = 10,
    RATE_MIN = 64 * 1024, /* bytes a second */
    DEBT_FROM = 8,        /* percent of what is live */
    DEBT_MIDDLE = 16,     /* ... where it is DEBT_RATE */
    DEBT_RATE = 64 << 20,
};

void pace_start(struct pace *p, uint64_t now_us) {
    if (p->since_us != 0)
        return;
    p->since_us = MAX(now_us, UINT64_C(1));
    p->bytes = 0;
}

void pace_freed(struct pace *p, uint64_t now_us, uint64_t bytes, bool empty) {
    CHECK(p->since_us != 0 && now_us >= p->since_us);
    p->bytes += bytes;
    uint64_t us = now_us - p->since_us;
    if (us >= SAMPLE_US) {
        uint64_t sample = p->bytes * 1000000 / us;
        p->rate = p->rate ? (p->rate + sample) / 2 : sample;
        p->since_us = now_us;
        p->bytes = 0;
    }
    if (empty)
        p->since_us = 0; /* a short time says nothing */
}

/* The rate, or less when nothing has become free for longer than it would take. */
static uint64_t current_rate(const struct pace *p, uint64_t now_us) {
    uint64_t us = p->since_us ? now_us - p->since_us : 0;
    if (us <= SAMPLE_US)
        return p->rate;
    return MIN(p->rate, (p->bytes + p->rate / (1000000 / SAMPLE_US)) * 1000000 / us);
}

/* What the journal allows; PACE_FREE below 3/4. */
static uint64_t journal_rate(const struct pace *p, uint64_t now_us, uint64_t used, uint64_t size) {
    if (used < size / 4 * 3 || p->rate == 0)
        return PACE_FREE;
    uint64_t left = size - used;
    uint64_t eighths = left * 8 * 1024 / size; /* of 1024: 2048 at 3/4, 1024 at 7/8 */
    return MAX(current_rate(p, now_us) / 1024 * eighths, left / LAST_S);
}

uint64_t pace_admit(struct pace *p, uint64_t now_us, uint64_t used, uint64_t size, uint64_t len,
                    uint64_t rate_max) {
    CHECK(size > 0);
    CHECK(used <= size);
    uint64_t rate = MIN(journal_rate(p, now_us, used, size), rate_max);
    if (rate == PACE_FREE) {
        p->next_us = now_us;
        return 0;
    }
    if (p->next_us > now_us + BURST_US)
        return MIN(p->next_us - now_us, (uint64_t)WAIT_US_MAX);
    uint64_t cost_us = len * 1000000 / MAX(rate, (uint64_t)RATE_MIN);
    p->next_us = MAX(p->next_us, now_us) + MIN(cost_us, (uint64_t)WAIT_US_MAX);
    return 0;
}

uint64_t pace_debt_rate(uint64_t debt, uint64_t live) {
    CHECK(live > 0);
    uint64_t percent = debt / (live / 100 + 1);
    if (percent <= DEBT_FROM)
        return PACE_FREE;
    double x = DEBT_MIDDLE * (double)live / 100 / (double)debt;
    return (uint64_t)MAX(DEBT_RATE * x * x * x * x, (double)RATE_MIN);
}
