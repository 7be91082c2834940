/* See runner.h. A failed CHECK, a sanitizer's report or a hang ends only that run's process. */
#include "tests/sim/runner.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/mem.h"

enum { RUN_CPU_SECONDS_MAX = 60 };

/* Of CPU time: how busy the machine is says nothing about a run. */
static void limit_time(void) {
    struct itimerval t = {.it_value.tv_sec = RUN_CPU_SECONDS_MAX};
    CHECK(setitimer(ITIMER_PROF, &t, NULL) == 0);
}

NORETURN static void child_main(const struct sim_options *options, int fd) {
    limit_time();
    struct run_report *r = NEW(struct run_report);
    r->good = sim_run(options, &r->totals, r->finding);
    fflush(stdout);
    const uint8_t *at = (const uint8_t *)r;
    for (size_t done = 0; done < sizeof *r;) {
        ssize_t n = write(fd, at + done, sizeof *r - done);
        if (n <= 0)
            exit(2);
        done += (size_t)n;
    }
    free(r);
    exit(0); /* so that leaks are looked for */
}

void run_child_start(struct run_child *c, const struct sim_options *options) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    uint32_t *step =
        mmap(NULL, sizeof *step, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(step != MAP_FAILED);
    struct sim_options own = *options;
    own.step = step;
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(fds[0]);
        child_main(&own, fds[1]);
    }
    close(fds[1]);
    *c = (struct run_child){.pid = pid, .fd = fds[0], .step = step};
}

static bool read_report(int fd, struct run_report *ret) {
    uint8_t *at = (uint8_t *)ret;
    for (size_t done = 0; done < sizeof *ret;) {
        ssize_t n = read(fd, at + done, sizeof *ret - done);
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

void run_child_end(struct run_child *c, struct run_report *ret) {
    bool complete = read_report(c->fd, ret);
    close(c->fd);
    int status;
    CHECK(waitpid(c->pid, &status, 0) == c->pid);
    c->pid = 0;
    uint64_t steps = *c->step;
    munmap(c->step, sizeof *c->step);
    if (complete && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return;
    if (complete && !ret->good)
        return; /* what it found comes before what it left */
    *ret = (struct run_report){.totals.steps = steps};
    if (WIFSIGNALED(status))
        snprintf(ret->finding, sizeof ret->finding, "the run was ended by signal %d (%s)",
                 WTERMSIG(status),
                 WTERMSIG(status) == SIGPROF ? "it takes too long" : strsignal(WTERMSIG(status)));
    else
        snprintf(ret->finding, sizeof ret->finding, "the run exited with %d", WEXITSTATUS(status));
}
