/* The env of unit tests. */
#include "tests/support/virtual_env.h"

#include "common/fiber.h"

static struct virtual_env *virtual_of(struct env *env) {
    return container_of(env, struct virtual_env, env);
}

static uint64_t op_now_us(struct env *env) {
    return virtual_of(env)->now_us;
}

static uint64_t op_wall_ms(struct env *env) {
    return UINT64_C(1700000000000) + virtual_of(env)->now_us / 1000;
}

/* splitmix64 */
static uint64_t next_random(struct virtual_env *v) {
    uint64_t z = v->random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static void op_random(struct env *env, void *buf, size_t len) {
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = (uint8_t)next_random(virtual_of(env));
}

static void op_post(struct env *env, struct env_event *event) {
    struct virtual_env *v = virtual_of(env);
    event->next = NULL;
    *v->tail = event;
    v->tail = &event->next;
}

static void op_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_us) {
    timer_heap_start(&virtual_of(env)->timers, timer, virtual_of(env)->now_us + delay_us);
}

static void op_timer_stop(struct env *env, struct env_timer *timer) {
    timer_heap_stop(&virtual_of(env)->timers, timer);
}

static void job_turn(struct env_event *event) {
    struct env_job *job = container_of(event, struct env_job, event);
    job->run(job);
    job->done(job);
}

static void op_job_submit(struct env *env, struct env_job *job) {
    job->event.fn = job_turn;
    op_post(env, &job->event);
}

static const struct env_ops virtual_ops = {
    .now_us = op_now_us,
    .wall_ms = op_wall_ms,
    .random = op_random,
    .post = op_post,
    .timer_start = op_timer_start,
    .timer_stop = op_timer_stop,
    .job_submit = op_job_submit,
};

void virtual_env_init(struct virtual_env *v, uint64_t seed) {
    *v = (struct virtual_env){.random_state = seed, .now_us = 1000};
    env_init(&v->env, &virtual_ops);
    v->tail = &v->first;
}

void virtual_env_release(struct virtual_env *v) {
    CHECK(!v->first && !timer_heap_first(&v->timers));
    timer_heap_release(&v->timers);
    env_release(&v->env);
}

static bool run_due_timer(struct virtual_env *v) {
    struct env_timer *t = timer_heap_first(&v->timers);
    if (!t || t->due_us > v->now_us)
        return false;
    timer_heap_stop(&v->timers, t);
    t->fn(t);
    return true;
}

static bool run_event(struct virtual_env *v) {
    struct env_event *event = v->first;
    if (!event)
        return false;
    v->first = event->next;
    if (!v->first)
        v->tail = &v->first;
    event->fn(event);
    return true;
}

void virtual_env_run_ready(struct virtual_env *v) {
    while (run_event(v) || run_due_timer(v)) {
    }
}

void virtual_env_run_until(struct virtual_env *v, uint64_t until_us) {
    for (;;) {
        virtual_env_run_ready(v);
        struct env_timer *t = timer_heap_first(&v->timers);
        if (!t || t->due_us > until_us)
            break;
        v->now_us = t->due_us;
    }
    if (until_us != UINT64_MAX)
        v->now_us = MAX(v->now_us, until_us);
}

void virtual_env_run(struct virtual_env *v) {
    virtual_env_run_until(v, UINT64_MAX);
}

void virtual_env_call(struct virtual_env *v, void (*fn)(void *arg), void *arg) {
    fiber_start(&v->env, fn, arg);
    virtual_env_run(v);
    CHECK(list_empty(&v->env.fibers));
}
