/* Which runs to merge next: the shape of the map, as a pure function of the sizes of its runs. */
#pragma once

#include "common/base.h"

/* What a plan knows of a run. */
struct level_run {
    uint64_t age;     /* as in struct root_run */
    uint64_t entries; /* of its pages */
    uint64_t sectors; /* that its entries cover */
    uint64_t covered; /* of those, what newer runs cover, as an estimate */
    bool busy;        /* a merge reads it */
};

struct level_limits {
    size_t runs_max;      /* more than these are merged whatever it costs, >= 1 */
    uint64_t barrier_age; /* no merge takes runs from both sides of it: those older than this age
                             or of it, and those newer; 0: none */
};

struct level_plan {
    size_t first; /* of the merge's sources, which stand side by side */
    size_t count; /* >= 2 */
};

/* runs: newest first. False: nothing is due. */
bool levels_plan(const struct level_run *runs, size_t count, const struct level_limits *limits,
                 struct level_plan *ret);
/* The same for who only wants few enough runs. */
bool levels_plan_fewer(const struct level_run *runs, size_t count,
                       const struct level_limits *limits, struct level_plan *ret);
