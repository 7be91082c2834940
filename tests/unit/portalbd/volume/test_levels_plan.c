/* The plan of merges: what it does to the shape of a map that grows, and the limits it keeps. */
#include "tests/support/test.h"

#include <string.h>

#include "portalbd/volume/levels_plan.h"

enum { RUNS_CAP = 64, CHECKPOINT = 1000 };

struct shape {
    struct level_run runs[RUNS_CAP];
    size_t count;
    uint64_t age;
    uint64_t merged_entries; /* written by merges */
    struct level_limits limits;
};

static void push(struct shape *s, uint64_t entries) {
    assert_true(s->count < RUNS_CAP);
    memmove(s->runs + 1, s->runs, s->count * sizeof *s->runs);
    s->runs[0] = (struct level_run){.age = ++s->age, .entries = entries};
    s->count++;
}

/* As the engine does it; what the result has in entries is all of its sources', at most `most`. */
static void carry_out(struct shape *s, const struct level_plan *p, uint64_t most) {
    assert_true(p->count >= 2);
    assert_true(p->first + p->count <= s->count);
    uint64_t entries = 0;
    for (size_t i = p->first; i < p->first + p->count; i++) {
        assert_false(s->runs[i].busy);
        entries += s->runs[i].entries;
    }
    s->runs[p->first].entries = MIN(entries, most);
    s->runs[p->first].covered = 0;
    memmove(s->runs + p->first + 1, s->runs + p->first + p->count,
            (s->count - p->first - p->count) * sizeof *s->runs);
    s->count -= p->count - 1;
    s->merged_entries += MIN(entries, most);
}

static size_t settle(struct shape *s, uint64_t most) {
    struct level_plan p;
    size_t n = 0;
    for (; levels_plan(s->runs, s->count, &s->limits, &p); n++) {
        assert_true(n < RUNS_CAP);
        carry_out(s, &p, most);
    }
    return n;
}

static struct shape shape_of(size_t count, const uint64_t *entries) { /* newest first */
    struct shape s = {.limits = {.runs_max = 8}};
    for (size_t i = count; i-- > 0;)
        push(&s, entries[i]);
    return s;
}

static void assert_plan(const struct shape *s, bool due, size_t first, size_t count) {
    struct level_plan p;
    assert_int_equal(levels_plan(s->runs, s->count, &s->limits, &p), due);
    if (!due)
        return;
    assert_int_equal(p.first, first);
    assert_int_equal(p.count, count);
}

/* A volume filled and overwritten at random: few runs at any time, few writes of an entry. */
static void test_growth(void **state) {
    (void)state;
    for (uint64_t each = 200; each <= 128 * 1024; each *= 8) {
        struct shape s = {.limits = {.runs_max = 8}};
        uint64_t written = 0, most = each * 2000;
        for (size_t i = 0; i < 6000; i++) {
            push(&s, each);
            written += each;
            settle(&s, most);
            assert_true(s.count <= 8);
        }
        print_message("runs of %llu entries: an entry is merged %.1f times, %zu runs\n",
                      (unsigned long long)each, (double)s.merged_entries / (double)written,
                      s.count);
        assert_true(s.merged_entries <= written * 18);
    }
}

static void test_rest(void **state) {
    (void)state;
    struct shape s = {.limits = {.runs_max = 8}};
    assert_plan(&s, false, 0, 0);
    push(&s, 5);
    assert_plan(&s, false, 0, 0);
    push(&s, 5);
    push(&s, 5);
    assert_plan(&s, false, 0, 0); /* small ones wait for company */
    push(&s, 5);
    assert_plan(&s, true, 0, 4);
    assert_int_equal(settle(&s, UINT64_MAX), 1);
    assert_int_equal(s.count, 1);
}

static void test_tiers(void **state) {
    (void)state;
    const uint64_t huge = 1 << 30;
    struct shape s = shape_of(5, (uint64_t[]){10, 10, 10, 10, huge});
    assert_plan(&s, true, 0, 4);
    s = shape_of(5, (uint64_t[]){10, 10, 10, 100000, huge});
    assert_plan(&s, false, 0, 0);
    /* smaller ones between those of the class come along; moved entries may stand anywhere */
    s = shape_of(7, (uint64_t[]){100000, 10, 100000, 10, 100000, 100000, huge});
    assert_plan(&s, true, 0, 6);
    s = shape_of(7, (uint64_t[]){10, 10, 1 << 20, 10, 10, 10, huge});
    assert_plan(&s, false, 0, 0);
}

static void test_bottom(void **state) {
    (void)state;
    struct shape s = shape_of(4, (uint64_t[]){20000, 20000, 20000, 500000});
    assert_plan(&s, false, 0, 0);
    s = shape_of(4, (uint64_t[]){20000, 20000, 20000, 480000});
    assert_plan(&s, true, 0, 4);
    s = shape_of(4, (uint64_t[]){1, 1, 1, 480000});
    s.runs[3].sectors = 1000;
    s.runs[3].covered = 124;
    assert_plan(&s, false, 0, 0);
    s.runs[3].covered = 125;
    assert_plan(&s, true, 0, 4);
}

static void test_covered(void **state) {
    (void)state;
    struct shape s = shape_of(4, (uint64_t[]){10, 1 << 20, 1 << 20, 1 << 30});
    s.runs[2].sectors = 101;
    s.runs[2].covered = 50;
    assert_plan(&s, false, 0, 0);
    s.runs[2].covered = 51;
    assert_plan(&s, true, 0, 3);
    s.runs[0].busy = true;
    assert_plan(&s, false, 0, 0);
    s.runs[0].busy = false;
    s.limits.barrier_age = s.runs[1].age;
    assert_plan(&s, false, 0, 0);
}

static void test_barrier(void **state) {
    (void)state;
    struct shape s = shape_of(7, (uint64_t[]){10, 10, 10, 10, 10, 10, 1 << 30});
    s.limits.barrier_age = s.runs[3].age;
    assert_plan(&s, false, 0, 0);
    s.limits.barrier_age = s.runs[4].age;
    assert_plan(&s, true, 0, 4);
    s.limits.barrier_age = s.runs[1].age;
    assert_plan(&s, true, 1, 4);
    s.limits.barrier_age = s.runs[0].age;
    assert_plan(&s, true, 0, 4);
    s.limits = (struct level_limits){.runs_max = 3, .barrier_age = s.runs[5].age};
    s.runs[2].entries = 1 << 20;
    assert_plan(&s, true, 0, 5); /* more than it would like to, but not the run behind */
}

static void test_busy(void **state) {
    (void)state;
    struct shape s = shape_of(9, (uint64_t[]){10, 10, 10, 10, 10, 10, 10, 10, 10});
    s.runs[1].busy = true;
    assert_plan(&s, true, 2, 7);
    s.runs[4].busy = true;
    s.runs[5].busy = true;
    assert_plan(&s, true, 6, 3);
    s.limits.runs_max = 9;
    assert_plan(&s, false, 0, 0);
}

static void test_fewer(void **state) {
    (void)state;
    struct level_plan p;
    struct shape s = shape_of(5, (uint64_t[]){1 << 20, 5, 1 << 10, 1 << 15, 1 << 30});
    s.limits.runs_max = 4;
    assert_true(levels_plan_fewer(s.runs, s.count, &s.limits, &p));
    assert_int_equal(p.first, 0);
    assert_int_equal(p.count, 4); /* the cheapest of four */
    s.limits.runs_max = 5;
    assert_false(levels_plan_fewer(s.runs, s.count, &s.limits, &p));
    s.limits.runs_max = 1;
    while (levels_plan_fewer(s.runs, s.count, &s.limits, &p))
        carry_out(&s, &p, UINT64_MAX);
    assert_int_equal(s.count, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_growth),  cmocka_unit_test(test_rest),
        cmocka_unit_test(test_tiers),   cmocka_unit_test(test_bottom),
        cmocka_unit_test(test_covered), cmocka_unit_test(test_barrier),
        cmocka_unit_test(test_busy),    cmocka_unit_test(test_fewer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
