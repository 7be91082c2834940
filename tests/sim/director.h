/* What the files of the director share: drawing somebody, and the actions. */
#pragma once

#include "tests/sim/sim.h"

/* fiber of sim->director. False: the run is over. */
static inline bool director_pause(struct sim *s, uint64_t us) {
    return fiber_sleep_us(&s->director.env, us) == 0;
}

/* --- pick.c: NULL when there is none --- */
struct sim_volume *pick_volume(struct sim *s);
bool source_is_gone(const struct sim_volume *v);
/* Those that live or may yet come to be. */
unsigned count_volumes(struct sim *s);
struct snap *pick_snap(struct sim *s, bool unborn);
unsigned count_snaps(struct sim *s);
struct daemon *pick_daemon(struct sim *s, struct sim_volume *vol);
unsigned count_daemons(struct sim *s, const struct sim_volume *vol, bool writers);
/* Somebody who will serve this volume without our help. */
bool has_writer_awake(struct sim *s, const struct sim_volume *vol);
struct controller *pick_controller(struct sim *s);
struct sim_journal *pick_serving_journal(struct sim *s);

/* --- trouble.c --- */
void act_kill(struct sim *s);
void act_crash(struct sim *s);
void act_crash_loop(struct sim *s);
void act_starve(struct sim *s);
void act_kill_controller(struct sim *s);
void act_sleep(struct sim *s);
void act_sleep_controller(struct sim *s);
void act_weather(struct sim *s);
void act_blackout(struct sim *s);
