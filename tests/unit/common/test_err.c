/* Errors: texts, wrapping, cutting, the table. */
#include "tests/support/test.h"

#include <string.h>

#include "common/err.h"
#include "common/utf8.h"

static int open_thing(struct err *e) {
    return err_set(e, -ERR_NOT_FOUND, "no such thing: '%s'", "x");
}

static void test_set_and_wrap(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(open_thing(&e), -ERR_NOT_FOUND);
    assert_int_equal(err_wrap(&e, "volume '%s'", "v"), -ERR_NOT_FOUND);
    assert_string_equal(e.text, "volume 'v': no such thing: 'x'");
    assert_int_equal(e.code, -ERR_NOT_FOUND);
    assert_int_equal(open_thing(NULL), -ERR_NOT_FOUND);
    struct err copy = {0};
    assert_int_equal(err_copy(&copy, &e), -ERR_NOT_FOUND);
    assert_string_equal(copy.text, e.text);
    assert_int_equal(err_copy(NULL, &e), -ERR_NOT_FOUND);
}

/* Whatever the length, the text is valid UTF-8 and ends in its buffer. */
static void test_long_texts_are_cut_between_characters(void **state) {
    (void)state;
    for (size_t shift = 0; shift < 4; shift++) {
        char name[ERR_TEXT_MAX + 64];
        memset(name, 'a', shift);
        name[shift] = '\0';
        while (strlen(name) + 4 < sizeof name)
            strcat(name, "\U0001F98A");
        struct err e = {0};
        (void)err_set(&e, -ERR_INVALID, "%s", name);
        assert_true(strlen(e.text) < sizeof e.text);
        assert_true(strlen(e.text) > sizeof e.text - 8);
        assert_true(utf8_valid(view_of_str(e.text)));
        for (int i = 0; i < 5; i++) {
            err_wrap(&e, "x");
            assert_true(utf8_valid(view_of_str(e.text)));
        }
        assert_memory_equal(e.text, "x: x: x: x: x: ", 15);
    }
}

static void test_from_errno(void **state) {
    (void)state;
    struct err e = {0};
    assert_int_equal(err_from_errno(&e, ENOENT, "open %s", "/x"), -ERR_NOT_FOUND);
    assert_string_equal(e.text, "open /x: No such file or directory");
    assert_int_equal(err_from_errno(&e, EPERM, "a"), -ERR_DENIED);
    assert_int_equal(err_from_errno(&e, ENOTTY, "a"), -ERR_IO);
    assert_int_equal(err_from_errno(NULL, EBUSY, "a"), -ERR_BUSY);
}

static void test_table(void **state) {
    (void)state;
    const int codes[] = {
#define ERR_CODE(name, eno, retryable, nbd, grpc) -ERR_##name,
#include "common/err_codes.def"
#undef ERR_CODE
    };
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        assert_true(codes[i] < 0);
        for (size_t k = 0; k < i; k++)
            assert_int_not_equal(codes[i], codes[k]);
        int nbd = err_to_nbd(codes[i]);
        assert_true(nbd == EPERM || nbd == EIO || nbd == EINVAL || nbd == ENOSPC ||
                    nbd == EOPNOTSUPP || nbd == ESHUTDOWN);
        assert_in_range(err_to_grpc(codes[i]), 1, 16);
        assert_string_not_equal(err_code_name(codes[i]), "UNKNOWN");
    }
    assert_true(err_is_retryable(-ERR_TRANSIENT));
    assert_false(err_is_retryable(-ERR_CORRUPT));
    assert_string_equal(err_code_name(-ERR_FENCED), "FENCED");
    assert_string_equal(err_code_name(0), "ok");
    assert_int_equal(err_to_nbd(-ERR_FENCED), ESHUTDOWN);
    assert_int_equal(err_to_nbd(-9999), EIO);
    assert_string_equal(err_code_name(-9999), "UNKNOWN");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_and_wrap),
        cmocka_unit_test(test_long_texts_are_cut_between_characters),
        cmocka_unit_test(test_from_errno),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
