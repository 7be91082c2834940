/* The virtual world: who runs next, and struct env on top of it.
 *
 * I1 Time never goes back; a turn runs at its time or, held back by a sleep, later.
 * I2 Events of a process run in the order of their posts, one a turn.
 * I3 Everything that is decided is decided by the generators: no address, clock or hash order is
 *    used.
 *
 * A killed process is run to its end at once, without anybody else: its jobs end, and its own clock
 * goes from timer to timer. The rest of the world sees nothing of that. */
#include "tests/sim/sim_env.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

enum { DRAIN_TURNS_MAX = 1000 * 1000 }; /* a killed process that is not gone by then hangs */

struct sim_job {
    struct env_timer timer;
    struct env_job *job; /* borrowed */
    struct sim_proc *proc;
};

static uint64_t rotl(uint64_t x, int k) {
    return (x << k) | (x >> (64 - k));
}

/* splitmix64 (Vigna, public domain), to spread a seed. */
static uint64_t spread(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

void sim_rng_seed(struct sim_rng *r, uint64_t seed) {
    for (size_t i = 0; i < ARRAY_LEN(r->state); i++)
        r->state[i] = spread(&seed);
}

void sim_world_init(struct sim_world *w, uint64_t seed) {
    *w = (struct sim_world){.now_us = 1000000, .turn_jitter_us = 50, .job_us_max = 3000};
    w->rng = &w->own_rng;
    sim_rng_seed(w->rng, seed);
    list_init(&w->procs);
    env_init(&w->attics[0], NULL);
    for (size_t i = 1; i < SIM_ATTICS; i++)
        env_init_sharing_stacks(&w->attics[i], NULL, &w->attics[0]);
}

void sim_world_release(struct sim_world *w) {
    CHECK(list_empty(&w->procs));
    for (size_t i = 0; i < SIM_ATTICS; i++)
        env_release(&w->attics[i]);
    CHECK(w->timers.count == 0);
    timer_heap_release(&w->timers);
}

/* xoshiro256** (Blackman, Vigna; public domain). */
static uint64_t rng_next(struct sim_rng *r) {
    uint64_t *s = r->state;
    uint64_t result = rotl(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotl(s[3], 45);
    return result;
}

uint64_t sim_random(struct sim_world *w) {
    return rng_next(w->rng);
}

uint64_t sim_below(struct sim_world *w, uint64_t n) {
    CHECK(n > 0);
    return sim_random(w) % n;
}

uint64_t sim_between(struct sim_world *w, uint64_t low, uint64_t high) {
    CHECK(low <= high);
    return low + sim_below(w, high - low + 1);
}

bool sim_chance(struct sim_world *w, unsigned per_mille) {
    return sim_below(w, 1000) < per_mille;
}

uint64_t sim_skewed(struct sim_world *w, uint64_t low, uint64_t high) {
    uint64_t span = high - low + 1;
    uint64_t bits = 0;
    while (bits < 63 && (UINT64_C(1) << bits) < span)
        bits++;
    uint64_t limit = UINT64_C(1) << sim_between(w, 0, bits);
    return low + sim_below(w, MIN(span, limit));
}

static uint64_t mix(uint64_t h, const char *text) {
    for (; *text; text++)
        h = (h ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    return h;
}

void sim_note(struct sim_world *w, const char *who, const char *const *words, size_t count) {
    w->digest ^= w->now_us;
    for (size_t i = 0; i < count; i++)
        w->digest = mix(w->digest, words[i]);
    if (!w->trace)
        return;
    printf("%10" PRIu64 ".%06" PRIu64 " %-12s ", w->now_us / 1000000, w->now_us % 1000000, who);
    for (size_t i = 0; i < count; i++)
        fputs(words[i], stdout);
    putchar('\n');
}

void sim_trace(struct sim_world *w, const char *who, const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    sim_note(w, who, (const char *const[]){text}, 1);
}

/* --- struct env --- */

static struct sim_proc *proc_of(struct env *env) {
    return container_of(env, struct sim_proc, env);
}

static uint64_t op_now_us(struct env *env) {
    const struct sim_proc *p = proc_of(env);
    return MAX(p->world->now_us, p->dead_us);
}

static uint64_t op_wall_ms(struct env *env) {
    return UINT64_C(1700000000000) + proc_of(env)->world->now_us / 1000;
}

static void op_random(struct env *env, void *buf, size_t len) {
    struct sim_world *w = proc_of(env)->world;
    uint8_t *to = buf;
    while (len > 0) {
        uint64_t v = sim_random(w);
        size_t n = MIN(len, sizeof v);
        memcpy(to, &v, n);
        to += n;
        len -= n;
    }
}

static void op_post(struct env *env, struct env_event *event) {
    struct sim_proc *p = proc_of(env);
    if (!p->events)
        p->turn_us = p->world->now_us + rng_next(&p->rng) % (p->world->turn_jitter_us + 1);
    event->next = NULL;
    *p->events_tail = event;
    p->events_tail = &event->next;
}

static void op_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_us) {
    struct sim_proc *p = proc_of(env);
    timer_heap_start(&p->timers, timer, op_now_us(env) + delay_us);
}

static void op_timer_stop(struct env *env, struct env_timer *timer) {
    timer_heap_stop(&proc_of(env)->timers, timer);
}

static void on_job_time(struct env_timer *timer) {
    struct sim_job *j = container_of(timer, struct sim_job, timer);
    struct env_job *job = j->job;
    j->proc->jobs--;
    freep_(&j);
    job->run(job);
    job->done(job);
}

static void op_job_submit(struct env *env, struct env_job *job) {
    struct sim_proc *p = proc_of(env);
    struct sim_job *j = NEW(struct sim_job);
    *j = (struct sim_job){.timer.fn = on_job_time, .job = job, .proc = p};
    p->jobs++;
    struct sim_rng *rng = p->world->rng;
    p->world->rng = &p->rng;
    uint64_t us = sim_skewed(p->world, 0, p->world->job_us_max);
    p->world->rng = rng;
    timer_heap_start(&p->timers, &j->timer, op_now_us(env) + us);
}

static const struct env_ops sim_env_ops = {
    .now_us = op_now_us,
    .wall_ms = op_wall_ms,
    .random = op_random,
    .post = op_post,
    .timer_start = op_timer_start,
    .timer_stop = op_timer_stop,
    .job_submit = op_job_submit,
};

/* --- processes --- */

void sim_proc_init(struct sim_proc *p, struct sim_world *w, const char *name) {
    *p = (struct sim_proc){.world = w};
    env_init_sharing_stacks(&p->env, &sim_env_ops, &w->attics[0]);
    snprintf(p->name, sizeof p->name, "%s", name);
    sim_rng_seed(&p->rng, sim_random(w));
    p->events_tail = &p->events;
    list_push_back(&w->procs, &p->node);
}

void sim_proc_release(struct sim_proc *p) {
    CHECK(!p->events);
    CHECK(p->timers.count == 0);
    CHECK(p->jobs == 0);
    env_release(&p->env);
    timer_heap_release(&p->timers);
    list_remove(&p->node);
}

void sim_proc_sleep(struct sim_proc *p, uint64_t us) {
    p->asleep_until_us = MAX(p->asleep_until_us, p->world->now_us + us);
}

bool sim_proc_asleep(const struct sim_proc *p) {
    return p->asleep_until_us > p->world->now_us;
}

static void run_event(struct sim_proc *p) {
    struct env_event *event = p->events;
    p->events = event->next;
    if (!p->events)
        p->events_tail = &p->events;
    else
        p->turn_us = p->world->now_us;
    event->fn(event);
}

static void run_timer(struct timer_heap *h, struct env_timer *t) {
    timer_heap_stop(h, t);
    t->fn(t);
}

/* When something of the process may run; UINT64_MAX: nothing will. */
static uint64_t proc_next_us(const struct sim_proc *p) {
    uint64_t next = p->events ? p->turn_us : UINT64_MAX;
    struct env_timer *t = timer_heap_first(&p->timers);
    if (t)
        next = MIN(next, t->due_us);
    return next == UINT64_MAX ? next : MAX(next, p->asleep_until_us);
}

static void proc_run(struct sim_proc *p) {
    p->world->rng = &p->rng;
    struct env_timer *t = timer_heap_first(&p->timers);
    if (p->events && (!t || p->turn_us <= t->due_us))
        run_event(p);
    else
        run_timer(&p->timers, t);
    CHECK(p->env.fiber_current == NULL);
    p->world->rng = &p->world->own_rng;
}

bool sim_step(struct sim_world *w) {
    struct env_timer *first = timer_heap_first(&w->timers);
    uint64_t best = first ? first->due_us : UINT64_MAX;
    struct sim_proc *who = NULL;
    uint64_t index = 0, who_index = 0;
    list_for_each (&w->procs, node) {
        struct sim_proc *p = list_entry(node, struct sim_proc, node);
        uint64_t next = proc_next_us(p);
        index++;
        if (next < best) {
            best = next;
            who = p;
            who_index = index;
        }
    }
    if (best == UINT64_MAX)
        return false;
    w->now_us = MAX(w->now_us, best);
    w->turns++;
    w->digest = (w->digest ^ w->now_us ^ (who_index << 56)) * UINT64_C(0x100000001b3);
    if (who)
        proc_run(who);
    else
        run_timer(&w->timers, first);
    return true;
}

void sim_timer_start(struct sim_world *w, struct env_timer *timer, uint64_t delay_us) {
    timer_heap_start(&w->timers, timer, w->now_us + delay_us);
}

void sim_timer_stop(struct sim_world *w, struct env_timer *timer) {
    timer_heap_stop(&w->timers, timer);
}

static bool all_gone(struct sim_proc *p) {
    return list_empty(&p->env.fibers) && p->jobs == 0 && !p->events && (!p->gone || p->gone(p));
}

/* Nothing to run, but something is not released: a bug of what runs in it. */
NORETURN static void hangs(struct sim_proc *p) {
    size_t fibers = 0;
    list_for_each (&p->env.fibers, node)
        fibers++;
    fprintf(stderr, "killed process %s hangs: %zu fibers\n", p->name, fibers);
    if (p->describe)
        p->describe(p);
    abort();
}

void sim_proc_kill(struct sim_proc *p) {
    CHECK(!p->killed);
    CHECK(p->env.fiber_current == NULL);
    struct sim_rng *rng = p->world->rng;
    p->world->rng = &p->rng;
    p->killed = true;
    p->asleep_until_us = 0;
    if (p->on_kill)
        p->on_kill(p);
    unsigned turns = 0;
    while (!all_gone(p)) {
        CHECK(turns++ < DRAIN_TURNS_MAX);
        fiber_cancel_all(&p->env);
        struct env_timer *t = timer_heap_first(&p->timers);
        if (p->events) {
            run_event(p);
        } else if (t) {
            p->dead_us = MAX(p->dead_us, t->due_us);
            run_timer(&p->timers, t);
        } else {
            hangs(p);
        }
    }
    p->world->rng = rng;
}
