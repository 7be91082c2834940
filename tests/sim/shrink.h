/* Makes a finding small. */
#pragma once

#include "tests/sim/runner.h"

struct shrunk {
    struct sim_plan plan; /* the caller's */
    struct run_report report;
    unsigned runs;       /* that it took */
    size_t steps_before; /* of the whole run */
};
/* The smallest part of a run that still finds the same, as far as a bounded number of runs gets.
 * False: the run does not find it again. */
bool shrink(const struct sim_options *options, const char *finding, struct shrunk *ret);
