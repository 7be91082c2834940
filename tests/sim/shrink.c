/* Delta debugging of a run: leaves out kinds of trouble, then steps of the director, in ever
 * smaller pieces, as long as what is left finds the same. "The same" is the finding's text without
 * its numbers. */
#include "tests/sim/shrink.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"

enum { SHRINK_RUNS_MAX = 600, SHRINK_SECONDS_MAX = 120, SIGNATURE_MAX = 48 };

struct shrinking {
    struct sim_options options;
    char signature[SIGNATURE_MAX];
    struct shrunk *best;
    time_t until;
};

/* "operation 17, 3.2 s: d36 deletes x" -> "d deletes x"; names keep their letters. */
static void sign(const char *finding, char signature[SIGNATURE_MAX]) {
    const char *text = strstr(finding, " s: ");
    size_t n = 0;
    for (text = text ? text + 4 : finding; *text != '\0' && n + 1 < SIGNATURE_MAX; text++)
        if (!isdigit((unsigned char)*text))
            signature[n++] = *text;
    signature[n] = '\0';
}

/* Takes the plan over. */
static bool try_plan(struct shrinking *s, struct sim_plan *plan) {
    s->best->runs++;
    s->options.plan = *plan;
    struct run_child child;
    CLEANUP_FREE struct run_report *r = NEW(struct run_report);
    char signature[SIGNATURE_MAX];
    run_child_start(&child, &s->options);
    run_child_end(&child, r);
    sign(r->finding, signature);
    if (r->good || strcmp(signature, s->signature) != 0) {
        plan_release(plan);
        return false;
    }
    plan_release(&s->best->plan);
    s->best->plan = *plan;
    s->best->report = *r;
    return true;
}

static bool may_go_on(const struct shrinking *s) {
    return s->best->runs < SHRINK_RUNS_MAX && time(NULL) < s->until;
}

static void leave_out_kinds(struct shrinking *s) {
    for (int i = 0; i < WITHOUT_COUNT && may_go_on(s); i++) {
        if (plan_is_without(&s->best->plan, (enum plan_without)i))
            continue;
        struct sim_plan plan;
        plan_copy(&plan, &s->best->plan);
        plan.without |= UINT32_C(1) << i;
        try_plan(s, &plan);
    }
}

/* Steps [from, from + count) of those that are left; the end follows the last one. */
static bool leave_out_steps(struct shrinking *s, size_t from, size_t count) {
    struct sim_plan plan;
    plan_copy(&plan, &s->best->plan);
    memmove(plan.steps + from, plan.steps + from + count,
            (plan.count - from - count) * sizeof *plan.steps);
    plan.count -= count;
    return try_plan(s, &plan);
}

/* The end follows the last step that is left, or comes as soon after it as it can. */
static void end_earlier(struct shrinking *s) {
    const struct sim_plan *best = &s->best->plan;
    uint32_t low = best->count > 0 ? best->steps[best->count - 1] + 1 : 1;
    while (low < best->end && may_go_on(s)) {
        struct sim_plan plan;
        plan_copy(&plan, best);
        uint32_t end = plan.end = low + (best->end - low) / 2;
        if (!try_plan(s, &plan))
            low = end + 1;
    }
}

static void leave_out_pieces(struct shrinking *s) {
    for (size_t piece = DIV_UP(s->best->plan.count, 2); piece > 0; piece /= 2) {
        /* Late steps first: what comes after them matters least. */
        size_t at = s->best->plan.count;
        while (at > 0 && may_go_on(s)) {
            size_t n = MIN(piece, at);
            at -= n;
            leave_out_steps(s, at, n);
            at = MIN(at, s->best->plan.count);
        }
    }
}

bool shrink(const struct sim_options *options, const char *finding, struct shrunk *ret) {
    *ret = (struct shrunk){0};
    struct shrinking s = {
        .options = *options, .best = ret, .until = time(NULL) + SHRINK_SECONDS_MAX};
    s.options.verbose = s.options.trace = false;
    sign(finding, s.signature);
    struct sim_plan plan;
    plan_copy(&plan, &options->plan);
    fflush(NULL);
    int was = dup(STDERR_FILENO), null = open("/dev/null", O_WRONLY); /* all that dies says so */
    dup2(null, STDERR_FILENO);
    bool found = try_plan(&s, &plan);
    ret->steps_before = ret->plan.end > 0 ? ret->plan.count : ret->report.totals.steps;
    if (found && ret->plan.end == 0 && ret->steps_before > 0) {
        plan_copy(&plan, &ret->plan);
        plan.end = (uint32_t)ret->steps_before;
        plan.count = plan.end;
        plan.steps = xrealloc(plan.steps, plan.count * sizeof *plan.steps);
        for (uint32_t i = 0; i < plan.end; i++)
            plan.steps[i] = i;
        try_plan(&s, &plan);
    }
    if (found)
        leave_out_kinds(&s);
    if (found && ret->plan.end > 0) {
        leave_out_pieces(&s);
        end_earlier(&s);
        leave_out_kinds(&s);
        leave_out_pieces(&s);
    }
    dup2(was, STDERR_FILENO);
    close(was);
    close(null);
    return found;
}
