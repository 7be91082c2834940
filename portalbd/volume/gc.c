/* When GC of a live volume runs, and the order of what it does.
 *
 *   scrub (once an open)   LIST the prefix: objects that this process did not write become known
 *   mark                   what the newest stored root needs: its runs with their parts and the
 *                          objects that they name, less the evacuated ones, and its tail
 *   sweep                  what is known and not marked, and of segments lies below next_seq, is
 *                          garbage: nothing of ours will ever name it again
 *   round                  condemned, and deleted unless a pin needs it
 *
 * What pins need stays known as HELD, and is looked at again when the pins have changed. A list of
 * condemned ranges is bounded; what does not fit waits for the next round. Nothing of all this is
 * needed after a crash: the next open's scrub finds it again. */
#include <stdlib.h>

#include "common/log.h"
#include "portalbd/volume/flatten.h"
#include "portalbd/volume/moving.h"

enum {
    ROUNDS_MAX = 1024,           /* of one pass */
    HIDDEN_SHARE = 5,            /* percent of what the bottom names: as much may stay hidden */
    DEBT_SHARE = 150,            /* percent of what is live: above it GC does not rest */
    FRESH_SHARE = 8,             /* of it: so much is believed of what GC has not looked at */
    BEHIND_SHARE = 5,            /* dead bytes, one part in so many of what is live: nor then */
    SMALL_MOVES = 16,            /* a volume that holds less than so many moves gain is small */
    ROUND_EVERY = 4,             /* moves, when GC is behind */
    STUCK_US = 10 * 1000 * 1000, /* nothing paid for so long: waiting for it is no use */
    STUCK_STEPS = 4,             /* or for so many times what it took the last time */
    REST_US_MAX = 2 * 1000 * 1000,
    HURRY = 8,     /* one part in so many of the delay, when GC is behind */
    MAP_SHARE = 8, /* the map may be one part in so many of what a merge may find */
};

static void on_timer(struct env_timer *timer);

struct gc *gc_new(struct volume *v) {
    struct gc *g = NEW(struct gc);
    g->v = v;
    g->timer.fn = on_timer;
    fiber_mutex_init(&g->mutex);
    waitq_init(&g->stopping);
    own_objects_init(&g->objects);
    return g;
}

void gc_free(struct gc *g) {
    if (!g)
        return;
    CHECK(!env_timer_running(&g->timer));
    own_objects_release(&g->objects);
    condemned_list_release(&g->condemned);
    pin_list_release(&g->pins);
    pin_needs_release(&g->needs);
    free(g->old_manifests);
    free(g->suspects);
    small_segments_release(&g->small);
    free(g->dropped);
    free(g);
}

bool gc_must_stop(const struct gc *g) {
    return g->stopped || (g->v->state != VOL_OPEN && g->v->state != VOL_CLOSING);
}

/* --- passes --- */

/* fiber; g->mutex held. thorough: also for what alone is no reason for a round. */
static int rounds(struct gc *g, bool thorough, struct err *e) {
    bool progress = true;
    int rc = gc_reconsider_held(g, e);
    for (int i = 0; rc == 0 && progress && i < ROUNDS_MAX && !gc_must_stop(g); i++) {
        bool due = g->garbage > 0 || gc_old_manifests(g) > (thorough ? 0 : MANIFESTS_SPARED);
        progress = false;
        if (due)
            rc = gc_round(g, &progress, e);
        if (rc == 0 && progress)
            rc = gc_find_garbage(g, e);
    }
    return rc;
}

/* What runs above the bottom name may shadow as much below them, and nobody sees it before they are
 * merged. Is that worth writing the whole map anew? */
static bool hides_much(const struct gc *g) {
    const struct volume *v = g->v;
    uint64_t above = 0, bottom = 0, map = 0;
    for (size_t i = 0; i < v->run_count; i++) {
        const struct run_index *x = run_reader_index(v->runs[i]);
        uint64_t bytes = 0;
        for (size_t u = 0; u < x->usage_count; u++)
            bytes += x->usage[u].bytes;
        *(i + 1 < v->run_count ? &above : &bottom) += bytes;
        map += v->manifest.root.runs[i].size;
    }
    return above >= v->config.gc_move_bytes && above / HIDDEN_SHARE > bottom / 100 &&
           map <= above / MAP_SHARE;
}

/* --- debt --- */

/* What the debt is measured by. */
static uint64_t debt_scale(const struct gc *g) {
    uint64_t gain = MIN(g->v->config.gc_move_bytes, (uint64_t)SEGMENT_SIZE_MAX);
    return MAX(MIN(g->live_bytes, g->v->size_bytes), gain * SMALL_MOVES);
}

/* Dead bytes that GC could free now, and what writers have added since it looked, if they overwrite
 * at all. Whether GC can free that is not known: no more than the rest of it, or a little. */
static uint64_t debt(const struct gc *g) {
    double dead = g->stored_lately > 0 ? 1 - g->live_lately / g->stored_lately : 0;
    double fresh = (double)(g->noted_bytes + g->unjudged_bytes) * MIN(MAX(dead, 0.0), 1.0);
    return g->debt_bytes + MIN((uint64_t)fresh, MAX(g->debt_bytes, debt_scale(g) / FRESH_SHARE));
}

bool gc_is_behind(const struct gc *g) {
    return g->debt_bytes > debt_scale(g) / BEHIND_SHARE;
}

void gc_paid(struct gc *g) {
    uint64_t now = env_now_us(g->v->env);
    CHECK(now >= g->paid_us && now >= g->began_us);
    g->step_us = now - MAX(g->paid_us, g->began_us);
    g->paid_us = MAX(now, UINT64_C(1));
}

uint64_t gc_write_rate(const struct gc *g) {
    const struct volume *v = g->v;
    uint64_t patience = MAX((uint64_t)STUCK_US, g->step_us * STUCK_STEPS);
    bool pays = g->paid_us > 0 && env_now_us(v->env) - g->paid_us <= patience;
    if (v->state != VOL_OPEN || v->config.gc_off || !pays)
        return PACE_FREE;
    return pace_debt_rate(debt(g), debt_scale(g));
}

/* --- a pass --- */

/* fiber. Moving takes half of the time at most, so that requests of the volume's users find room at
 * workers and store, unless garbage is about to win. */
static int rest(struct gc *g, uint64_t worked_us, struct err *e) {
    uint64_t used = g->objects.bytes - MIN(g->held_bytes, g->objects.bytes);
    if (used / DEBT_SHARE > g->live_bytes / 100 || gc_is_behind(g) || gc_must_stop(g))
        return 0;
    int rc = waitq_wait_for(g->v->env, &g->stopping, MIN(worked_us, (uint64_t)REST_US_MAX));
    return rc == -ERR_CANCELLED ? err_set(e, rc, "GC was cancelled") : 0;
}

/* fiber. What is garbage, also where older runs would hide much of it. */
static int look(struct gc *g, struct err *e) {
    int rc = gc_find_garbage(g, e);
    if (rc < 0 || !hides_much(g))
        return rc;
    rc = levels_collapse(g->v, e);
    return rc == 0 ? gc_find_garbage(g, e) : rc;
}

/* fiber. One batch, and what it leaves is deleted. Far behind, several batches share a round. */
static int move_some(struct gc *g, bool thorough, int i, bool *ret_moved, struct err *e) {
    uint64_t from = env_now_us(g->v->env);
    int rc = gc_move(g, thorough, ret_moved, e);
    if (rc == 0 && !*ret_moved && g->garbage > 0)
        rc = rounds(g, thorough, e);
    if (rc < 0 || !*ret_moved)
        return rc;
    g->moved = true;
    rc = look(g, e);
    if (rc == 0 && (!gc_is_behind(g) || i % ROUND_EVERY == ROUND_EVERY - 1))
        rc = rounds(g, thorough, e);
    return rc == 0 && !thorough ? rest(g, env_now_us(g->v->env) - from, e) : rc;
}

/* fiber; g->mutex held. thorough: all that can be done, whether it is worth it or not. */
static int pass(struct gc *g, bool thorough, struct err *e) {
    g->began_us = env_now_us(g->v->env);
    g->moved = false;
    if (g->paid_us == 0)
        g->paid_us = MAX(g->began_us, UINT64_C(1)); /* the first time it is believed to work */
    int rc = look(g, e);
    bool moved = true;
    if (rc == 0)
        rc = rounds(g, thorough, e);
    for (int i = 0; rc == 0 && moved && i < ROUNDS_MAX && !gc_must_stop(g); i++)
        rc = move_some(g, thorough, i, &moved, e);
    if (rc == 0 && !gc_must_stop(g))
        rc = gc_flatten(g, &moved, e);
    if (rc == 0 && moved && !gc_must_stop(g)) {
        rc = gc_find_garbage(g, e);
        if (rc == 0)
            rc = rounds(g, thorough, e);
    }
    return rc == 0 && !gc_must_stop(g) ? gc_release_held_pins(g, e) : rc;
}

static int scrub_and_pass(struct gc *g, bool thorough, struct err *e) {
    int rc = g->scrubbed ? 0 : gc_scrub(g, e);
    return rc == 0 && !gc_must_stop(g) ? pass(g, thorough, e) : rc;
}

static void gc_fiber(struct volume *v, void *arg) {
    struct gc *g = arg;
    struct err e = {0};
    int rc = fiber_mutex_lock(v->env, &g->mutex);
    if (rc == 0) {
        if (!gc_must_stop(g))
            rc = scrub_and_pass(g, false, &e);
        fiber_mutex_unlock(&g->mutex);
    }
    g->running = false;
    if (rc < 0 && !gc_must_stop(g) && rc != -ERR_CANCELLED && rc != -ERR_FENCED)
        log_warn("garbage stays until the next checkpoint", LOG_STR("volume", v->config.key.text),
                 LOG_ERR(&e));
    if (g->again)
        gc_wake(g);
}

static void on_timer(struct env_timer *timer) {
    struct gc *g = container_of(timer, struct gc, timer);
    if (gc_must_stop(g))
        return;
    g->again = g->running;
    if (g->running)
        return;
    g->running = true;
    volume_fiber_start(g->v, gc_fiber, g);
}

void gc_wake(struct gc *g) {
    g->again = false;
    uint64_t us = g->v->config.gc_delay_us / (g->moved ? HURRY : 1);
    if (!gc_must_stop(g) && !g->condemning && !g->v->config.gc_off && !env_timer_running(&g->timer))
        env_timer_start(g->v->env, &g->timer, us);
}

void gc_stop(struct gc *g) {
    g->stopped = true;
    waitq_wake_all(&g->stopping);
    env_timer_stop(g->v->env, &g->timer);
}

/* fiber; g->mutex held. Nothing is moved: somebody waits. */
static int closing_pass(struct gc *g, struct err *e) {
    int rc = gc_find_garbage(g, e);
    return rc == 0 ? rounds(g, false, e) : rc;
}

void gc_at_close(struct gc *g) {
    struct err e = {0};
    gc_stop(g);
    if (fiber_mutex_lock(g->v->env, &g->mutex) < 0)
        return;
    g->stopped = false;
    int rc = g->scrubbed && !g->v->config.gc_off ? closing_pass(g, &e) : 0;
    gc_stop(g);
    fiber_mutex_unlock(&g->mutex);
    if (rc < 0 && g->v->state == VOL_CLOSING && rc != -ERR_CANCELLED)
        log_warn("garbage stays until the next open", LOG_STR("volume", g->v->config.key.text),
                 LOG_ERR(&e));
}

int gc_collect(struct gc *g, struct err *e) {
    if (fiber_mutex_lock(g->v->env, &g->mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "GC was cancelled");
    int rc = scrub_and_pass(g, true, e);
    fiber_mutex_unlock(&g->mutex);
    return rc;
}

uint64_t gc_live_bytes(const struct gc *g) {
    return g->live_bytes;
}

void gc_status(const struct gc *g, struct volume_status *ret) {
    ret->gc_objects = g->objects.count;
    ret->gc_bytes = g->objects.bytes;
    ret->gc_garbage = g->garbage;
    ret->gc_garbage_bytes = g->garbage_bytes;
    ret->gc_held = g->held;
    ret->gc_held_bytes = g->held_bytes;
    ret->gc_debt_bytes = debt(g);
}
