/* See plan.h. */
#include "tests/sim/plan.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"

enum { STEPS_PARSED_MAX = 1000 * 1000 };

const char *const plan_without_names[WITHOUT_COUNT] = {
    [WITHOUT_SLOW] = "slow",
    [WITHOUT_REFUSED] = "refused",
    [WITHOUT_TIMEOUT] = "timeout",
    [WITHOUT_LOST_ANSWER] = "lost-answer",
    [WITHOUT_LATE] = "late",
    [WITHOUT_DUPLICATE] = "duplicate",
    [WITHOUT_CONFLICT] = "conflict",
    [WITHOUT_SHORT_BODY] = "short-body",
    [WITHOUT_SHORT_PAGE] = "short-page",
    [WITHOUT_TORN_PAGE] = "torn-page",
    [WITHOUT_STORM] = "storm",
    [WITHOUT_SPOTS] = "spots",
    [WITHOUT_TRIMS] = "trims",
    [WITHOUT_CLIENTS] = "clients",
    [WITHOUT_JITTER] = "jitter",
};

void plan_release(struct sim_plan *p) {
    free(p->steps);
    *p = (struct sim_plan){0};
}

void plan_copy(struct sim_plan *to, const struct sim_plan *from) {
    *to = *from;
    to->steps = xmalloc(MAX(from->count, (size_t)1) * sizeof *to->steps);
    if (from->count > 0)
        memcpy(to->steps, from->steps, from->count * sizeof *to->steps);
}

bool plan_has_step(const struct sim_plan *p, uint32_t step) {
    if (p->end == 0)
        return true;
    size_t low = 0, high = p->count;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (p->steps[mid] < step)
            low = mid + 1;
        else
            high = mid;
    }
    return low < p->count && p->steps[low] == step;
}

static void format_steps(const struct sim_plan *p, char *text, size_t size) {
    size_t used = (size_t)snprintf(text, size, " --steps ");
    for (size_t i = 0, n; i < p->count && used < size; i += n) {
        for (n = 1; i + n < p->count && p->steps[i + n] == p->steps[i] + n;)
            n++;
        used += (size_t)snprintf(text + used, size - used, i > 0 ? ",%u" : "%u", p->steps[i]);
        if (n > 1 && used < size)
            used += (size_t)snprintf(text + used, size - used, "-%u", p->steps[i + n - 1]);
    }
    if (used < size)
        snprintf(text + used, size - used, ":%u", p->end);
}

void plan_format(const struct sim_plan *p, char text[PLAN_TEXT_MAX]) {
    text[0] = '\0';
    if (p->end > 0)
        format_steps(p, text, PLAN_TEXT_MAX);
    const char *before = " --without ";
    for (int i = 0; i < WITHOUT_COUNT; i++) {
        if (!plan_is_without(p, (enum plan_without)i))
            continue;
        size_t used = strlen(text);
        snprintf(text + used, PLAN_TEXT_MAX - used, "%s%s", before, plan_without_names[i]);
        before = ",";
    }
}

static void add_step(struct sim_plan *p, uint32_t step) {
    if ((p->count & (p->count - 1)) == 0)
        p->steps = xrealloc(p->steps, MAX(2 * p->count, (size_t)16) * sizeof *p->steps);
    p->steps[p->count++] = step;
}

/* Digits, and nothing before them. */
static bool parse_number(const char **at, uint32_t *ret) {
    char *end;
    if (!isdigit((unsigned char)**at))
        return false;
    unsigned long n = strtoul(*at, &end, 10);
    *at = end;
    *ret = (uint32_t)n;
    return n <= STEPS_PARSED_MAX;
}

bool plan_parse_steps(struct sim_plan *p, const char *text) {
    const char *at = text;
    while (*at != ':') {
        uint32_t first, last;
        if (!parse_number(&at, &first))
            return false;
        last = first;
        if (*at == '-' && (++at, !parse_number(&at, &last)))
            return false;
        bool ascends = p->count == 0 || p->steps[p->count - 1] < first;
        if (!ascends || last < first || (*at != ',' && *at != ':'))
            return false;
        for (uint32_t i = first; i <= last; i++)
            add_step(p, i);
        at += *at == ',';
    }
    at++;
    return parse_number(&at, &p->end) && *at == '\0' && p->end > 0;
}

bool plan_parse_without(struct sim_plan *p, const char *text) {
    for (const char *at = text; *at != '\0';) {
        size_t len = strcspn(at, ",");
        int which = -1;
        for (int i = 0; i < WITHOUT_COUNT; i++)
            if (strlen(plan_without_names[i]) == len && memcmp(plan_without_names[i], at, len) == 0)
                which = i;
        if (which < 0)
            return false;
        p->without |= UINT32_C(1) << which;
        at += len + (at[len] == ',');
    }
    return true;
}
