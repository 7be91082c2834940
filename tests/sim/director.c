/* The director: makes things happen at random moments, then lets everything come to rest.
 *
 * It is a process of the world that never dies. What it does to others it does between two turns of
 * theirs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/director.h"

enum {
    VOLUMES_LIVE_MAX = 4,
    SNAPS_LIVE_MAX = 6,
    WRITERS_MAX = 4, /* daemons that have one volume open, or try to */
    READERS_MAX = 2,
    TASKS_MAX = 3,
    CRASHES_MIN = 3,
    STEPS_MAX = 20000,
};

static void submit(struct sim *s, struct task t) {
    struct controller *c = pick_controller(s);
    if (c->tasks < TASKS_MAX)
        controller_submit(c, &t);
}

/* --- actions --- */

/* Where volumes are loyal, most of what would bring another writer does not happen. */
static bool stays_home(struct sim *s) {
    return s->loyal && sim_chance(&s->world, 850);
}

static void start_writer(struct sim *s, struct sim_volume *vol) {
    if (count_daemons(s, vol, true) >= WRITERS_MAX)
        return;
    if (vol->publish_epoch > 0 && stays_home(s)) {
        if (!vol->journals[0].user)
            daemon_start(s, vol, vol->publish_epoch);
        return;
    }
    if (vol->publish_epoch > 0 && sim_chance(&s->world, 550)) {
        /* Restarted, or beside the one that lives: with the epoch of the last publish, or an old
         * one. */
        uint64_t epoch = vol->publish_epoch;
        if (epoch > 1 && sim_chance(&s->world, 100))
            epoch = sim_between(&s->world, 1, epoch);
        daemon_start(s, vol, epoch);
        return;
    }
    submit(s, (struct task){.kind = TASK_PUBLISH,
                            .vol = vol,
                            .node = (unsigned)sim_below(&s->world, NODES),
                            .steal = sim_chance(&s->world, 700),
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
    for (unsigned n = (unsigned)sim_between(&s->world, 2, 3); vol && n > 0; n--)
        start_writer(s, vol);
}

static void act_stop(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (d && d->state == DAEMON_SERVING && !d->stop)
        daemon_stop(d, sim_chance(&s->world, 800));
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
    uint64_t size = vol->model->size_wanted + 4096 * sim_between(&s->world, 0, 3);
    submit(s, (struct task){.kind = TASK_EXPAND, .vol = vol, .size_bytes = size});
}

static void act_snapshot(struct sim *s) {
    struct snap *snap = sim_chance(&s->world, 300) ? pick_snap(s, true) : NULL;
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
    if (sim_chance(&s->world, 200))
        submit(s, t);
}

static void act_delete_snapshot(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (!snap || snap->makers > 0) /* a maker that is late would make it anew, rightly */
        return;
    if (count_snaps(s) > SNAPS_LIVE_MAX / 2 || sim_chance(&s->world, 300))
        submit(s, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = snap});
}

static void act_restore(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (!snap || snap->source->state != LIVE || snap->makers > 0 || stays_home(s))
        return;
    submit(s, (struct task){.kind = TASK_RESTORE,
                            .vol = snap->source,
                            .snap = snap,
                            .steal = sim_chance(&s->world, 700)});
}

static void act_maintain(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    if (vol && !stays_home(s))
        submit(s, (struct task){.kind = TASK_MAINTAIN, .vol = vol});
}

static void act_fsck(struct sim *s) {
    submit(s, (struct task){.kind = TASK_FSCK});
}

static void act_read_snapshot(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (snap && count_daemons(s, snap->source, false) < READERS_MAX)
        daemon_start_read_only(s, snap);
}

static struct sim_volume *create_volume(struct sim *s, struct snap *from_snap,
                                        struct sim_volume *from_volume) {
    struct sim_volume *vol = NEW(struct sim_volume);
    name_format(vol->name, sizeof vol->name, "v", s->next_number++);
    vol->from_snap = from_snap;
    vol->from_volume = from_volume;
    vol->size_bytes = from_snap || from_volume ? 0 : s->size_bytes;
    list_push_back(&s->volumes, &vol->node);
    submit(s, (struct task){.kind = TASK_CREATE, .vol = vol});
    return vol;
}

static void act_create(struct sim *s) {
    if (count_volumes(s) >= VOLUMES_LIVE_MAX)
        return;
    struct snap *snap = sim_chance(&s->world, 600) ? pick_snap(s, false) : NULL;
    create_volume(s, snap, snap ? NULL : sim_chance(&s->world, 850) ? pick_volume(s) : NULL);
}

static void act_delete(struct sim *s) {
    struct sim_volume *vol = pick_volume(s);
    if (vol && count_volumes(s) >= 2 && sim_chance(&s->world, 500) && !stays_home(s))
        submit(s,
               (struct task){.kind = TASK_DELETE, .vol = vol, .steal = sim_chance(&s->world, 600)});
}

static bool wait_for(struct sim *s, const struct sim_volume *vol, enum existence state) {
    for (int i = 0; i < 100 && vol->state != state; i++)
        if (!director_pause(s, 5000))
            return false;
    return vol->state == state;
}

/* A pin is handed over: a snapshot is deleted as soon as its clone is there. */
static void act_hand_over(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (!snap || snap->makers > 0 || count_volumes(s) >= VOLUMES_LIVE_MAX)
        return;
    struct sim_volume *clone = create_volume(s, snap, NULL);
    if (wait_for(s, clone, LIVE) && snap->state == LIVE && snap->makers == 0)
        submit(s, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = snap});
}

/* A snapshot is deleted, and maintenance collects, while its restorer sleeps. */
static void act_restore_race(struct sim *s) {
    struct snap *snap = pick_snap(s, false);
    if (!snap || snap->source->state != LIVE || snap->makers > 0 || stays_home(s))
        return;
    struct controller *restorer = controller_start(s);
    s->ambushed = &restorer->proc;
    s->ambush = (struct sore_spot){.verb = OBJ_GET, .part = "/pins/"};
    struct task t = {.kind = TASK_RESTORE, .vol = snap->source, .snap = snap, .steal = true};
    submit(s, (struct task){.kind = TASK_MAINTAIN, .vol = snap->source});
    controller_submit(restorer, &t);
    for (int i = 0; i < 100 && s->ambushed == &restorer->proc; i++)
        if (!director_pause(s, 5000))
            return;
    if (snap->state != LIVE || snap->makers > 0)
        return;
    submit(s, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = snap});
    submit(s, (struct task){.kind = TASK_MAINTAIN, .vol = snap->source});
}

static void act_background(struct sim *s) {
    struct controller *c = pick_controller(s);
    if (c->tasks_of[TASK_BACKGROUND] == 0)
        controller_submit(c, &(struct task){.kind = TASK_BACKGROUND});
}

static void act_list(struct sim *s) {
    submit(s, (struct task){.kind = TASK_LIST});
}

/* Tries again what nobody knows the outcome of. */
static void act_retry(struct sim *s) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->busy > 0 || sim_chance(&s->world, source_is_gone(v) ? 950 : 300))
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
    for (uint64_t minutes = sim_between(&s->world, 1, 25); minutes > 0; minutes--) {
        if (!director_pause(s, 60 * 1000000))
            return;
        if (sim_chance(&s->world, 300))
            act_background(s);
    }
    s->quiet = false;
    list_for_each (&s->daemons, node)
        waitq_wake_all(&list_entry(node, struct daemon, node)->changed);
}

static void act(struct sim *s) {
    static const struct {
        unsigned weight;
        void (*fn)(struct sim *s);
        const char *name;
    } actions[] = {
        {150, act_start, "start"},
        {60, act_rush, "rush"},
        {110, act_kill, "kill"},
        {60, act_crash, "crash"},
        {40, act_crash_loop, "crash loop"},
        {20, act_starve, "starve"},
        {40, act_kill_controller, "kill controller"},
        {90, act_sleep, "sleep"},
        {40, act_sleep_controller, "sleep controller"},
        {50, act_stop, "stop"},
        {50, act_unpublish, "unpublish"},
        {25, act_expand, "expand"},
        {90, act_snapshot, "snapshot"},
        {40, act_delete_snapshot, "delete snapshot"},
        {60, act_read_snapshot, "read snapshot"},
        {40, act_restore, "restore"},
        {25, act_maintain, "maintain"},
        {20, act_hand_over, "hand over"},
        {20, act_restore_race, "restore race"},
        {4, act_fsck, "fsck"},
        {40, act_create, "create"},
        {30, act_delete, "delete"},
        {40, act_background, "background"},
        {40, act_weather, "weather"},
        {60, act_retry, "retry"},
        {30, act_list, "list"},
        {8, act_blackout, "blackout"},
        {4, act_time_passes, "time passes"},
    };
    uint64_t total = 0;
    for (size_t i = 0; i < ARRAY_LEN(actions); i++)
        total += actions[i].weight;
    uint64_t pick = sim_below(&s->world, total);
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        if (pick < actions[i].weight) {
            sim_trace(&s->world, s->director.name, "step %llu: %s",
                      (unsigned long long)s->totals.steps - 1, actions[i].name);
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

/* A plan says where it ends. */
static bool enough(const struct sim *s) {
    if (s->options.plan.end > 0)
        return s->totals.steps >= s->options.plan.end;
    return s->checker.operations >= s->options.operations && s->totals.crashes >= CRASHES_MIN;
}

/* Each step has random numbers of its own. */
static void begin_step(struct sim *s, uint64_t step) {
    s->totals.steps = step + 1;
    if (s->options.step)
        *s->options.step = (uint32_t)step + 1;
    sim_rng_seed(&s->director.rng, s->options.seed + ((step + 1) << 32));
}

void director_run(struct sim *s) {
    struct controller *c = controller_start(s);
    controller_submit(c, &(struct task){.kind = TASK_PREPARE});
    while (c->tasks > 0 && director_pause(s, 10000))
        continue;
    create_volume(s, NULL, NULL);
    uint64_t operations = 0, idle = 0;
    for (unsigned step = 0; step < STEPS_MAX; step++) {
        if (enough(s))
            return;
        begin_step(s, step);
        keep_busy(s);
        /* Where the store is so bad that nothing comes to its end between two blows, they get
         * rarer. */
        idle = s->checker.operations == operations ? idle + 1 : 0;
        operations = s->checker.operations;
        if (!director_pause(s, sim_skewed(&s->world, 500, 150000) * (1 + idle / 10)))
            return;
        daemons_reap(s);
        bounds_check_all(s);
        if (!plan_has_step(&s->options.plan, step))
            continue;
        if (s->time_wanted && sim_chance(&s->world, 200))
            act_time_passes(s);
        else
            act(s);
    }
    sim_fail(s, "the run does not come to its end: %llu operations after %d steps",
             (unsigned long long)s->checker.operations, STEPS_MAX);
}
