/* Which part of a run is carried out: all of it, or what is left of it after a finding was made
 * small. The director's steps have random numbers of their own each, so leaving some out does not
 * change what the others do. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PLAN_TEXT_MAX = 4096 };

/* Kinds of trouble that a run can do without. */
enum plan_without {
    WITHOUT_SLOW,
    WITHOUT_REFUSED,
    WITHOUT_TIMEOUT,
    WITHOUT_LOST_ANSWER,
    WITHOUT_LATE,
    WITHOUT_DUPLICATE,
    WITHOUT_CONFLICT,
    WITHOUT_SHORT_BODY,
    WITHOUT_SHORT_PAGE,
    WITHOUT_TORN_PAGE,
    WITHOUT_STORM,
    WITHOUT_SPOTS,
    WITHOUT_TRIMS,
    WITHOUT_CLIENTS, /* more than one */
    WITHOUT_JITTER,
    WITHOUT_COUNT
};
extern const char *const plan_without_names[WITHOUT_COUNT];

struct sim_plan {
    uint32_t *steps; /* owned; ascending: the director's steps that are carried out ... */
    size_t count;
    uint32_t end;     /* ... out of the first so many; 0: all, until there are enough operations */
    uint32_t without; /* bits by plan_without */
};

void plan_release(struct sim_plan *p);
void plan_copy(struct sim_plan *to, const struct sim_plan *from); /* `to` is uninitialised */
bool plan_has_step(const struct sim_plan *p, uint32_t step);
static inline bool plan_is_without(const struct sim_plan *p, enum plan_without what) {
    return p->without >> what & 1;
}

/* " --steps 3,17-19:60 --without late,slow", or "" for all. */
void plan_format(const struct sim_plan *p, char text[PLAN_TEXT_MAX]);
/* The option's values; false: they make no sense. */
bool plan_parse_steps(struct sim_plan *p, const char *text);
bool plan_parse_without(struct sim_plan *p, const char *text);
