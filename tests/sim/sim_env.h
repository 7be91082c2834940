/* A world on a virtual clock: several processes, each with an env of its own, in one thread.
 *
 * Nothing happens in parallel: sim_step() picks the next turn of anybody (an event, a timer, the
 * end of a job, a world timer) and runs it. All choices come from seeded generators, so a seed is a
 * run: each process has one of its own, which its starter's seeds, so that what happens to one does
 * not change the choices of another. Jobs run inline at a random later time.
 *
 * A process can sleep (its turns are held back and come after it wakes: a zombie) and be killed. A
 * killed process has no effect any more on anything outside (its store handles are cut, what it
 * says is not heard); its fibers are cancelled and run to their end, so that its memory is freed.
 */
#pragma once

#include "common/env.h"
#include "common/fiber.h"
#include "common/timer_heap.h"

struct sim_rng {
    uint64_t state[4];
};
void sim_rng_seed(struct sim_rng *r, uint64_t seed);

enum { SIM_ATTICS = 8 };

struct sim_world {
    uint64_t now_us;
    struct sim_rng *rng;      /* of whose turn it is; between turns: */
    struct sim_rng own_rng;   /* also for effects in the store */
    struct list_node procs;   /* struct sim_proc */
    struct timer_heap timers; /* of the world: effects in the store, plans */
    uint64_t turn_jitter_us;  /* a turn comes up to so much later than it could */
    uint64_t job_us_max;      /* a job takes up to so long */
    uint64_t turns;           /* so far */
    uint64_t digest;          /* of everything that ran: equal for equal seeds */
    bool trace;
    struct env attics[SIM_ATTICS]; /* run nothing: keep the stacks that processes leave */
};

void sim_world_init(struct sim_world *w, uint64_t seed);
void sim_world_release(struct sim_world *w);

uint64_t sim_random(struct sim_world *w);
uint64_t sim_below(struct sim_world *w, uint64_t n);                    /* 0 .. n-1; n > 0 */
uint64_t sim_between(struct sim_world *w, uint64_t low, uint64_t high); /* both included */
bool sim_chance(struct sim_world *w, unsigned per_mille);
/* low .. high, small values much more often than large ones. */
uint64_t sim_skewed(struct sim_world *w, uint64_t low, uint64_t high);

/* Runs the next turn; false when nothing will ever happen by itself. */
bool sim_step(struct sim_world *w);

/* World timers are not held back by anybody's sleep. */
void sim_timer_start(struct sim_world *w, struct env_timer *timer, uint64_t delay_us);
void sim_timer_stop(struct sim_world *w, struct env_timer *timer);

/* Mixes into the digest; with trace also prints. */
void sim_trace(struct sim_world *w, const char *who, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* The same, of words that follow each other: for what happens often. */
void sim_note(struct sim_world *w, const char *who, const char *const *words, size_t count);

enum { SIM_NAME_MAX = 24 };

struct sim_proc {
    struct env env;
    struct sim_world *world; /* borrowed */
    struct list_node node;   /* on world->procs */
    char name[SIM_NAME_MAX];
    struct env_event *events; /* posted, in order */
    struct env_event **events_tail;
    uint64_t turn_us; /* when the first of them may run */
    struct timer_heap timers;
    struct sim_rng rng;
    size_t jobs;
    uint64_t asleep_until_us;
    bool killed;
    uint64_t dead_us; /* its clock since then, ahead of the world's */
    /* Called by sim_proc_kill, once, first: stops what the process does to others, starts the
     * release of what it holds. */
    void (*on_kill)(struct sim_proc *p);
    /* Is everything released that fibers and jobs do not know of? NULL: yes. */
    bool (*gone)(struct sim_proc *p);
    void (*describe)(struct sim_proc *p); /* says on stderr what it waits for; may be NULL */
    void *owner;                          /* the program's own */
};

void sim_proc_init(struct sim_proc *p, struct sim_world *w, const char *name);
/* No fiber, event, timer or job may be left. */
void sim_proc_release(struct sim_proc *p);

/* Its turns are held back for so long from now. */
void sim_proc_sleep(struct sim_proc *p, uint64_t us);
bool sim_proc_asleep(const struct sim_proc *p);

/* Between two turns of the world, not in one of the process. When it returns no fiber of the
 * process is left and gone() is true. */
void sim_proc_kill(struct sim_proc *p);
