/* The real env, on libuv.
 *
 * Posts from the owner thread go to a plain list that the loop drains once a turn; posts from other
 * threads go to a second list under a mutex and ring an eventfd. It is not a uv_async: of that one
 * the loop spins (libuv 1.44) until the thread that rang is through, and if that thread was
 * preempted meanwhile, which the ring itself may cause, the owner burns its own time slices until
 * the other has its turn. One uv_timer is armed for the first timer of the heap. Workers are our
 * own threads with one queue (libuv's pool is a process-wide global that we leave alone).
 *
 * A uv handle is freed in its close callback, so stopping a watch or a signal needs no waiting by
 * the caller. */
#include "common/loop.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>
#include <uv.h>

#include "common/fiber.h"
#include "common/mem.h"
#include "common/timer_heap.h"

struct event_queue {
    struct env_event *first;
    struct env_event **tail;
};

static void event_queue_init(struct event_queue *q) {
    q->first = NULL;
    q->tail = &q->first;
}

static void event_queue_push(struct event_queue *q, struct env_event *event) {
    event->next = NULL;
    *q->tail = event;
    q->tail = &event->next;
}

struct loop {
    struct env env;
    uv_loop_t uv;
    uv_poll_t wake; /* of bell */
    int bell;       /* owned: the eventfd that other threads ring */
    uv_timer_t timer;
    uv_idle_t busy;   /* active while `local` is not empty, so that the poll does not sleep */
    uv_check_t drain; /* runs the events after each poll */
    struct timer_heap timers;
    struct event_queue local;
    pthread_t owner;
    bool running;
    pthread_t thread; /* of loop_thread_start */

    struct {
        pthread_mutex_t mutex;
        struct event_queue events;
        bool stop;
    } remote;

    struct {
        pthread_mutex_t mutex;
        pthread_cond_t more;
        struct env_job *first;
        struct env_job **tail;
        bool stop;
        unsigned count;
        pthread_t threads[LOOP_WORKERS_MAX];
    } workers;
};

static struct loop *loop_of(struct env *env) {
    return container_of(env, struct loop, env);
}

static uint64_t op_now_us(struct env *env) {
    (void)env;
    struct timespec ts;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &ts) == 0);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t op_wall_ms(struct env *env) {
    (void)env;
    struct timespec ts;
    CHECK(clock_gettime(CLOCK_REALTIME, &ts) == 0);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void op_random(struct env *env, void *buf, size_t len) {
    (void)env;
    for (size_t done = 0; done < len;) {
        ssize_t n = getrandom((uint8_t *)buf + done, len - done, 0);
        if (n < 0 && errno == EINTR)
            continue;
        CHECK(n > 0);
        done += (size_t)n;
    }
}

static bool on_owner_thread(struct loop *l) {
    return __atomic_load_n(&l->running, __ATOMIC_ACQUIRE) &&
           pthread_equal(pthread_self(), l->owner);
}

static void on_busy(uv_idle_t *handle) {
    (void)handle; /* being active is all it does */
}

/* Any thread. */
static void ring(struct loop *l) {
    CHECK(eventfd_write(l->bell, 1) == 0);
}

static void op_post(struct env *env, struct env_event *event) {
    struct loop *l = loop_of(env);
    if (on_owner_thread(l)) {
        event_queue_push(&l->local, event);
        uv_idle_start(&l->busy, on_busy);
        return;
    }
    pthread_mutex_lock(&l->remote.mutex);
    event_queue_push(&l->remote.events, event);
    pthread_mutex_unlock(&l->remote.mutex);
    ring(l);
}

static void run_events(struct event_queue *q) {
    struct env_event *event = q->first;
    event_queue_init(q);
    while (event) {
        struct env_event *next = event->next;
        event->fn(event);
        event = next;
    }
}

static void on_drain(uv_check_t *handle) {
    struct loop *l = container_of(handle, struct loop, drain);
    /* Events that these events post run in the next turn: sockets get their share. */
    run_events(&l->local);
    if (!l->local.first)
        uv_idle_stop(&l->busy);
}

static void on_wake(uv_poll_t *handle, int status, int ready) {
    struct loop *l = container_of(handle, struct loop, wake);
    eventfd_t rings;
    (void)ready;
    CHECK(status == 0);
    /* Before the look at the list: who posts later rings again. */
    CHECK(eventfd_read(l->bell, &rings) == 0 || errno == EAGAIN);
    pthread_mutex_lock(&l->remote.mutex);
    struct event_queue events = l->remote.events; /* its tail is not used any more */
    event_queue_init(&l->remote.events);
    bool stop = l->remote.stop;
    l->remote.stop = false;
    pthread_mutex_unlock(&l->remote.mutex);
    run_events(&events);
    if (stop)
        uv_stop(&l->uv);
}

static void on_timer(uv_timer_t *handle);

static void arm_timer(struct loop *l) {
    struct env_timer *first = timer_heap_first(&l->timers);
    if (!first) {
        uv_timer_stop(&l->timer);
        return;
    }
    uint64_t now = op_now_us(&l->env);
    uint64_t delay_us = first->due_us > now ? first->due_us - now : 0;
    uv_update_time(&l->uv);
    uv_timer_start(&l->timer, on_timer, DIV_UP(delay_us, 1000), 0);
}

static void on_timer(uv_timer_t *handle) {
    struct loop *l = container_of(handle, struct loop, timer);
    uint64_t now = op_now_us(&l->env);
    struct env_timer *t;
    while ((t = timer_heap_first(&l->timers)) && t->due_us <= now) {
        timer_heap_stop(&l->timers, t);
        t->fn(t);
    }
    arm_timer(l);
}

static void op_timer_start(struct env *env, struct env_timer *timer, uint64_t delay_us) {
    struct loop *l = loop_of(env);
    timer_heap_start(&l->timers, timer, op_now_us(env) + delay_us);
    if (timer_heap_first(&l->timers) == timer)
        arm_timer(l);
}

static void op_timer_stop(struct env *env, struct env_timer *timer) {
    timer_heap_stop(&loop_of(env)->timers, timer);
}

static void run_done(struct env_event *event) {
    struct env_job *job = container_of(event, struct env_job, event);
    job->done(job);
}

static void op_job_submit(struct env *env, struct env_job *job) {
    struct loop *l = loop_of(env);
    job->event.fn = run_done;
    job->next = NULL;
    pthread_mutex_lock(&l->workers.mutex);
    *l->workers.tail = job;
    l->workers.tail = &job->next;
    pthread_cond_signal(&l->workers.more);
    pthread_mutex_unlock(&l->workers.mutex);
}

static void *worker_main(void *arg) {
    struct loop *l = arg;
    for (;;) {
        pthread_mutex_lock(&l->workers.mutex);
        while (!l->workers.first && !l->workers.stop)
            pthread_cond_wait(&l->workers.more, &l->workers.mutex);
        struct env_job *job = l->workers.first;
        if (!job) {
            pthread_mutex_unlock(&l->workers.mutex);
            return NULL;
        }
        l->workers.first = job->next;
        if (!job->next)
            l->workers.tail = &l->workers.first;
        pthread_mutex_unlock(&l->workers.mutex);
        job->run(job);
        env_post(&l->env, &job->event);
    }
}

static const struct env_ops loop_ops = {
    .now_us = op_now_us,
    .wall_ms = op_wall_ms,
    .random = op_random,
    .post = op_post,
    .timer_start = op_timer_start,
    .timer_stop = op_timer_stop,
    .job_submit = op_job_submit,
};

enum { WORKER_STACK_SIZE = 256 * 1024 };

/* Threads inherit a mask that leaves all signals to the thread that waits for them. */
static pthread_t start_thread(void *(*fn)(void *), void *arg, const char *name) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_attr_t attr;
    pthread_t thread;
    CHECK(pthread_attr_init(&attr) == 0);
    CHECK(pthread_attr_setstacksize(&attr, WORKER_STACK_SIZE) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &old) == 0);
    CHECK(pthread_create(&thread, &attr, fn, arg) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    pthread_attr_destroy(&attr);
    pthread_setname_np(thread, name);
    return thread;
}

struct loop *loop_new(unsigned workers) {
    CHECK(workers >= 1 && workers <= LOOP_WORKERS_MAX);
    struct loop *l = NEW(struct loop);
    env_init(&l->env, &loop_ops);
    CHECK(uv_loop_init(&l->uv) == 0);
    l->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    CHECK(l->bell >= 0);
    CHECK(uv_poll_init(&l->uv, &l->wake, l->bell) == 0);
    CHECK(uv_poll_start(&l->wake, UV_READABLE, on_wake) == 0);
    CHECK(uv_timer_init(&l->uv, &l->timer) == 0);
    CHECK(uv_idle_init(&l->uv, &l->busy) == 0);
    CHECK(uv_check_init(&l->uv, &l->drain) == 0);
    CHECK(uv_check_start(&l->drain, on_drain) == 0);
    event_queue_init(&l->local);
    event_queue_init(&l->remote.events);
    pthread_mutex_init(&l->remote.mutex, NULL);
    pthread_mutex_init(&l->workers.mutex, NULL);
    pthread_cond_init(&l->workers.more, NULL);
    l->workers.tail = &l->workers.first;
    l->workers.count = workers;
    for (unsigned i = 0; i < workers; i++)
        l->workers.threads[i] = start_thread(worker_main, l, "worker");
    return l;
}

void loop_free(struct loop *l) {
    pthread_mutex_lock(&l->workers.mutex);
    l->workers.stop = true;
    pthread_cond_broadcast(&l->workers.more);
    pthread_mutex_unlock(&l->workers.mutex);
    for (unsigned i = 0; i < l->workers.count; i++)
        pthread_join(l->workers.threads[i], NULL);
    uv_close((uv_handle_t *)&l->wake, NULL);
    uv_close((uv_handle_t *)&l->timer, NULL);
    uv_close((uv_handle_t *)&l->busy, NULL);
    uv_close((uv_handle_t *)&l->drain, NULL);
    uv_run(&l->uv, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&l->uv) == 0);
    close(l->bell);
    timer_heap_release(&l->timers);
    env_release(&l->env);
    pthread_mutex_destroy(&l->remote.mutex);
    pthread_mutex_destroy(&l->workers.mutex);
    pthread_cond_destroy(&l->workers.more);
    free(l);
}

struct env *loop_env(struct loop *l) {
    return &l->env;
}

void loop_run(struct loop *l) {
    l->owner = pthread_self();
    __atomic_store_n(&l->running, true, __ATOMIC_RELEASE);
    ring(l); /* what was posted before */
    uv_run(&l->uv, UV_RUN_DEFAULT);
    __atomic_store_n(&l->running, false, __ATOMIC_RELEASE);
}

void loop_stop(struct loop *l) {
    pthread_mutex_lock(&l->remote.mutex);
    l->remote.stop = true;
    pthread_mutex_unlock(&l->remote.mutex);
    ring(l);
}

static void free_handle(uv_handle_t *handle) {
    free(handle);
}

static void on_poll(uv_poll_t *handle, int status, int events) {
    struct loop_watch *w = handle->data;
    int bits = 0;
    if (status < 0)
        bits = LOOP_READABLE | LOOP_WRITABLE;
    if (events & (UV_READABLE | UV_DISCONNECT))
        bits |= LOOP_READABLE;
    if (events & UV_WRITABLE)
        bits |= LOOP_WRITABLE;
    w->fn(w, bits);
}

int loop_watch_start(struct loop *l, struct loop_watch *w, int fd, int events, struct err *e) {
    uv_poll_t *poll = w->handle;
    if (!poll) {
        poll = NEW(uv_poll_t);
        int rc = uv_poll_init(&l->uv, poll, fd);
        if (rc < 0) {
            free(poll);
            return err_from_errno(e, -rc, "watch file descriptor %d", fd);
        }
        poll->data = w;
        w->handle = poll;
    }
    int bits =
        (events & LOOP_READABLE ? UV_READABLE : 0) | (events & LOOP_WRITABLE ? UV_WRITABLE : 0);
    int rc = bits ? uv_poll_start(poll, bits, on_poll) : uv_poll_stop(poll);
    return rc < 0 ? err_from_errno(e, -rc, "watch file descriptor %d", fd) : 0;
}

void loop_watch_stop(struct loop_watch *w) {
    if (!w->handle)
        return;
    uv_close(w->handle, free_handle);
    w->handle = NULL;
}

static void on_signal(uv_signal_t *handle, int signum) {
    struct loop_signal *sig = handle->data;
    sig->fn(sig, signum);
}

int loop_signal_start(struct loop *l, struct loop_signal *sig, int signum, struct err *e) {
    CHECK(!sig->handle);
    uv_signal_t *handle = NEW(uv_signal_t);
    CHECK(uv_signal_init(&l->uv, handle) == 0);
    handle->data = sig;
    sig->handle = handle;
    int rc = uv_signal_start(handle, on_signal, signum);
    if (rc < 0) {
        loop_signal_stop(sig);
        return err_from_errno(e, -rc, "catch signal %d", signum);
    }
    return 0;
}

void loop_signal_stop(struct loop_signal *sig) {
    if (!sig->handle)
        return;
    uv_close(sig->handle, free_handle);
    sig->handle = NULL;
}

/* loop_call: a fiber on the loop, a condition variable here. */
struct call {
    struct env_event event;
    struct env *env;
    void (*fn)(void *arg);
    void *arg;
    pthread_mutex_t mutex;
    pthread_cond_t ended;
    bool done;
};

static void call_fiber(void *arg) {
    struct call *c = arg;
    c->fn(c->arg);
    pthread_mutex_lock(&c->mutex);
    c->done = true;
    pthread_cond_signal(&c->ended);
    pthread_mutex_unlock(&c->mutex);
}

static void call_start(struct env_event *event) {
    struct call *c = container_of(event, struct call, event);
    fiber_start(c->env, call_fiber, c);
}

void loop_call(struct loop *l, void (*fn)(void *arg), void *arg) {
    CHECK(!on_owner_thread(l));
    struct call c = {.event = {.fn = call_start}, .env = &l->env, .fn = fn, .arg = arg};
    pthread_mutex_init(&c.mutex, NULL);
    pthread_cond_init(&c.ended, NULL);
    env_post(&l->env, &c.event);
    pthread_mutex_lock(&c.mutex);
    while (!c.done)
        pthread_cond_wait(&c.ended, &c.mutex);
    pthread_mutex_unlock(&c.mutex);
    pthread_mutex_destroy(&c.mutex);
    pthread_cond_destroy(&c.ended);
}

static void *thread_main(void *arg) {
    loop_run(arg);
    return NULL;
}

void loop_thread_start(struct loop *l, const char *name) {
    l->thread = start_thread(thread_main, l, name);
}

void loop_thread_stop(struct loop *l) {
    loop_stop(l);
    pthread_join(l->thread, NULL);
}
