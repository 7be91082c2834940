/* The one place that retries (E4): a layer that turns trouble of the store into a pause, and a
 * PUT's refusal into an answer.
 *
 * Above it, requests end as objstore.h says: everything that time may heal (no answer, 5xx, 409,
 * 429, also a missing bucket and refused credentials) is tried again for ever, with capped,
 * jittered, exponential pauses that honour what the store asks for. With give_up_us (command line,
 * calls with a deadline) a request instead ends with its last error, or -ERR_TIMEOUT if there was
 * none; and at once, after a few attempts, when the store refuses it (-ERR_DENIED, -ERR_NO_BUCKET,
 * -ERR_CONFIG): whoever waits for the answer is the one who can mend that. */
#pragma once

#include "portalbd/objstore/objstore.h"

struct retry_options {             /* 0 means the default */
    uint64_t pause_us_min;         /* the first pause: 100 ms */
    uint64_t pause_us_max;         /* the cap: 10 s */
    uint64_t refused_pause_us_max; /* the cap after "denied" and "no bucket": 60 s */
    uint64_t give_up_us;           /* counted from submit; 0: never */

    /* Called when the first request fails after the last one that the store answered (why != NULL),
     * and when it answers again (why == NULL). Owner thread, never inside a call; must not submit.
     */
    void (*on_trouble)(void *arg, const struct err *why);
    void *arg;
};

enum { RETRY_AFTER_US_MAX = 120 * 1000 * 1000 }; /* a longer wish of the store is cut */

/* `below` is owned: closed with the layer. */
struct objstore *objstore_retry_new(struct objstore *below, const struct retry_options *options);

struct retry_state {
    uint64_t trouble_since_us; /* env time of the first failure without an answer since; 0: none */
    struct err last;           /* the newest failure, also an old one; code 0: none ever */
    uint64_t retries_total;    /* attempts that were repeated */
    uint64_t settled_mine_total;   /* refused PUTs that turned out to be our own */
    uint64_t settled_others_total; /* ... somebody else's */
    uint64_t settled_gone_total;   /* ... gone when read back */
    uint64_t gave_up_total;        /* requests ended by give_up_us, or refused */
    size_t waiting;                /* requests that pause now */
};
/* Borrowed while the layer lives. Owner thread; the numbers also from others, atomically. */
const struct retry_state *objstore_retry_state(const struct objstore *layer);

/* The store that the layer was made on. */
const struct objstore *objstore_retry_below(const struct objstore *layer);
