/* The director: makes things happen at random moments, then lets everything come to rest.
 *
 * It is a process of the world that never dies. What it does to others it does between two turns of
 * theirs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

enum {
    VOLUMES_LIVE_MAX = 4,
    SNAPS_LIVE_MAX = 6,
    WRITERS_MAX = 4, /* daemons that have one volume open, or try to */
    READERS_MAX = 2,
    TASKS_MAX = 3,
    CRASHES_MIN = 3,
    STEPS_MAX = 20000,
    SETTLE_STEPS_MAX = 20000,
};
#define SETTLE_STEP_US 200000

static struct sim_world *world(struct sim *s) {
    return &s->world;
}

static bool pause_for(struct sim *s, uint64_t us) {
    return fiber_sleep_us(&s->director.env, us) == 0;
}

/* --- picking --- */

static struct sim_volume *pick_volume(struct sim *s) {
    struct sim_volume *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state != LIVE)
            continue;
        if (!picked || sim_below(world(s), ++seen + 1) == 0)
            picked = v;
    }
    return picked;
}

static bool source_is_gone(const struct sim_volume *v) {
    return (v->from_snap && v->from_snap->state != LIVE) ||
           (v->from_volume && v->from_volume->state != LIVE);
}

/* Those that live or may yet come to be. */
static unsigned count_volumes(struct sim *s) {
    unsigned n = 0;
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        n += v->state == LIVE || v->state == DYING || (v->state == UNBORN && !source_is_gone(v));
    }
    return n;
}

static struct snap *pick_snap(struct sim *s, bool unborn) {
    struct snap *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state != (unborn ? UNBORN : LIVE))
            continue;
        if (!picked || sim_below(world(s), ++seen + 1) == 0)
            picked = n;
    }
    return picked;
}

static unsigned count_snaps(struct sim *s) {
    unsigned n = 0;
    list_for_each (&s->snaps, node)
        n += list_entry(node, struct snap, node)->state != DEAD;
    return n;
}

static struct daemon *pick_daemon(struct sim *s, struct sim_volume *vol) {
    struct daemon *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if ((vol && d->vol != vol) || d->state == DAEMON_ENDED)
            continue;
        if (!picked || sim_below(world(s), ++seen + 1) == 0)
            picked = d;
    }
    return picked;
}

static unsigned count_daemons(struct sim *s, const struct sim_volume *vol, bool writers) {
    unsigned n = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        n += d->vol == vol && daemon_is_writer(d) == writers && d->state != DAEMON_ENDED;
    }
    return n;
}

/* Somebody who will serve this volume without our help. */
static bool has_writer_awake(struct sim *s, const struct sim_volume *vol) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->vol == vol && daemon_is_writer(d) && !sim_proc_asleep(&d->proc) && !d->stop &&
            d->state <= DAEMON_SERVING)
            return true;
    }
    return false;
}

static struct controller *pick_controller(struct sim *s) {
    struct controller *picked = NULL;
    uint64_t seen = 0;
    size_t count = 0;
    list_for_each (&s->controllers, node) {
        struct controller *c = list_entry(node, struct controller, node);
        count++;
        if (!picked || sim_below(world(s), ++seen + 1) == 0)
            picked = c;
    }
    if (count < CONTROLLERS)
        picked = controller_start(s);
    return picked;
}

static void submit(struct sim *s, struct task t) {
    struct controller *c = pick_controller(s);
    if (c->tasks < TASKS_MAX)
        controller_submit(c, &t);
}

/* --- actions --- */

/* Where volumes are loyal, most of what would bring another writer does not happen. */
static bool stays_home(struct sim *s) {
    return s->loyal && sim_chance(world(s), 850);
}

static void start_writer(struct sim *s, struct sim_volume *vol) {
    if (count_daemons(s, vol, true) >= WRITERS_MAX)
        return;
    if (vol->publish_epoch > 0 && stays_home(s)) {
        if (!vol->journals[0].user)
            daemon_start(s, vol, vol->publish_epoch);
        return;
    }
    if (vol->publish_epoch > 0 && sim_chance(world(s), 550)) {
        /* Restarted, or beside the one that lives: with the epoch of the last publish, or an old
         * one. */
        uint64_t epoch = vol->publish_epoch;
        if (epoch > 1 && sim_chance(world(s), 100))
            epoch = sim_between(world(s), 1, epoch);
        daemon_start(s, vol, epoch);
        return;
    }
    submit(s, (struct task){.kind = TASK_PUBLISH,
                            .vol = vol,
                            .node = (unsigned)sim_below(world(s), NODES),
                            .steal = sim_chance(world(s), 700),
                            .start = true});
}

static void act_start(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    if (vol)
        start_writer(s, vol);
}

/* Several at once, against one that may be writing. */
static void act_rush(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    for (unsigned n = (unsigned)sim_between(world(s), 2, 3); vol && n > 0; n--)
        start_writer(s, vol);
}

/* The agent is told to forget it by some, else it starts the next one at once. */
static void act_kill(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (!d)
        return;
    struct sim_journal *j = d->journal;
    daemon_kill(d);
    if (!j)
        return;
    if (sim_chance(world(s), s->loyal ? 950 : 600))
        daemon_respawn(s, j);
    else if (sim_chance(world(s), 500))
        j->owned = false;
}

static struct sim_journal *pick_serving_journal(struct sim *s) {
    struct sim_journal *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->journal && d->state == DAEMON_SERVING && !d->stop &&
            (!picked || sim_below(world(s), ++seen + 1) == 0))
            picked = d->journal;
    }
    return picked;
}

/* A daemon dies in the middle of its work and comes back. */
static void act_crash(struct sim *s) {
    struct sim_journal *j = pick_serving_journal(s);
    if (!j)
        return;
    daemon_kill(j->user);
    daemon_respawn(s, j);
}

/* Whatever it does, it dies, most often while it opens. Sometimes somebody else comes then. */
static void act_crash_loop(struct sim *s) {
    struct sim_journal *j = pick_serving_journal(s);
    if (!j)
        return;
    struct sim_volume *vol = j->vol;
    uint64_t us_max = sim_skewed(world(s), 1000, 400000);
    for (uint64_t n = sim_between(world(s), 2, 5); n > 0; n--) {
        if (j->user)
            daemon_kill(j->user);
        if (!daemon_respawn(s, j) || !pause_for(s, sim_between(world(s), 0, us_max)))
            return;
        daemons_reap(s);
    }
    if (sim_chance(world(s), 250) && vol->publish_epoch > 0 && vol->state == LIVE) {
        if (j->user && sim_chance(world(s), 700))
            daemon_kill(j->user);
        daemon_start(s, vol, vol->publish_epoch);
    }
}

/* The node's tmpfs is full for a while. */
static void act_starve(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (d && d->journal)
        d->journal->ram.refuse_next = (unsigned)sim_skewed(world(s), 1, 40);
}

static void act_kill_controller(struct sim *s) {
    struct controller *c = pick_controller(s);
    if (c->tasks > 0 || sim_chance(world(s), 200))
        controller_kill(c);
}

static uint64_t draw_sleep_us(struct sim *s) {
    return sim_skewed(world(s), 1000, 30 * 1000000);
}

static void put_to_sleep(struct sim *s, struct sim_proc *p) {
    s->totals.sleeps++;
    scenarios_at_sleep(s, p);
    uint64_t us = draw_sleep_us(s);
    sim_trace(world(s), p->name, "falls asleep for %llu us", (unsigned long long)us);
    sim_proc_sleep(p, us);
}

/* --- the sore spot --- */

static const struct sore_spot spots[] = {
    {.verb = OBJ_LIST, .part = "/log/"},      {.verb = OBJ_LIST, .part = "/log/"},
    {.verb = OBJ_LIST, .part = "/manifest/"}, {.verb = OBJ_GET, .part = "/manifest/"},
    {.verb = OBJ_PUT, .part = "/manifest/"},  {.verb = OBJ_LIST, .part = "/log/"},
    {.verb = OBJ_PUT, .part = "/log/"},       {.verb = OBJ_PUT, .part = "/map/"},
    {.verb = OBJ_PUT, .part = ".claim"},      {.verb = OBJ_PUT, .part = ".root"},
    {.verb = OBJ_LIST, .part = "/pins/"},     {.verb = OBJ_LIST, .part = "snapshots/"},
    {.verb = OBJ_PUT, .part = "snapshots/"},  {.verb = OBJ_PUT, .part = "records/"},
    {.verb = OBJ_LIST, .part = "records/"},   {.verb = OBJ_DELETE, .part = "volumes/"},
    {.verb = OBJ_GET, .part = "/pins/"},      {.verb = OBJ_GET, .part = "snapshots/"},
};

static void fall_asleep(struct sim *s, struct sim_proc *p, const struct sore_spot *spot) {
    s->totals.sleeps++;
    scenarios_at_sleep(s, p);
    bool long_sleep = spot->sleeps_long && sim_chance(world(s), 300);
    uint64_t us = long_sleep ? sim_between(world(s), SWEEP_INTERVAL_US, 2 * SWEEP_INTERVAL_US)
                             : sim_skewed(world(s), 1000, 3000000);
    s->time_wanted |= long_sleep;
    sim_trace(world(s), p->name, "falls asleep at its sore spot for %llu us",
              (unsigned long long)us);
    sim_proc_sleep(p, us);
}

static void on_submit(void *arg, struct sim_proc *p, enum obj_verb verb, const char *key) {
    struct sim *s = arg;
    for (size_t i = 0; !s->stopping && i < ARRAY_LEN(s->spots); i++) {
        const struct sore_spot *spot = &s->spots[i];
        if (spot->part && verb == spot->verb && strstr(key, spot->part) &&
            sim_chance(world(s), spot->per_mille))
            fall_asleep(s, p, spot);
    }
}

void director_draw_spots(struct sim *s) {
    for (size_t i = 0; i < ARRAY_LEN(s->spots); i++) {
        if (sim_chance(world(s), 500))
            continue;
        s->spots[i] = spots[sim_below(world(s), ARRAY_LEN(spots))];
        s->spots[i].per_mille = (unsigned)sim_between(world(s), 20, 600);
        s->spots[i].sleeps_long = sim_chance(world(s), 400);
    }
    sim_bucket_set_submit_hook(s->bucket, on_submit, s);
}

static void act_sleep(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (d)
        put_to_sleep(s, &d->proc);
}

static void act_sleep_controller(struct sim *s) {
    struct controller *c = pick_controller(s);
    if (c->tasks > 0)
        put_to_sleep(s, &c->proc);
}

static void act_stop(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (d && d->state == DAEMON_SERVING && !d->stop)
        daemon_stop(d, sim_chance(world(s), 800));
}

static void act_unpublish(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    if (vol && vol->publish_epoch > 0 && vol->busy == 0 && !stays_home(s))
        submit(s, (struct task){.kind = TASK_UNPUBLISH, .vol = vol, .node = NODES});
}

static void act_expand(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    if (!vol || vol->model->size_wanted + 4 * 4096 > VOLUME_SIZE_MAX)
        return;
    uint64_t size = vol->model->size_wanted + 4096 * sim_between(world(s), 0, 3);
    submit(s, (struct task){.kind = TASK_EXPAND, .vol = vol, .size_bytes = size});
}

static void act_snapshot(struct sim *s) {
    struct snap *snap = sim_chance(world(s), 300) ? pick_snap(s, true) : NULL;
    struct sim_volume *vol = snap ? snap->source : pick_volume(s);
    if (!vol || vol->state != LIVE)
        return;
    if (!snap) {
        if (count_snaps(s) >= SNAPS_LIVE_MAX)
            return;
        snap = NEW(struct snap);
        name_format(snap->name, sizeof snap->name, "s", s->next_number++);
        snap->source = vol;
        list_push_back(&s->snaps, &snap->node);
    }
    struct task t = {.kind = TASK_SNAPSHOT, .vol = NULL, .snap = snap};
    submit(s, t);
    if (sim_chance(world(s), 200))
        submit(s, t);
}

static void act_delete_snapshot(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (!snap || snap->makers > 0) /* a maker that is late would make it anew, rightly */
        return;
    if (count_snaps(s) > SNAPS_LIVE_MAX / 2 || sim_chance(world(s), 300))
        submit(s, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = snap});
}

static void act_read_snapshot(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (snap && count_daemons(s, snap->source, false) < READERS_MAX)
        daemon_start_read_only(s, snap);
}

static void create_volume(struct sim *s, struct snap *from_snap, struct sim_volume *from_volume) {
    struct sim_volume *vol = NEW(struct sim_volume);
    name_format(vol->name, sizeof vol->name, "v", s->next_number++);
    vol->from_snap = from_snap;
    vol->from_volume = from_volume;
    vol->size_bytes = from_snap || from_volume ? 0 : s->size_bytes;
    list_push_back(&s->volumes, &vol->node);
    submit(s, (struct task){.kind = TASK_CREATE, .vol = vol});
}

static void act_create(struct sim *s) {
    if (count_volumes(s) >= VOLUMES_LIVE_MAX)
        return;
    struct snap *snap = sim_chance(world(s), 600) ? pick_snap(s, false) : NULL;
    create_volume(s, snap, snap ? NULL : sim_chance(world(s), 850) ? pick_volume(s) : NULL);
}

static void act_delete(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    if (vol && count_volumes(s) >= 2 && sim_chance(world(s), 500) && !stays_home(s))
        submit(s,
               (struct task){.kind = TASK_DELETE, .vol = vol, .steal = sim_chance(world(s), 600)});
}

static void act_background(struct sim *s) {
    struct controller *c = pick_controller(s);
    if (c->tasks_of[TASK_BACKGROUND] == 0)
        controller_submit(c, &(struct task){.kind = TASK_BACKGROUND});
}

static void act_weather(struct sim *s) {
    sim_bucket_set_faults(s->bucket, sim_chance(world(s), 300) ? &s->storm : &s->calm);
}

static void act_list(struct sim *s) {
    submit(s, (struct task){.kind = TASK_LIST});
}

/* The store is gone for a while: everything waits, nothing fails. */
static void act_blackout(struct sim *s) {
    struct sim_faults dark = s->calm;
    dark.refused = 1000;
    sim_bucket_set_faults(s->bucket, &dark);
    s->totals.blackouts++;
    pause_for(s, sim_skewed(world(s), 1000, 60 * 1000000));
    sim_bucket_set_faults(s->bucket, &s->calm);
}

/* Tries again what nobody knows the outcome of. */
static void act_retry(struct sim *s) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->busy > 0 || sim_chance(world(s), source_is_gone(v) ? 950 : 300))
            continue;
        if (v->state == UNBORN)
            submit(s, (struct task){.kind = TASK_CREATE, .vol = v});
        else if (v->state == DYING)
            submit(s, (struct task){.kind = TASK_DELETE, .vol = v, .steal = true});
    }
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state == DYING)
            submit(s, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = n});
    }
}

/* Long enough for the sweeper to see a pin twice. */
static void act_time_passes(struct sim *s) {
    s->time_wanted = false;
    s->quiet = true;
    for (uint64_t minutes = sim_between(world(s), 1, 25); minutes > 0; minutes--) {
        if (!pause_for(s, 60 * 1000000))
            return;
        if (sim_chance(world(s), 300))
            act_background(s);
    }
    s->quiet = false;
}

static void act(struct sim *s) {
    static const struct {
        unsigned weight;
        void (*fn)(struct sim *s);
    } actions[] = {
        {150, act_start},
        {60, act_rush},
        {110, act_kill},
        {60, act_crash},
        {40, act_crash_loop},
        {20, act_starve},
        {40, act_kill_controller},
        {90, act_sleep},
        {40, act_sleep_controller},
        {50, act_stop},
        {50, act_unpublish},
        {25, act_expand},
        {90, act_snapshot},
        {40, act_delete_snapshot},
        {60, act_read_snapshot},
        {40, act_create},
        {30, act_delete},
        {40, act_background},
        {40, act_weather},
        {60, act_retry},
        {30, act_list},
        {8, act_blackout},
        {4, act_time_passes},
    };
    uint64_t total = 0;
    for (size_t i = 0; i < ARRAY_LEN(actions); i++)
        total += actions[i].weight;
    uint64_t pick = sim_below(world(s), total);
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        if (pick < actions[i].weight) {
            actions[i].fn(s);
            return;
        }
        pick -= actions[i].weight;
    }
}

/* There is always something that is written to. */
static void keep_busy(struct sim *s) {
    if (count_volumes(s) == 0)
        create_volume(s, NULL, NULL);
    bool any = false;
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        any |= v->state == LIVE && has_writer_awake(s, v);
    }
    if (!any)
        act_start(s);
}

static bool enough(const struct sim *s) {
    return s->checker.operations >= s->options.operations && s->totals.crashes >= CRASHES_MIN;
}

void director_run(struct sim *s) {
    struct controller *c = controller_start(s);
    controller_submit(c, &(struct task){.kind = TASK_PREPARE});
    while (c->tasks > 0 && pause_for(s, 10000))
        continue;
    create_volume(s, NULL, NULL);
    uint64_t operations = 0, idle = 0;
    for (unsigned step = 0; !enough(s) && step < STEPS_MAX; step++) {
        keep_busy(s);
        /* Where the store is so bad that nothing comes to its end between two blows, they get
         * rarer. */
        idle = s->checker.operations == operations ? idle + 1 : 0;
        operations = s->checker.operations;
        if (!pause_for(s, sim_skewed(world(s), 500, 150000) * (1 + idle / 10)))
            return;
        daemons_reap(s);
        if (s->time_wanted && sim_chance(world(s), 200))
            act_time_passes(s);
        else
            act(s);
    }
    if (!enough(s))
        sim_fail(s, "the run does not come to its end: %llu operations after %d steps",
                 (unsigned long long)s->checker.operations, STEPS_MAX);
}

/* --- coming to rest --- */

static bool tasks_left(struct sim *s) {
    list_for_each (&s->controllers, node)
        if (list_entry(node, struct controller, node)->tasks > 0)
            return true;
    return false;
}

/* Also those that started since. */
static void stop_daemons(struct sim *s, unsigned kill_per_mille) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->state == DAEMON_ENDED || d->stop)
            continue;
        if (sim_chance(world(s), kill_per_mille))
            daemon_kill(d);
        else
            daemon_stop(d, sim_chance(world(s), 700));
    }
}

static bool wait_until_ended(struct sim *s) {
    for (unsigned i = 0; i < SETTLE_STEPS_MAX && !checker_failed(&s->checker); i++) {
        daemons_reap(s);
        stop_daemons(s, 0);
        if (list_empty(&s->daemons) && !tasks_left(s))
            return true;
        if (!pause_for(s, SETTLE_STEP_US))
            return false;
    }
    sim_fail(s, "it does not come to rest: a daemon or a task hangs");
    return false;
}

/* Runs a task to its end, without trouble. */
static void do_task(struct sim *s, struct controller *c, struct task t) {
    if (checker_failed(&s->checker))
        return;
    controller_submit(c, &t);
    wait_until_ended(s);
}

static void clear_doubts(struct sim *s, struct controller *c) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state == UNBORN)
            do_task(s, c, (struct task){.kind = TASK_CREATE, .vol = v});
        if (v->state == UNBORN) /* its source is gone */
            v->state = DEAD;
        if (v->state == DYING)
            do_task(s, c, (struct task){.kind = TASK_DELETE, .vol = v, .steal = true});
    }
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state == UNBORN && n->source->state == LIVE)
            do_task(s, c, (struct task){.kind = TASK_SNAPSHOT, .snap = n});
        if (n->state == UNBORN)
            do_task(s, c, (struct task){.kind = TASK_FIND_SNAPSHOT, .snap = n});
        if (n->state == DYING)
            do_task(s, c, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = n});
    }
}

static uint64_t count_requests(struct sim *s) {
    uint64_t n = 0;
    for (size_t i = 0; i <= OBJ_DELETE; i++)
        n += sim_bucket_stats(s->bucket)->requests[i];
    return n;
}

/* P9: a volume that nobody writes to sends nothing, once its debts are paid. */
static void check_idle(struct sim *s, const struct sim_volume *v) {
    pause_for(s, UINT64_C(60) * 1000000);
    uint64_t before = count_requests(s);
    pause_for(s, UINT64_C(3600) * 1000000);
    if (count_requests(s) != before)
        sim_fail(s, "P9: %s is idle and sends %llu requests an hour", v->name,
                 (unsigned long long)(count_requests(s) - before));
}

/* Everything that lives is opened and read once more. */
static void read_everything(struct sim *s, struct controller *c) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state != LIVE || checker_failed(&s->checker))
            continue;
        controller_submit(
            c, &(struct task){.kind = TASK_PUBLISH, .vol = v, .steal = true, .start = true});
        uint64_t opens = s->totals.opens;
        for (unsigned i = 0; s->totals.opens == opens && !checker_failed(&s->checker); i++) {
            if (i == SETTLE_STEPS_MAX)
                sim_fail(s, "%s cannot be opened at the end", v->name);
            pause_for(s, SETTLE_STEP_US);
        }
        check_idle(s, v);
        list_for_each (&s->daemons, dn)
            daemon_stop(list_entry(dn, struct daemon, node), sim_chance(world(s), 700));
        wait_until_ended(s);
    }
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state != LIVE || checker_failed(&s->checker))
            continue;
        uint64_t opens = s->totals.read_only_opens;
        daemon_start_read_only(s, n);
        wait_until_ended(s);
        if (s->totals.read_only_opens == opens)
            sim_fail(s, "snapshot %s cannot be opened at the end", n->name);
    }
}

static void give_memory(struct sim *s) {
    list_for_each (&s->volumes, node)
        for (size_t i = 0; i < NODES; i++)
            list_entry(node, struct sim_volume, node)->journals[i].ram.refuse_next = 0;
}

void director_settle(struct sim *s) {
    s->stopping = true;
    give_memory(s);
    stop_daemons(s, 300);
    struct sim_faults none = {.latency_us_max = 5000, .late_us_max = 1000000};
    sim_bucket_set_faults(s->bucket, &none);
    if (!wait_until_ended(s))
        return;
    while (!list_empty(&s->controllers))
        controller_kill(list_entry(s->controllers.next, struct controller, node));
    while (sim_bucket_pending(s->bucket) > 0) /* what the dead have sent still arrives */
        if (!pause_for(s, SETTLE_STEP_US))
            return;
    struct controller *c = controller_start(s);
    clear_doubts(s, c);
    for (unsigned i = 0; i < 3 && !checker_failed(&s->checker); i++) {
        do_task(s, c, (struct task){.kind = TASK_BACKGROUND});
        pause_for(s, SWEEP_INTERVAL_US + 1000000);
    }
    read_everything(s, c);
    /* A chain of deleted clones is given back a link a pass. */
    size_t before;
    do {
        before = sim_bucket_count(s->bucket);
        do_task(s, c, (struct task){.kind = TASK_BACKGROUND});
    } while (sim_bucket_count(s->bucket) < before && !checker_failed(&s->checker));
    if (!checker_failed(&s->checker))
        audit_bucket(s);
    while (!list_empty(&s->controllers))
        controller_kill(list_entry(s->controllers.next, struct controller, node));
}
