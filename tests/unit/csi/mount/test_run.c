/* Programs from a process with threads, and jobs that may never end. */
#include "tests/support/test.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "csi/mount/job.h"
#include "csi/mount/run.h"

#define ARGV(...) ((const char *const[]){__VA_ARGS__, NULL})

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void test_exit_code_and_output(void **state) {
    (void)state;
    struct run_result r;
    struct err e;
    assert_int_equal(run_program(ARGV("sh", "-c", "echo out; echo err >&2; exit 3"), 10000, &r, &e),
                     0);
    assert_int_equal(r.exit_code, 3);
    assert_string_equal(r.output, "out\nerr\n");
    assert_int_equal(run_program(ARGV("sh", "-c", "kill -9 $$"), 10000, &r, &e), 0);
    assert_int_equal(r.exit_code, -1);
    assert_int_equal(r.signal, 9);
    assert_int_equal(run_program(ARGV("/no/such/program"), 10000, &r, &e), -ERR_CONFIG);
}

static void test_output_is_bounded(void **state) {
    (void)state;
    struct run_result r;
    struct err e;
    assert_int_equal(run_program(ARGV("sh", "-c", "seq 1 100000"), 10000, &r, &e), 0);
    assert_int_equal(strlen(r.output), RUN_OUTPUT_MAX);
    assert_non_null(strstr(r.output, "99999\n100000\n"));
}

static void test_checked(void **state) {
    (void)state;
    struct err e;
    assert_int_equal(run_checked(ARGV("true"), 10000, &e), 0);
    assert_int_equal(run_checked(ARGV("sh", "-c", "echo no; echo way; exit 2"), 10000, &e),
                     -ERR_IO);
    assert_string_equal(e.text, "sh ended with 2: no way");
}

/* Children of the program die with it, although they hold its output open. */
static void test_timeout_kills_the_group(void **state) {
    (void)state;
    struct run_result r;
    struct err e;
    double begin = now_s();
    assert_int_equal(run_program(ARGV("sh", "-c", "sleep 50 & sleep 60"), 300, &r, &e),
                     -ERR_TIMEOUT);
    assert_true(now_s() - begin < 3);
}

/* A program that leaves a child behind has ended when it has ended. */
static void test_does_not_wait_for_the_pipe(void **state) {
    (void)state;
    struct run_result r;
    struct err e;
    double begin = now_s();
    assert_int_equal(run_program(ARGV("sh", "-c", "sleep 3 & echo done"), 10000, &r, &e), 0);
    assert_true(now_s() - begin < 2);
    assert_string_equal(r.output, "done\n");
}

static void test_starts_clean(void **state) {
    (void)state;
    struct run_result r;
    struct err e;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    assert_int_equal(
        run_program(ARGV("sh", "-c", "grep SigBlk /proc/self/status; ls /proc/self/fd | wc -l"),
                    10000, &r, &e),
        0);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert_non_null(strstr(r.output, "SigBlk:\t0000000000000000"));
    assert_non_null(strstr(r.output, "\n4\n")); /* 0, 1, 2 and ls's own */
}

/* --- jobs --- */

static atomic_int started;

struct add_job {
    int a, b, sum;
    unsigned sleep_ms;
};

static int add(void *data, struct err *e) {
    struct add_job *j = data;
    atomic_fetch_add(&started, 1);
    usleep(j->sleep_ms * 1000);
    j->sum = j->a + j->b;
    return j->sum < 0 ? err_set(e, -ERR_INVALID, "negative") : 0;
}

static void test_job_result(void **state) {
    (void)state;
    struct err e = {0};
    struct add_job j = {.a = 1, .b = 2};
    assert_int_equal(job_run("add", add, &j, sizeof j, 1000, &e), 0);
    assert_int_equal(j.sum, 3);
    j.a = -9;
    assert_int_equal(job_run("add", add, &j, sizeof j, 1000, &e), -ERR_INVALID);
    assert_string_equal(e.text, "negative");
}

static void test_job_is_joined(void **state) {
    (void)state;
    struct err e = {0};
    atomic_store(&started, 0);
    struct add_job j = {.a = 1, .b = 2, .sleep_ms = 400};
    assert_int_equal(job_run("slow", add, &j, sizeof j, 50, &e), -ERR_BUSY);
    assert_non_null(strstr(e.text, "slow"));
    struct add_job again = {.a = 100, .b = 100, .sleep_ms = 400};
    assert_int_equal(job_run("slow", add, &again, sizeof again, 5000, &e), 0);
    assert_int_equal(again.sum, 3); /* the first one's result */
    assert_int_equal(atomic_load(&started), 1);
}

static void test_jobs_are_bounded(void **state) {
    (void)state;
    struct err e = {0};
    int rc = -ERR_BUSY;
    for (int i = 0; i <= JOB_JOBS_MAX && rc == -ERR_BUSY; i++) {
        char key[32];
        snprintf(key, sizeof key, "job %d", i);
        struct add_job j = {.sleep_ms = 500};
        rc = job_run(key, add, &j, sizeof j, 0, &e);
    }
    assert_int_equal(rc, -ERR_OVERLOAD);
    usleep(800 * 1000);
}

static void *stop_soon(void *arg) {
    (void)arg;
    usleep(200 * 1000);
    run_stop_all();
    return NULL;
}

/* Last: nothing runs any more afterwards. */
static void test_stop_all(void **state) {
    (void)state;
    struct run_result r;
    struct err e;
    pthread_t thread;
    pthread_create(&thread, NULL, stop_soon, NULL);
    assert_int_equal(run_program(ARGV("sleep", "60"), 0, &r, &e), -ERR_CANCELLED);
    pthread_join(thread, NULL);
    assert_int_equal(run_program(ARGV("sleep", "60"), 0, &r, &e), -ERR_CANCELLED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exit_code_and_output),
        cmocka_unit_test(test_output_is_bounded),
        cmocka_unit_test(test_checked),
        cmocka_unit_test(test_timeout_kills_the_group),
        cmocka_unit_test(test_does_not_wait_for_the_pipe),
        cmocka_unit_test(test_starts_clean),
        cmocka_unit_test(test_job_result),
        cmocka_unit_test(test_job_is_joined),
        cmocka_unit_test(test_jobs_are_bounded),
        cmocka_unit_test(test_stop_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
