/* The shape of the map.
 *
 *   newest                                                              oldest
 *   [run] [run] [run] | [class 1] [class 1] | [class 2] ... | [       bottom        ]
 *      tiers: runs of one class by fours become one               levelled
 *
 * Checkpoints put small runs in front. Runs of one size class (a factor of four) that stand side by
 * side become one as soon as there are four of them, so an entry is written once a class. The
 * oldest run is the bottom. When the runs above it make an eighth of it, by entries or by the
 * sectors that they cover, they are merged into it, which costs an entry about eight writes more
 * when writes are scattered over all of it, and nothing where they leave whole parts of it alone
 * (run_merge.c). A run that newer ones cover by half is merged with them at once, because what it
 * says of objects keeps these alive for nothing.
 *
 * I1  Sources of a merge stand side by side, none of them is in another merge, and none of its
 *     ages is on another side of the barrier than the rest.
 * I2  While nothing is busy and nothing held back by the barrier, plan after plan ends with at
 *     most runs_max runs and nothing due. */
#include "portalbd/volume/levels_plan.h"

enum {
    FAN_IN = 4,           /* runs of a class that become one */
    CLASS_FACTOR = 4,     /* from a class to the next */
    CLASS_ENTRIES = 1024, /* the first class: up to so many times CLASS_FACTOR */
    CLASSES_MAX = 24,
    SHARE = 8, /* the runs above the bottom: at most one part in so many of it */
};

static unsigned class_of(const struct level_run *r) {
    unsigned c = 0;
    for (uint64_t n = r->entries / CLASS_ENTRIES / CLASS_FACTOR; n > 0 && c < CLASSES_MAX - 1; c++)
        n /= CLASS_FACTOR;
    return c;
}

/* Do newer runs cover one part in `share` of it? */
static bool is_covered(const struct level_run *r, uint64_t share) {
    return r->sectors > 0 && r->covered >= DIV_UP(r->sectors, share);
}

static bool is_old(const struct level_run *r, const struct level_limits *limits) {
    return r->age <= limits->barrier_age;
}

/* Can a merge that has run i take run i + 1 too? */
static bool may_join(const struct level_run *runs, size_t i, const struct level_limits *limits) {
    return !runs[i].busy && !runs[i + 1].busy &&
           is_old(&runs[i], limits) == is_old(&runs[i + 1], limits);
}

/* The first run from which on a merge may take everything down to run `last`. */
static size_t reach(const struct level_run *runs, size_t last, const struct level_limits *limits) {
    size_t first = last;
    while (first > 0 && may_join(runs, first - 1, limits))
        first--;
    return first;
}

/* Everything that may go into the bottom, when that is enough of it. */
static bool plan_bottom(const struct level_run *runs, size_t count,
                        const struct level_limits *limits, struct level_plan *ret) {
    size_t last = count - 1, first = reach(runs, last, limits);
    const struct level_run *bottom = &runs[last];
    if (first == last)
        return false;
    uint64_t entries = 0;
    for (size_t i = first; i < last; i++)
        entries += runs[i].entries;
    bool enough = entries >= bottom->entries / SHARE || is_covered(bottom, SHARE);
    if (!enough || last - first < FAN_IN - 1)
        return false;
    *ret = (struct level_plan){first, count - first};
    return true;
}

/* Newer runs cover half of one: it and all that are newer. */
static bool plan_covered(const struct level_run *runs, size_t count,
                         const struct level_limits *limits, struct level_plan *ret) {
    for (size_t i = count; i-- > 1;) {
        if (!is_covered(&runs[i], 2) || reach(runs, i, limits) > 0)
            continue; /* what covers it may be among those that cannot come along now */
        *ret = (struct level_plan){0, i + 1};
        return true;
    }
    return false;
}

/* FAN_IN runs of a class, with what is smaller between them. */
static bool plan_tier(const struct level_run *runs, size_t count, const struct level_limits *limits,
                      unsigned class, struct level_plan *ret) {
    size_t of_class = 0;
    for (size_t i = 0, first = 0; i < count; i++) {
        bool fits = class_of(&runs[i]) <= class && !runs[i].busy;
        if (!fits || (i > first && !may_join(runs, i - 1, limits))) {
            first = fits ? i : i + 1;
            of_class = 0;
        }
        if (!fits)
            continue;
        of_class += class_of(&runs[i]) == class;
        if (of_class == FAN_IN) {
            *ret = (struct level_plan){first, i - first + 1};
            return true;
        }
    }
    return false;
}

/* The cheapest merge of so many runs. */
static bool plan_cheapest(const struct level_run *runs, size_t count,
                          const struct level_limits *limits, size_t wanted,
                          struct level_plan *ret) {
    uint64_t cheapest = UINT64_MAX;
    for (size_t last = wanted - 1; last < count; last++) {
        size_t first = last + 1 - wanted;
        if (reach(runs, last, limits) > first)
            continue;
        uint64_t entries = 0;
        for (size_t i = first; i <= last; i++)
            entries += runs[i].entries;
        if (entries >= cheapest)
            continue;
        cheapest = entries;
        *ret = (struct level_plan){first, wanted};
    }
    return cheapest != UINT64_MAX;
}

bool levels_plan_fewer(const struct level_run *runs, size_t count,
                       const struct level_limits *limits, struct level_plan *ret) {
    CHECK(limits->runs_max >= 1);
    if (count <= limits->runs_max)
        return false;
    for (size_t wanted = MIN(count - limits->runs_max + FAN_IN - 1, count); wanted >= 2; wanted--)
        if (plan_cheapest(runs, count, limits, wanted, ret))
            return true;
    return false;
}

bool levels_plan(const struct level_run *runs, size_t count, const struct level_limits *limits,
                 struct level_plan *ret) {
    if (count < 2)
        return false;
    if (plan_bottom(runs, count, limits, ret) || plan_covered(runs, count, limits, ret))
        return true;
    for (unsigned class = 0; class < CLASSES_MAX; class ++)
        if (plan_tier(runs, count, limits, class, ret))
            return true;
    return levels_plan_fewer(runs, count, limits, ret);
}
