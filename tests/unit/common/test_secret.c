/* Secrets and checksums. */
#include "tests/support/test.h"

#include <string.h>

#include "common/crc32c.h"
#include "common/secret.h"

static void test_secret(void **state) {
    (void)state;
    struct secret a = {0}, b = {0};
    assert_true(secret_empty(&a));
    assert_true(secret_equal(&a, &b));
    assert_true(secret_set(&a, view_of_str("abc")));
    assert_false(secret_equal(&a, &b));
    secret_copy(&b, &a);
    assert_true(secret_equal(&a, &b));
    assert_true(secret_set(&b, view_of_str("abd")));
    assert_false(secret_equal(&a, &b));
    assert_int_equal(strlen((const char *)secret_reveal(&a).data), 3);
    assert_false(secret_set(&b, view_of("a\0b", 3)));
    assert_true(secret_empty(&b));
    static const uint8_t longer[SECRET_MAX + 1] = {[0 ... SECRET_MAX] = 'x'};
    assert_true(secret_set(&b, view_of(longer, SECRET_MAX)));
    assert_false(secret_set(&b, view_of(longer, SECRET_MAX + 1)));
    secret_release(&a);
    secret_release(&b);
}

static void test_crc32c(void **state) {
    (void)state;
    assert_int_equal(crc32c(view_of_str("123456789")), 0xe3069283);
    assert_int_equal(crc32c(view_of(NULL, 0)), 0);
    uint32_t crc = crc32c_extend(0, view_of_str("1234"));
    crc = crc32c_extend(crc, view_of(NULL, 0));
    assert_int_equal(crc32c_extend(crc, view_of_str("56789")), 0xe3069283);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_secret),
        cmocka_unit_test(test_crc32c),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
