/* Plans: what their options say, and back. */
#include "tests/support/test.h"

#include <string.h>

#include "tests/sim/plan.h"

static void test_all(void **state) {
    (void)state;
    struct sim_plan p = {0};
    char text[PLAN_TEXT_MAX];
    plan_format(&p, text);
    assert_string_equal(text, "");
    assert_true(plan_has_step(&p, 0));
    assert_true(plan_has_step(&p, 12345));
}

static void test_round_trip(void **state) {
    (void)state;
    struct sim_plan p = {0};
    char text[PLAN_TEXT_MAX];
    assert_true(plan_parse_steps(&p, "3,17-19,40:60"));
    assert_true(plan_parse_without(&p, "late,spots"));
    assert_int_equal(p.count, 5);
    assert_int_equal(p.end, 60);
    assert_true(plan_is_without(&p, WITHOUT_LATE));
    assert_false(plan_is_without(&p, WITHOUT_SLOW));
    for (uint32_t i = 0; i < 70; i++)
        assert_int_equal(plan_has_step(&p, i), i == 3 || (i >= 17 && i <= 19) || i == 40);
    plan_format(&p, text);
    assert_string_equal(text, " --steps 3,17-19,40:60 --without late,spots");
    plan_release(&p);
}

static void test_no_steps(void **state) {
    (void)state;
    struct sim_plan p = {0}, copy;
    char text[PLAN_TEXT_MAX];
    assert_true(plan_parse_steps(&p, ":7"));
    assert_false(plan_has_step(&p, 0));
    plan_copy(&copy, &p);
    plan_format(&copy, text);
    assert_string_equal(text, " --steps :7");
    plan_release(&copy);
    plan_release(&p);
}

static void test_refused(void **state) {
    (void)state;
    static const char *const bad[] = {"",      "3",    "3:",   "3:0", "5,3:9",
                                      "7-3:9", "3,:x", "3:9x", "-:4"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct sim_plan p = {0};
        assert_false(plan_parse_steps(&p, bad[i]));
        plan_release(&p);
    }
    struct sim_plan p = {0};
    assert_false(plan_parse_without(&p, "late,nothing"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_no_steps),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
