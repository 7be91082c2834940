/* A run: from a seed to a verdict. The seed draws the limits of the engine, the faults of the store
 * and the habits of the clients, so that different seeds dwell in different corners. */
#include "tests/sim/sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"
#include "portalbd/objstore/retry.h"

enum { TURNS_MAX = 30 * 1000 * 1000 };

void name_format(char *to, size_t size, const char *prefix, unsigned number) {
    snprintf(to, size, "%s%u", prefix, number);
}

static unsigned draw_rate(struct sim_world *w, unsigned max) {
    return sim_chance(w, 400) ? 0 : (unsigned)sim_skewed(w, 1, max);
}

/* Each kind of fault is absent from many runs, so that no kind hides another. */
static struct sim_faults draw_faults(struct sim_world *w, unsigned scale) {
    return (struct sim_faults){
        .latency_us_max = sim_between(w, 1000, 40000),
        .slow = draw_rate(w, 10 * scale),
        .slow_us_max = sim_skewed(w, 100000, 5000000),
        .refused = draw_rate(w, 20 * scale),
        .timeout = draw_rate(w, 4 * scale),
        .lost_answer = draw_rate(w, 20 * scale),
        .late = draw_rate(w, 10 * scale),
        .duplicate = draw_rate(w, 20 * scale),
        .late_us_max = sim_skewed(w, 1000000, 900 * 1000000),
        .conflict = draw_rate(w, 20 * scale),
        .short_body = draw_rate(w, 20 * scale),
        .short_page = draw_rate(w, 100 * scale),
        .torn_page = draw_rate(w, 100 * scale),
        .torn_pins = draw_rate(w, 500),
    };
}

struct objstore *store_stack(struct sim *s, struct objstore *below) {
    if (s->hedging)
        below = objstore_hedge_new(below, &s->hedge, NULL, NULL);
    return objstore_retry_new(below, NULL);
}

uint64_t store_stack_hedges(const struct sim *s, const struct objstore *stack) {
    if (!s->hedging)
        return 0;
    const struct hedge_state *h = objstore_hedge_state(objstore_retry_below(stack));
    uint64_t n = 0;
    for (size_t i = 0; i < ARRAY_LEN(h->verbs); i++)
        n += metrics_counter_get(&h->verbs[i].sent);
    return n;
}

static void draw_hedging(struct sim *s) {
    struct sim_world *w = &s->world;
    s->hedging = sim_chance(w, 500);
    s->hedge = (struct hedge_options){.floor_us = sim_skewed(w, 500, 20000),
                                      .share = (unsigned)sim_between(w, 2, 20),
                                      .samples = (unsigned)sim_skewed(w, 4, 64)};
}

static void draw_limits(struct sim *s) {
    struct sim_world *w = &s->world;
    s->limits = (struct volume_config){
        .journal_size = UINT64_C(4096) * sim_between(w, 1024, 2048),
        .cache_size = UINT64_C(4096) * sim_skewed(w, 8, 512),
        .flush_coalesce_us = sim_chance(w, 800) ? 0 : sim_between(w, 1, 5000),
        .segment_size = UINT64_C(4096) * sim_skewed(w, 1, 256),
        .checkpoint_segments = (uint32_t)sim_skewed(w, 2, 60),
        .checkpoint_extents = (uint32_t)sim_skewed(w, 16, 4000),
        .runs_max = (uint32_t)sim_between(w, 1, 8),
        .map_part_size = sim_chance(w, 300) ? 0 : 4096 * (uint32_t)sim_skewed(w, 2, 16),
        .gc_delay_us = sim_skewed(w, 1000, 3000000),
        .gc_live_percent = (uint32_t)sim_between(w, 30, 95),
        .gc_move_bytes = sim_skewed(w, 1, 4000000),
    };
    draw_hedging(s);
    s->memory_mode_rate = sim_chance(w, 200) ? 1000 : (unsigned)sim_skewed(w, 20, 500);
    s->loyal = sim_chance(w, 500);
    if (s->loyal)
        s->memory_mode_rate = 10;
    s->client_count = (unsigned)sim_between(w, 1, 10);
    s->think_us = sim_skewed(w, 100, 30000);
    s->write_weight = (unsigned)sim_between(w, 200, 700);
    s->trim_weight = (unsigned)sim_skewed(w, 10, 200);
    s->flush_weight = (unsigned)sim_skewed(w, 5, 150);
    s->world.turn_jitter_us = sim_skewed(w, 0, 500);
    s->world.job_us_max = sim_skewed(w, 10, 20000);
    s->limits.map_part_size = (uint32_t)(4096 * sim_skewed(w, 2, 16));
    s->limits.map_page_entries = (uint32_t)sim_skewed(w, 4, 300);
    s->limits.flatten_depth = sim_chance(w, 300) ? 0 : (uint32_t)sim_between(w, 1, 3);
    s->disk_rate = sim_chance(w, 600) ? 0 : (unsigned)sim_between(w, 300, 1000);
}

/* Writers that are faster than the store: windows and journals fill. */
static void draw_hurry(struct sim *s) {
    struct sim_world *w = &s->world;
    if (!sim_chance(w, 250))
        return;
    s->client_count = (unsigned)sim_between(w, 8, 24);
    s->think_us = 50;
    s->write_weight = 1500;
    s->calm.latency_us_max = sim_between(w, 40000, 300000);
    s->calm.slow = 30;
}

/* A hot area, and far places at borders of the volume: some appear only when it grows. */
static void draw_spans(struct sim *s) {
    struct sim_world *w = &s->world;
    s->hot_sectors = (uint32_t)sim_between(w, 128, 768) * 8;
    if (sim_chance(w, 40)) /* so that one request may be larger than the journal */
        s->hot_sectors = 24 * 1024;
    if (sim_chance(w, 60)) {
        s->hot_sectors = 8 * 1024;
        s->fill_left = (uint32_t)sim_between(w, 1000, 4000);
        s->limits.map_part_size = 1; /* as small as there are */
    }
    checker_add_span(&s->checker, 0, s->hot_sectors);
    uint64_t end =
        sim_chance(w, 200) ? VOLUME_SIZE_MAX / SECTOR_SIZE : UINT64_C(1) << sim_between(w, 16, 40);
    checker_add_span(&s->checker, end / 2 - 30, 64);
    bool at_limit = end == VOLUME_SIZE_MAX / SECTOR_SIZE;
    checker_add_span(&s->checker, end - 40, at_limit ? 40 : 80);
    s->size_bytes = end * SECTOR_SIZE;
}

static void leave_out(struct sim *s) {
    const struct sim_plan *p = &s->options.plan;
    struct sim_faults *both[] = {&s->calm, &s->storm};
    for (size_t i = 0; i < ARRAY_LEN(both); i++) {
        unsigned *const rates[] = {
            [WITHOUT_SLOW] = &both[i]->slow,
            [WITHOUT_REFUSED] = &both[i]->refused,
            [WITHOUT_TIMEOUT] = &both[i]->timeout,
            [WITHOUT_LOST_ANSWER] = &both[i]->lost_answer,
            [WITHOUT_LATE] = &both[i]->late,
            [WITHOUT_DUPLICATE] = &both[i]->duplicate,
            [WITHOUT_CONFLICT] = &both[i]->conflict,
            [WITHOUT_SHORT_BODY] = &both[i]->short_body,
            [WITHOUT_SHORT_PAGE] = &both[i]->short_page,
            [WITHOUT_TORN_PAGE] = &both[i]->torn_page,
        };
        if (plan_is_without(p, WITHOUT_TORN_PAGE))
            both[i]->torn_pins = 0;
        for (int k = 0; k <= WITHOUT_TORN_PAGE; k++)
            if (plan_is_without(p, (enum plan_without)k))
                *rates[k] = 0;
    }
    if (plan_is_without(p, WITHOUT_STORM))
        s->storm = s->calm;
    for (size_t i = 0; plan_is_without(p, WITHOUT_SPOTS) && i < ARRAY_LEN(s->spots); i++)
        s->spots[i] = (struct sore_spot){0};
    if (plan_is_without(p, WITHOUT_TRIMS))
        s->trim_weight = 0;
    if (plan_is_without(p, WITHOUT_CLIENTS))
        s->client_count = 1;
    if (plan_is_without(p, WITHOUT_JITTER))
        s->world.turn_jitter_us = 0;
}

static void director_main(void *arg) {
    struct sim *s = arg;
    director_run(s);
    if (!checker_failed(&s->checker))
        director_settle(s);
    s->done = true;
}

static void sim_init(struct sim *s, const struct sim_options *options) {
    *s = (struct sim){.options = *options};
    sim_world_init(&s->world, options->seed);
    s->world.trace = options->trace;
    list_init(&s->daemons);
    list_init(&s->controllers);
    list_init(&s->volumes);
    list_init(&s->snaps);
    list_init(&s->disks);
    checker_init(&s->checker);
    draw_limits(s);
    draw_spans(s);
    s->calm = draw_faults(&s->world, 1);
    s->storm = draw_faults(&s->world, 10);
    draw_hurry(s);
    s->bucket = sim_bucket_new(&s->world, &s->calm);
    s->guard = guard_new(s);
    scenarios_watch_store(s);
    director_draw_spots(s);
    leave_out(s);
    sim_bucket_set_faults(s->bucket, &s->calm);
    sim_proc_init(&s->director, &s->world, "director");
}

/* Also after a finding, in the middle of everything: so that leaks show. */
static void sim_release(struct sim *s) {
    sim_proc_kill(&s->director);
    sim_proc_release(&s->director);
    while (!list_empty(&s->daemons))
        daemon_kill(list_entry(s->daemons.next, struct daemon, node));
    while (!list_empty(&s->controllers))
        controller_kill(list_entry(s->controllers.next, struct controller, node));
    struct list_node *node;
    while ((node = list_pop_front(&s->volumes)) != NULL) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        journals_release(v);
        free(v);
    }
    free(s->journal_of);
    while ((node = list_pop_front(&s->snaps)) != NULL)
        snap_release(list_entry(node, struct snap, node));
    while ((node = list_pop_front(&s->disks)) != NULL) {
        struct sim_disk *d = list_entry(node, struct sim_disk, node);
        memory_medium_release(&d->memory);
        free(d);
    }
    guard_free(s->guard);
    sim_bucket_free(s->bucket);
    sim_world_release(&s->world);
    checker_release(&s->checker);
    json_memo_clear();
}

static void add_up(struct sim *s) {
    struct sim_totals *t = &s->totals;
    const struct sim_bucket_stats *b = sim_bucket_stats(s->bucket);
    for (size_t i = 0; i < ARRAY_LEN(t->requests); i++)
        t->requests[i] = b->requests[i];
    t->store_errors = b->errors;
    t->late_effects = b->late;
    t->duplicates = b->duplicates;
    t->scenarios[S8_PINS_CHANGE_IN_LIST] = b->torn_pins;
    t->operations = s->checker.operations;
    t->reads_checked = s->checker.reads_checked;
    t->cuts_checked = s->checker.cuts_checked;
    t->records_lost = s->checker.records_lost;
    t->turns = s->world.turns;
    t->digest = s->world.digest;
    t->virtual_ms = s->world.now_us / 1000;
}

bool sim_run(const struct sim_options *options, struct sim_totals *totals, char *finding) {
    struct sim s;
    sim_init(&s, options);
    fiber_start(&s.director.env, director_main, &s);
    while (!s.done && !checker_failed(&s.checker) && sim_step(&s.world))
        if (s.world.turns > TURNS_MAX)
            sim_fail(&s, "more than %d turns: something goes round in circles", TURNS_MAX);
    if (!s.done)
        sim_fail(&s, "the world stands still: somebody waits for nothing");
    add_up(&s);
    bool good = !checker_failed(&s.checker);
    snprintf(finding, SIM_FINDING_MAX, "operation %" PRIu64 ", %" PRIu64 ".%06" PRIu64 " s: %s",
             s.checker.operations, s.world.now_us / 1000000, s.world.now_us % 1000000,
             s.checker.finding);
    if (options->verbose)
        printf("seed %" PRIu64 ": digest %016" PRIx64 ", %" PRIu64 " turns, %" PRIu64
               " operations\n",
               options->seed, s.world.digest, s.world.turns, s.checker.operations);
    *totals = s.totals;
    sim_release(&s);
    return good;
}
