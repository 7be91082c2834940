/* Read-ahead for sequential readers.
 *
 *   a READ that misses --> candidate --READ exactly behind it--> stream --READs near `next`--> ...
 *
 * A stream's reader is at `next`; what lies between `next` and `ahead` is in the cache or on its
 * way. Whenever less than the window is ahead, units are fetched, each with as few GETs as its data
 * allows. The window starts small and doubles while the reader still runs into data that is not
 * there: so it comes to cover bandwidth x delay, and not more. Only a READ that goes on where its
 * stream is makes it fetch: when the pattern breaks, nothing more is fetched.
 *
 * What is fetched goes to the cache as "read once" (ram_cache.h), so a scan does not push out what
 * is in use; a READ that comes before its data waits for the unit under way (read.c).
 *
 * I1 The bytes ahead of all streams together are at most read_ahead_budget(). I2 ops <= OPS_MAX. I3
 * next <= ahead for each stream. */
#include <stdlib.h>

#include "portalbd/volume/volume_internal.h"

enum {
    BUDGET_MAX = 32 * 1024 * 1024,          /* bytes ahead of all readers of a volume */
    BUDGET_PART = 4,                        /* ... and of the cache: a quarter */
    WINDOW_MIN = 1024 * 1024 / SECTOR_SIZE, /* sectors of a first window */
    UNIT_MAX = 4 * 1024 * 1024 / SECTOR_SIZE,
    WINDOW_UNITS = 8,        /* units that make a window: as many GETs side by side */
    WINDOW_READS = 4,        /* the first window, in READs */
    OPS_MAX = 32,            /* units under way */
    SLACK_READS = 16,        /* READs that may overtake each other */
    BEGIN_BYTES = 16 * 1024, /* read in sequence before something is fetched */
    ACTIVE_READS = 256, /* a stream that none of so many READs of streams belonged to is idle */
};

uint64_t read_ahead_budget(uint64_t cache_size) {
    return MIN(cache_size / BUDGET_PART, (uint64_t)BUDGET_MAX);
}

/* --- one unit --- */

static void unit_fiber(struct volume *v, void *arg) {
    struct read_op *op = arg;
    uint64_t bytes = op->count * SECTOR_SIZE;
    struct err ignored = {0}; /* whoever wants the data will meet the error, and say so */
    if (read_op_run_ahead(v, op, &ignored) == 0)
        v->stats.read_ahead_bytes += bytes;
    read_op_end(v, op);
    free(op);
    CHECK(v->ahead.ops > 0);
    v->ahead.ops--;
}

static void fetch_unit(struct volume *v, uint64_t sector, uint64_t count) {
    struct read_op *op = NEW(struct read_op);
    read_op_start(v, op, sector, count);
    op->fetches = true;
    v->ahead.ops++;
    volume_fiber_start(v, unit_fiber, op);
}

/* --- streams --- */

static bool is_idle(const struct volume *v, const struct read_stream *s) {
    return v->ahead.clock - s->last_used > ACTIVE_READS;
}

static void forget(struct volume *v, struct read_stream *s) {
    v->stats.read_ahead_unread += (s->ahead - s->next) * SECTOR_SIZE;
    *s = (struct read_stream){0};
}

/* Sectors ahead of all streams but this one; idle ones lose theirs. */
static uint64_t ahead_of_others(struct volume *v, const struct read_stream *mine,
                                size_t *ret_active) {
    uint64_t sum = 0;
    *ret_active = 1;
    for (size_t i = 0; i < READ_STREAMS_MAX; i++) {
        struct read_stream *s = &v->ahead.streams[i];
        if (s == mine || s->next == 0)
            continue;
        if (is_idle(v, s)) {
            forget(v, s);
            continue;
        }
        CHECK(s->next <= s->ahead);
        sum += s->ahead - s->next;
        ++*ret_active;
    }
    return sum;
}

/* Fetches until the window is full. Where the budget is no more than a READ or two, READs do as
 * well alone. */
static void fill_window(struct volume *v, struct read_stream *s, uint64_t count) {
    size_t active;
    uint64_t budget = read_ahead_budget(v->config.cache_size) / SECTOR_SIZE;
    uint64_t others = ahead_of_others(v, s, &active);
    s->window = MIN(s->window, budget / active);
    if (s->window < 2 * count)
        return;
    uint64_t end = v->size_bytes / SECTOR_SIZE;
    uint64_t unit = s->window / WINDOW_UNITS;
    unit = MIN(MAX(unit, (uint64_t)FRAME_SECTORS_MAX), (uint64_t)UNIT_MAX);
    while (s->ahead < end && v->ahead.ops < OPS_MAX) {
        uint64_t n = MIN(unit, end - s->ahead);
        uint64_t ahead = s->ahead + n - s->next;
        if (ahead > s->window || ahead + others > budget)
            return;
        fetch_unit(v, s->ahead, n);
        s->ahead += n;
    }
}

/* A READ of the stream. */
static void advance(struct volume *v, struct read_stream *s, uint64_t sector, uint64_t count,
                    bool cached) {
    s->last_used = ++v->ahead.clock;
    s->next = MAX(s->next, sector + count);
    s->ahead = MAX(s->ahead, s->next);
    /* It caught up with what is ahead. Once is enough for all READs that the old window covered. */
    if (!cached && s->next >= s->grown_at + s->window / 2) {
        s->window *= 2;
        s->grown_at = s->next;
    }
    fill_window(v, s, count);
}

static struct read_stream *find_stream(struct volume *v, uint64_t sector, uint64_t count) {
    for (size_t i = 0; i < READ_STREAMS_MAX; i++) {
        struct read_stream *s = &v->ahead.streams[i];
        uint64_t slack = MIN(SLACK_READS * count, s->window);
        if (s->next != 0 && sector + slack >= s->next && sector <= s->next + slack)
            return s;
    }
    return NULL;
}

static struct read_stream *new_stream(struct volume *v) {
    struct read_stream *oldest = &v->ahead.streams[0];
    for (size_t i = 0; i < READ_STREAMS_MAX; i++) {
        struct read_stream *s = &v->ahead.streams[i];
        if (s->next == 0)
            return s;
        if (s->last_used < oldest->last_used)
            oldest = s;
    }
    forget(v, oldest);
    return oldest;
}

/* A READ that belongs to no stream and missed. */
static void note_candidate(struct volume *v, uint64_t sector, uint64_t count) {
    struct read_ahead *a = &v->ahead;
    uint64_t bytes = count * SECTOR_SIZE;
    for (size_t i = 0; i < READ_CANDIDATES_MAX; i++) {
        if (a->candidates[i].next != sector || sector == 0)
            continue;
        a->candidates[i].next += count;
        a->candidates[i].bytes += bytes;
        if (a->candidates[i].bytes < BEGIN_BYTES)
            return;
        a->candidates[i].next = 0;
        struct read_stream *s = new_stream(v);
        *s = (struct read_stream){.next = sector + count,
                                  .ahead = sector + count,
                                  .window = MAX(WINDOW_READS * count, (uint64_t)WINDOW_MIN),
                                  .grown_at = sector + count,
                                  .last_used = ++a->clock};
        fill_window(v, s, count);
        return;
    }
    a->candidates[a->candidate_at].next = sector + count;
    a->candidates[a->candidate_at].bytes = bytes;
    a->candidate_at = (a->candidate_at + 1) % READ_CANDIDATES_MAX;
}

void read_ahead_note(struct volume *v, uint64_t sector, uint64_t count, bool cached) {
    CHECK(count > 0);
    struct read_stream *s = find_stream(v, sector, count);
    if (s)
        advance(v, s, sector, count, cached);
    else if (!cached)
        note_candidate(v, sector, count);
}
