/* Fibers: ucontext(3) makes a stack's first context; from then on a switch is _setjmp and _longjmp,
 * because swapcontext makes a system call for the signal mask, which is everybody's here.
 *
 * States of a fiber, and what moves it:
 *
 *   READY --turn of the loop--> RUNNING --waitq_wait--> WAITING --wake, timeout, cancel--> READY
 *                                  \--fn returns--> ENDED (its stack goes to the free list)
 *
 * I1 A WAITING fiber is on at most one wait queue, and its `event` is not posted.
 * I2 A READY fiber's event is posted exactly once.
 * I3 Only resume() enters a fiber, only suspend() and the end leave it; both on the env's owner
 * thread.
 *
 * Stacks are mapped with a guard page below and kept for reuse, STACKS_FREE_MAX at most. A free one
 * that was used waits in entry() for the next fiber. */
#undef _FORTIFY_SOURCE /* its longjmp takes a switch to another stack for a mistake */
#include "common/fiber.h"

#include <setjmp.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "common/mem.h"

#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define FIBER_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define FIBER_TSAN 1
#include <sanitizer/tsan_interface.h>
#endif

/* Sanitizers follow stacks through swapcontext. */
#if defined(FIBER_ASAN) || defined(FIBER_TSAN)
#define FIBER_SWAPCONTEXT 1
#endif

enum { STACKS_FREE_MAX = 64 };

enum fiber_state { FIBER_READY, FIBER_RUNNING, FIBER_WAITING, FIBER_ENDED };

struct fiber {
    struct list_node node;      /* on env->fibers */
    struct list_node wait_node; /* on a wait queue while WAITING */
    struct env_event event;
    struct env_timer timer;
    struct env *env;
    void (*fn)(void *arg);
    void *arg;
    enum fiber_state state;
    int wait_result;
    bool cancelled;
    bool uncancellable; /* waits on although cancelled */
    struct stack *stack;
#ifdef FIBER_ASAN
    void *asan_fake_stack;
    const void *asan_caller_bottom;
    size_t asan_caller_size;
#endif
#ifdef FIBER_TSAN
    void *tsan_fiber;
    void *tsan_caller;
#endif
};

/* A place to go on from. */
struct context {
#ifdef FIBER_SWAPCONTEXT
    ucontext_t ucontext;
#else
    jmp_buf jump;
#endif
};

/* At the upper end of its own mapping, which begins with a guard page. */
struct stack {
    uint8_t *mapping;
    struct fiber *fiber; /* that runs on it */
    struct context here; /* once begun: where the stack goes on */
    struct context caller;
    ucontext_t start;
    bool begun;
};
enum {
    STACK_TOP_SIZE = ALIGN_UP(sizeof(struct stack), 64),
    STACK_USABLE = FIBER_STACK_SIZE - STACK_TOP_SIZE,
};

/* Free stacks, of all envs that share them. */
struct stack_pool {
    size_t users;
    size_t count;
    struct stack **stacks; /* owned; STACKS_FREE_MAX for each user */
};

static size_t guard_size(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void *stack_bottom(const struct stack *s) {
    return s->mapping + guard_size();
}

/* --- switching --- */

/* Goes on at `to`; returns when somebody goes to `from`. */
static void __attribute__((noinline)) switch_context(struct context *from, struct context *to) {
#ifdef FIBER_SWAPCONTEXT
    CHECK(swapcontext(&from->ucontext, &to->ucontext) == 0);
#else
    if (_setjmp(from->jump) == 0)
        _longjmp(to->jump, 1);
#endif
}

static void __attribute__((noinline)) begin_context(struct context *from, const ucontext_t *start) {
#ifdef FIBER_SWAPCONTEXT
    CHECK(swapcontext(&from->ucontext, start) == 0);
#else
    if (_setjmp(from->jump) == 0)
        setcontext(start);
#endif
}

/* All that ever runs at the bottom of a stack: one fiber after the other. */
static void entry(unsigned hi, unsigned lo) {
    struct stack *s = (struct stack *)(((uintptr_t)hi << 32) | lo);
    for (;;) {
        struct fiber *f = s->fiber;
#ifdef FIBER_ASAN
        __sanitizer_finish_switch_fiber(NULL, &f->asan_caller_bottom, &f->asan_caller_size);
#endif
        f->fn(f->arg);
        f->state = FIBER_ENDED;
#ifdef FIBER_ASAN
        __sanitizer_start_switch_fiber(NULL, f->asan_caller_bottom, f->asan_caller_size);
#endif
#ifdef FIBER_TSAN
        __tsan_switch_to_fiber(f->tsan_caller, 0);
#endif
        switch_context(&s->here, &s->caller);
    }
}

/* --- stacks --- */

static struct stack *stack_map(void) {
    size_t size = guard_size() + FIBER_STACK_SIZE;
    uint8_t *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    CHECK(p != MAP_FAILED);
    CHECK(mprotect(p, guard_size(), PROT_NONE) == 0);
    struct stack *s = (void *)(p + size - STACK_TOP_SIZE);
    s->mapping = p;
    CHECK(getcontext(&s->start) == 0);
    s->start.uc_stack.ss_sp = stack_bottom(s);
    s->start.uc_stack.ss_size = STACK_USABLE;
    s->start.uc_link = NULL;
    uintptr_t at = (uintptr_t)s;
    makecontext(&s->start, (void (*)(void))entry, 2, (unsigned)(at >> 32), (unsigned)at);
    return s;
}

static void stack_unmap(struct stack *s) {
#ifdef FIBER_ASAN
    __asan_unpoison_memory_region(stack_bottom(s), FIBER_STACK_SIZE);
#endif
    munmap(s->mapping, guard_size() + FIBER_STACK_SIZE);
}

static struct stack *stack_get(struct env *env) {
    struct stack_pool *pool = env->fiber_stacks;
    return pool->count > 0 ? pool->stacks[--pool->count] : stack_map();
}

static void stack_put(struct stack_pool *pool, struct stack *s) {
    s->fiber = NULL;
    if (pool->count < pool->users * STACKS_FREE_MAX)
        pool->stacks[pool->count++] = s;
    else
        stack_unmap(s);
}

static void pool_set_users(struct stack_pool *pool, size_t users) {
    pool->users = users;
    while (pool->count > users * STACKS_FREE_MAX)
        stack_unmap(pool->stacks[--pool->count]);
    pool->stacks = xrealloc(pool->stacks, users * STACKS_FREE_MAX * sizeof(struct stack *));
}

void env_init(struct env *env, const struct env_ops *ops) {
    *env = (struct env){.ops = ops};
    list_init(&env->fibers);
    env->fiber_stacks = NEW(struct stack_pool);
    pool_set_users(env->fiber_stacks, 1);
}

void env_init_sharing_stacks(struct env *env, const struct env_ops *ops, struct env *with) {
    *env = (struct env){.ops = ops, .fiber_stacks = with->fiber_stacks};
    list_init(&env->fibers);
    struct stack_pool *pool = env->fiber_stacks;
    pool_set_users(pool, pool->users + 1);
}

void env_release(struct env *env) {
    CHECK(list_empty(&env->fibers));
    struct stack_pool *pool = env->fiber_stacks;
    pool_set_users(pool, pool->users - 1);
    if (pool->users == 0) {
        free(pool->stacks);
        free(pool);
    }
    env->fiber_stacks = NULL;
}

/* --- states --- */

static void end(struct fiber *f) {
    list_remove(&f->node);
    stack_put(f->env->fiber_stacks, f->stack);
#ifdef FIBER_TSAN
    __tsan_destroy_fiber(f->tsan_fiber);
#endif
    free(f);
}

/* A turn of the loop: enters the fiber and comes back when it waits or ends. */
static void resume(struct env_event *event) {
    struct fiber *f = container_of(event, struct fiber, event);
    struct env *env = f->env;
    CHECK(f->state == FIBER_READY);
    CHECK(env->fiber_current == NULL);
    f->state = FIBER_RUNNING;
    env->fiber_current = f;
#ifdef FIBER_ASAN
    void *fake_stack = NULL;
    __sanitizer_start_switch_fiber(&fake_stack, stack_bottom(f->stack), STACK_USABLE);
#endif
#ifdef FIBER_TSAN
    f->tsan_caller = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(f->tsan_fiber, 0);
#endif
    struct stack *s = f->stack;
    if (s->begun) {
        switch_context(&s->caller, &s->here);
    } else {
        s->begun = true;
        begin_context(&s->caller, &s->start);
    }
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, NULL, NULL);
#endif
    env->fiber_current = NULL;
    if (f->state == FIBER_ENDED)
        end(f);
}

/* Leaves the running fiber until somebody makes it ready. */
static int suspend(struct fiber *f) {
    CHECK(f->state == FIBER_RUNNING);
    f->state = FIBER_WAITING;
#ifdef FIBER_ASAN
    __sanitizer_start_switch_fiber(&f->asan_fake_stack, f->asan_caller_bottom, f->asan_caller_size);
#endif
#ifdef FIBER_TSAN
    __tsan_switch_to_fiber(f->tsan_caller, 0);
#endif
    switch_context(&f->stack->here, &f->stack->caller);
#ifdef FIBER_ASAN
    __sanitizer_finish_switch_fiber(f->asan_fake_stack, &f->asan_caller_bottom,
                                    &f->asan_caller_size);
#endif
    CHECK(f->state == FIBER_RUNNING);
    return f->wait_result;
}

static void make_ready(struct fiber *f, int result) {
    CHECK(f->state == FIBER_WAITING);
    if (list_linked(&f->wait_node))
        list_remove(&f->wait_node);
    env_timer_stop(f->env, &f->timer);
    f->wait_result = result;
    f->state = FIBER_READY;
    env_post(f->env, &f->event);
}

static void on_timeout(struct env_timer *timer) {
    make_ready(container_of(timer, struct fiber, timer), -ERR_TIMEOUT);
}

struct fiber *fiber_start(struct env *env, void (*fn)(void *arg), void *arg) {
    struct fiber *f = NEW(struct fiber);
    f->env = env;
    f->fn = fn;
    f->arg = arg;
    f->event.fn = resume;
    f->timer.fn = on_timeout;
    f->stack = stack_get(env);
    f->stack->fiber = f;
#ifdef FIBER_TSAN
    f->tsan_fiber = __tsan_create_fiber(0);
#endif
    list_push_back(&env->fibers, &f->node);
    f->state = FIBER_READY;
    env_post(env, &f->event);
    return f;
}

struct fiber *fiber_self(struct env *env) {
    return env->fiber_current;
}

void fiber_cancel(struct fiber *f) {
    f->cancelled = true;
    if (f->state == FIBER_WAITING && !f->uncancellable)
        make_ready(f, -ERR_CANCELLED);
}

void fiber_cancel_all(struct env *env) {
    list_for_each (&env->fibers, node)
        fiber_cancel(list_entry(node, struct fiber, node));
}

bool fiber_cancelled(struct env *env) {
    return env->fiber_current && env->fiber_current->cancelled;
}

void waitq_init(struct waitq *q) {
    list_init(&q->waiters);
}

bool waitq_empty(const struct waitq *q) {
    return list_empty(&q->waiters);
}

static struct fiber *running(struct env *env) {
    CHECK(env->fiber_current);
    return env->fiber_current;
}

int waitq_wait(struct env *env, struct waitq *q) {
    struct fiber *f = running(env);
    if (f->cancelled)
        return -ERR_CANCELLED;
    list_push_back(&q->waiters, &f->wait_node);
    return suspend(f);
}

int waitq_wait_for(struct env *env, struct waitq *q, uint64_t delay_us) {
    struct fiber *f = running(env);
    if (f->cancelled)
        return -ERR_CANCELLED;
    list_push_back(&q->waiters, &f->wait_node);
    env_timer_start(env, &f->timer, delay_us);
    return suspend(f);
}

void waitq_wait_always(struct env *env, struct waitq *q) {
    struct fiber *f = running(env);
    CHECK(!f->uncancellable);
    f->uncancellable = true;
    list_push_back(&q->waiters, &f->wait_node);
    (void)suspend(f);
    f->uncancellable = false;
}

void waitq_wake_one(struct waitq *q) {
    if (!list_empty(&q->waiters))
        make_ready(list_entry(q->waiters.next, struct fiber, wait_node), 0);
}

void waitq_wake_all(struct waitq *q) {
    while (!list_empty(&q->waiters))
        waitq_wake_one(q);
}

int fiber_sleep_us(struct env *env, uint64_t delay_us) {
    struct fiber *f = running(env);
    if (f->cancelled)
        return -ERR_CANCELLED;
    env_timer_start(env, &f->timer, delay_us);
    int rc = suspend(f);
    return rc == -ERR_TIMEOUT ? 0 : rc;
}

int fiber_yield(struct env *env) {
    return fiber_sleep_us(env, 0);
}

void fiber_done_init(struct fiber_done *d) {
    d->done = false;
    waitq_init(&d->waiters);
}

void fiber_done_set(struct fiber_done *d) {
    d->done = true;
    waitq_wake_all(&d->waiters);
}

int fiber_done_wait(struct env *env, struct fiber_done *d) {
    return d->done ? 0 : waitq_wait(env, &d->waiters);
}

void fiber_done_wait_always(struct env *env, struct fiber_done *d) {
    while (!d->done)
        waitq_wait_always(env, &d->waiters);
}

/* fiber_run_job: the job and the flag live on the fiber's stack, hence the wait that is not
 * cancellable. */
struct fiber_job {
    struct env_job job;
    struct fiber_done done;
    void (*fn)(void *arg);
    void *arg;
};

static void job_run(struct env_job *job) {
    struct fiber_job *j = container_of(job, struct fiber_job, job);
    j->fn(j->arg);
}

static void job_done(struct env_job *job) {
    fiber_done_set(&container_of(job, struct fiber_job, job)->done);
}

void fiber_run_job(struct env *env, void (*fn)(void *arg), void *arg) {
    struct fiber_job j = {.job = {.run = job_run, .done = job_done}, .fn = fn, .arg = arg};
    fiber_done_init(&j.done);
    env_job_submit(env, &j.job);
    fiber_done_wait_always(env, &j.done);
}

void fiber_run_job_if(struct env *env, bool large, void (*fn)(void *arg), void *arg) {
    if (large)
        fiber_run_job(env, fn, arg);
    else
        fn(arg);
}

void fiber_group_init(struct fiber_group *g, struct env *env) {
    g->env = env;
    list_init(&g->members);
    waitq_init(&g->waiters);
}

struct group_member {
    struct list_node node; /* on group->members */
    struct fiber_group *group;
    struct fiber *fiber;
    void (*fn)(void *arg);
    void *arg;
};

static void group_run(void *arg) {
    struct group_member *m = arg;
    struct fiber_group *g = m->group;
    m->fn(m->arg);
    list_remove(&m->node);
    free(m);
    if (list_empty(&g->members))
        waitq_wake_all(&g->waiters);
}

void fiber_group_start(struct fiber_group *g, void (*fn)(void *arg), void *arg) {
    struct group_member *m = NEW(struct group_member);
    *m = (struct group_member){.group = g, .fn = fn, .arg = arg};
    list_push_back(&g->members, &m->node);
    m->fiber = fiber_start(g->env, group_run, m);
}

int fiber_group_wait(struct fiber_group *g) {
    int rc = 0;
    while (!list_empty(&g->members) && rc == 0)
        rc = waitq_wait(g->env, &g->waiters);
    if (rc == 0)
        return 0;
    list_for_each (&g->members, node)
        fiber_cancel(list_entry(node, struct group_member, node)->fiber);
    while (!list_empty(&g->members))
        waitq_wait_always(g->env, &g->waiters);
    return rc;
}

void fiber_mutex_init(struct fiber_mutex *m) {
    m->held = false;
    waitq_init(&m->waiters);
}

int fiber_mutex_lock(struct env *env, struct fiber_mutex *m) {
    while (m->held) {
        int rc = waitq_wait(env, &m->waiters);
        if (rc < 0)
            return rc;
    }
    m->held = true;
    return 0;
}

void fiber_mutex_unlock(struct fiber_mutex *m) {
    CHECK(m->held);
    m->held = false;
    waitq_wake_one(&m->waiters);
}
