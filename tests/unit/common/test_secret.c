/* Secrets: what goes in, what comes out, what is refused. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "common/secret.h"

static void test_set_and_copy(void **state) {
    (void)state;
    CLEANUP_SECRET struct secret a = {0};
    CLEANUP_SECRET struct secret b = {0};
    assert_true(secret_empty(&a));
    assert_true(secret_equal(&a, &b));
    assert_true(secret_set(&a, view_of_str("hunter2")));
    assert_true(view_equal(secret_reveal(&a), view_of_str("hunter2")));
    assert_false(secret_equal(&a, &b));
    secret_copy(&b, &a);
    assert_true(secret_equal(&a, &b));
    assert_true(secret_set(&a, view_of_str("hunter3")));
    assert_false(secret_equal(&a, &b));
    assert_true(view_equal(secret_reveal(&b), view_of_str("hunter2")));
    secret_release(&a);
    assert_true(secret_empty(&a));
}

static void test_limits(void **state) {
    (void)state;
    CLEANUP_SECRET struct secret s = {0};
    CLEANUP_FREE char *text = xcalloc(1, SECRET_MAX + 2);
    memset(text, 'x', SECRET_MAX);
    assert_true(secret_set(&s, view_of_str(text)));
    assert_int_equal(secret_reveal(&s).len, SECRET_MAX);
    text[SECRET_MAX] = 'x';
    assert_false(secret_set(&s, view_of_str(text)));
    assert_true(secret_empty(&s));
    assert_false(secret_set(&s, view_of("a\0b", 3)));
    assert_true(secret_empty(&s));
}

static void test_wipe(void **state) {
    (void)state;
    char bytes[] = "hunter2";
    secret_wipe(bytes, 4);
    assert_memory_equal(bytes, "\0\0\0\0er2", 8);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_and_copy),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_wipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
