/* One run in a process of its own. */
#pragma once

#include <sys/types.h>

#include "tests/sim/sim.h"

struct run_report {
    bool good;
    char finding[SIM_FINDING_MAX];
    struct sim_totals totals;
};

struct run_child {
    pid_t pid; /* 0: none */
    int fd;
    uint32_t *step; /* owned; shared with it */
};

void run_child_start(struct run_child *c, const struct sim_options *options);
/* Waits for its end. A run that was ended by a signal, or left with an error (a sanitizer's, a
 * leak's) is not good either; then its totals are 0. */
void run_child_end(struct run_child *c, struct run_report *ret);
