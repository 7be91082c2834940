/* The real loop: watches, signals, timers, posts of other threads, jobs. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/loop.h"

static struct loop *loop;
static struct env *env;

static int setup(void **state) {
    (void)state;
    loop = loop_new(2);
    env = loop_env(loop);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    loop_free(loop);
    return 0;
}

/* --- watches --- */

struct pair {
    struct loop_watch watch;
    int fds[2];
    int calls;
    int events;
    char got[16];
    ssize_t n;
};

static void on_readable(struct loop_watch *watch, int events) {
    struct pair *p = container_of(watch, struct pair, watch);
    p->calls++;
    p->events |= events;
    p->n = read(p->fds[0], p->got, sizeof p->got);
    loop_stop(loop);
}

static void test_watch_reads_until_hang_up(void **state) {
    (void)state;
    struct pair p = {.watch.fn = on_readable};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p.fds), 0);
    assert_int_equal(loop_watch_start(loop, &p.watch, p.fds[0], LOOP_READABLE, NULL), 0);
    assert_int_equal(write(p.fds[1], "hi", 2), 2);
    loop_run(loop);
    assert_int_equal(p.n, 2);
    assert_int_equal(p.events, LOOP_READABLE);
    close(p.fds[1]);
    loop_run(loop);
    assert_int_equal(p.n, 0);
    assert_true(p.calls >= 2); /* stopping takes effect in a later turn */
    loop_watch_stop(&p.watch);
    loop_watch_stop(&p.watch); /* stopped already: nothing happens */
    close(p.fds[0]);
}

static void on_writable(struct loop_watch *watch, int events) {
    struct pair *p = container_of(watch, struct pair, watch);
    p->calls++;
    p->events = events;
    loop_watch_stop(watch);
    loop_stop(loop);
}

static void test_watch_changes_what_it_waits_for(void **state) {
    (void)state;
    struct pair p = {.watch.fn = on_writable};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p.fds), 0);
    assert_int_equal(loop_watch_start(loop, &p.watch, p.fds[0], LOOP_READABLE, NULL), 0);
    assert_int_equal(loop_watch_start(loop, &p.watch, p.fds[0], LOOP_WRITABLE, NULL), 0);
    loop_run(loop);
    assert_int_equal(p.calls, 1);
    assert_int_equal(p.events, LOOP_WRITABLE);
    close(p.fds[0]);
    close(p.fds[1]);
}

static void test_watch_of_a_regular_file_is_an_error(void **state) {
    (void)state;
    struct pair p = {.watch.fn = on_readable};
    struct err e = {0};
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    assert_true(loop_watch_start(loop, &p.watch, fd, LOOP_READABLE, &e) < 0);
    assert_true(e.code < 0);
    close(fd);
}

/* --- signals --- */

struct catcher {
    struct loop_signal sig;
    int got;
    int calls;
};

static void on_signal(struct loop_signal *sig, int signum) {
    struct catcher *c = container_of(sig, struct catcher, sig);
    c->got = signum;
    c->calls++;
    loop_stop(loop);
}

static void test_signals_come_again_and_again(void **state) {
    (void)state;
    struct catcher c = {.sig.fn = on_signal};
    assert_int_equal(loop_signal_start(loop, &c.sig, SIGUSR1, NULL), 0);
    for (int i = 1; i <= 3; i++) {
        kill(getpid(), SIGUSR1);
        loop_run(loop);
        assert_int_equal(c.calls, i);
        assert_int_equal(c.got, SIGUSR1);
    }
    loop_signal_stop(&c.sig);
    loop_signal_stop(&c.sig);
    assert_int_equal(loop_signal_start(loop, &c.sig, SIGKILL, NULL) < 0, true);
}

/* --- timers and posts --- */

struct step {
    struct env_event event;
    struct env_timer timer;
    int order;
};
static int steps_done;

static void timer_step(struct env_timer *timer) {
    container_of(timer, struct step, timer)->order = ++steps_done;
    if (steps_done == 3)
        loop_stop(loop);
}

static void test_timers_run_in_order(void **state) {
    (void)state;
    steps_done = 0;
    struct step s[4] = {0};
    const uint64_t delays[4] = {20000, 5000, 10000, 1000};
    uint64_t start_us = env_now_us(env);
    for (int i = 0; i < 4; i++) {
        s[i].timer.fn = timer_step;
        env_timer_start(env, &s[i].timer, delays[i]);
    }
    env_timer_stop(env, &s[3].timer);
    loop_run(loop);
    assert_int_equal(s[1].order, 1);
    assert_int_equal(s[2].order, 2);
    assert_int_equal(s[0].order, 3);
    assert_int_equal(s[3].order, 0);
    assert_true(env_now_us(env) - start_us >= 20000);
}

enum { POSTERS = 3, POSTS = 500 };
static int posts_run;

static void count_post(struct env_event *event) {
    (void)event;
    if (++posts_run == POSTERS * POSTS)
        loop_stop(loop);
}

static void *post_many(void *arg) {
    struct env_event *events = arg;
    for (int i = 0; i < POSTS; i++) {
        events[i].fn = count_post;
        env_post(env, &events[i]);
    }
    return NULL;
}

static void test_posts_of_other_threads(void **state) {
    (void)state;
    static struct env_event events[POSTERS][POSTS];
    pthread_t threads[POSTERS];
    posts_run = 0;
    for (int i = 0; i < POSTERS; i++)
        pthread_create(&threads[i], NULL, post_many, events[i]);
    loop_run(loop);
    for (int i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(posts_run, POSTERS * POSTS);
}

enum { RINGS = 100, RING_WORK_US = 1000, RING_CPU_US_MAX = 500 };
static int rings_seen;

static void on_ring(struct env_event *event) {
    (void)event;
    if (++rings_seen == RINGS)
        loop_stop(loop);
}

static uint64_t thread_cpu_us(void) {
    struct timespec t;
    assert_int_equal(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t), 0);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void *ring_idly(void *arg) {
    struct env_event *events = arg;
    const struct sched_param none = {0};
    assert_int_equal(pthread_setschedparam(pthread_self(), SCHED_IDLE, &none), 0);
    for (int i = 0; i < RINGS; i++) {
        events[i].fn = on_ring;
        for (uint64_t start_us = thread_cpu_us(); thread_cpu_us() - start_us < RING_WORK_US;) {
        }
        env_post(env, &events[i]);
    }
    return NULL;
}

/* Who posts has the owner's processor and a lower priority: the owner runs as soon as it is woken,
 * while the other is still at it, and must not burn processor time until that one goes on. */
static void test_the_owner_does_not_wait_for_who_posts(void **state) {
    (void)state;
    static struct env_event events[RINGS];
    cpu_set_t before, one;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &before))
            CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    pthread_t thread;
    rings_seen = 0;
    assert_int_equal(pthread_create(&thread, NULL, ring_idly, events), 0);
    uint64_t start_us = thread_cpu_us();
    loop_run(loop);
    uint64_t used_us = thread_cpu_us() - start_us;
    pthread_join(thread, NULL);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
    print_message("%d posts took %llu us of the owner\n", RINGS, (unsigned long long)used_us);
    assert_true(used_us <= RINGS * RING_CPU_US_MAX);
}

/* --- jobs --- */

enum { JOBS = 100 };
struct work {
    struct env_job job;
    pthread_t ran_on;
    int done;
};
static int jobs_done;

static void work_run(struct env_job *job) {
    container_of(job, struct work, job)->ran_on = pthread_self();
}

static void work_done(struct env_job *job) {
    container_of(job, struct work, job)->done++;
    if (++jobs_done == JOBS)
        loop_stop(loop);
}

static void test_jobs_run_on_workers_and_end_here(void **state) {
    (void)state;
    static struct work works[JOBS];
    jobs_done = 0;
    for (int i = 0; i < JOBS; i++) {
        works[i] = (struct work){.job = {.run = work_run, .done = work_done}};
        env_job_submit(env, &works[i].job);
    }
    loop_run(loop);
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(works[i].done, 1);
        assert_false(pthread_equal(works[i].ran_on, pthread_self()));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_watch_reads_until_hang_up, setup, teardown),
        cmocka_unit_test_setup_teardown(test_watch_changes_what_it_waits_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_watch_of_a_regular_file_is_an_error, setup, teardown),
        cmocka_unit_test_setup_teardown(test_signals_come_again_and_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timers_run_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_posts_of_other_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_owner_does_not_wait_for_who_posts, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_jobs_run_on_workers_and_end_here, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
