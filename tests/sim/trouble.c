/* What the director does to processes and to the store: deaths, sleep, want, weather. */
#include <string.h>

#include "tests/sim/director.h"

/* --- deaths --- */

/* The agent is told to forget it by some, else it starts the next one at once. */
void act_kill(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (!d)
        return;
    struct sim_journal *j = d->journal;
    daemon_kill(d);
    if (!j)
        return;
    if (sim_chance(&s->world, s->loyal ? 950 : 600))
        daemon_respawn(s, j);
    else if (sim_chance(&s->world, 500))
        j->owned = false;
}

/* A daemon dies in the middle of its work and comes back. */
void act_crash(struct sim *s) {
    struct sim_journal *j = pick_serving_journal(s);
    if (!j)
        return;
    daemon_kill(j->user);
    daemon_respawn(s, j);
}

/* Whatever it does, it dies, most often while it opens. Sometimes somebody else comes then. */
void act_crash_loop(struct sim *s) {
    struct sim_journal *j = pick_serving_journal(s);
    if (!j)
        return;
    struct sim_volume *vol = j->vol;
    uint64_t us_max = sim_skewed(&s->world, 1000, 400000);
    for (uint64_t n = sim_between(&s->world, 2, 5); n > 0; n--) {
        if (j->user)
            daemon_kill(j->user);
        if (!daemon_respawn(s, j) || !director_pause(s, sim_between(&s->world, 0, us_max)))
            return;
        daemons_reap(s);
    }
    if (sim_chance(&s->world, 250) && vol->publish_epoch > 0 && vol->state == LIVE) {
        if (j->user && sim_chance(&s->world, 700))
            daemon_kill(j->user);
        daemon_start(s, vol, vol->publish_epoch);
    }
}

/* The node's tmpfs is full for a while. */
void act_starve(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (d && d->journal)
        d->journal->ram.refuse_next = (unsigned)sim_skewed(&s->world, 1, 40);
}

void act_kill_controller(struct sim *s) {
    struct controller *c = pick_controller(s);
    if (c->tasks > 0 || sim_chance(&s->world, 200))
        controller_kill(c);
}

/* --- sleep --- */

static uint64_t draw_sleep_us(struct sim *s) {
    return sim_skewed(&s->world, 1000, 30 * 1000000);
}

static void put_to_sleep(struct sim *s, struct sim_proc *p) {
    s->totals.sleeps++;
    scenarios_at_sleep(s, p);
    uint64_t us = draw_sleep_us(s);
    sim_trace(&s->world, p->name, "falls asleep for %llu us", (unsigned long long)us);
    sim_proc_sleep(p, us);
}

void act_sleep(struct sim *s) {
    struct daemon *d = pick_daemon(s, NULL);
    if (d)
        put_to_sleep(s, &d->proc);
}

void act_sleep_controller(struct sim *s) {
    struct controller *c = pick_controller(s);
    if (c->tasks > 0)
        put_to_sleep(s, &c->proc);
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
    bool long_sleep = spot->sleeps_long && sim_chance(&s->world, 300);
    uint64_t us = long_sleep ? sim_between(&s->world, SWEEP_INTERVAL_US, 2 * SWEEP_INTERVAL_US)
                             : sim_skewed(&s->world, 1000, 3000000);
    s->time_wanted |= long_sleep;
    sim_trace(&s->world, p->name, "falls asleep at its sore spot for %llu us",
              (unsigned long long)us);
    sim_proc_sleep(p, us);
}

static void on_submit(void *arg, struct sim_proc *p, enum obj_verb verb, const char *key) {
    struct sim *s = arg;
    scenarios_at_submit(s, p, verb, key);
    if (p == s->ambushed && verb == s->ambush.verb && strstr(key, s->ambush.part)) {
        s->ambushed = NULL;
        fall_asleep(s, p, &s->ambush);
    }
    for (size_t i = 0; !s->stopping && i < ARRAY_LEN(s->spots); i++) {
        const struct sore_spot *spot = &s->spots[i];
        if (spot->part && verb == spot->verb && strstr(key, spot->part) &&
            sim_chance(&s->world, spot->per_mille))
            fall_asleep(s, p, spot);
    }
}

void director_draw_spots(struct sim *s) {
    for (size_t i = 0; i < ARRAY_LEN(s->spots); i++) {
        if (sim_chance(&s->world, 500))
            continue;
        s->spots[i] = spots[sim_below(&s->world, ARRAY_LEN(spots))];
        s->spots[i].per_mille = (unsigned)sim_between(&s->world, 20, 600);
        s->spots[i].sleeps_long = sim_chance(&s->world, 400);
    }
    sim_bucket_set_submit_hook(s->bucket, on_submit, s);
}

/* --- the store --- */

void act_weather(struct sim *s) {
    sim_bucket_set_faults(s->bucket, sim_chance(&s->world, 300) ? &s->storm : &s->calm);
}

/* The store is gone for a while: everything waits, nothing fails. */
void act_blackout(struct sim *s) {
    struct sim_faults dark = s->calm;
    dark.refused = 1000;
    sim_bucket_set_faults(s->bucket, &dark);
    s->totals.blackouts++;
    director_pause(s, sim_skewed(&s->world, 1000, 60 * 1000000));
    sim_bucket_set_faults(s->bucket, &s->calm);
}
