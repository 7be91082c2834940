/* UTF-8, beside an encoder: every code point is a sequence, nothing else is. */
#include "tests/support/test.h"

#include "common/utf8.h"

static size_t encode(uint32_t c, uint8_t out[4]) {
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    size_t len = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (size_t i = len - 1; i > 0; i--, c >>= 6)
        out[i] = (uint8_t)(0x80 | (c & 0x3f));
    out[0] = (uint8_t)(lead[len] | c);
    return len;
}

static void test_code_points(void **state) {
    (void)state;
    unsigned long wrong = 0;
    for (uint32_t c = 0; c < 0x120000; c++) {
        uint8_t bytes[4];
        size_t len = encode(c, bytes);
        bool valid = c <= 0x10ffff && !(c >= 0xd800 && c <= 0xdfff);
        wrong += utf8_sequence_len(bytes, len) != (valid ? len : 0);
        wrong += len > 1 && utf8_sequence_len(bytes, len - 1) != 0;
    }
    assert_int_equal(wrong, 0);
}

/* Of all inputs of three bytes exactly the encodings are taken: nothing overlong, nothing alone. */
static void test_no_other_bytes(void **state) {
    (void)state;
    unsigned long ones = 0, twos = 0, threes = 0;
    for (uint32_t v = 0; v < 1u << 24; v++) {
        const uint8_t bytes[3] = {(uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
        size_t len = utf8_sequence_len(bytes, 3);
        ones += len == 1;
        twos += len == 2;
        threes += len == 3;
    }
    assert_int_equal(ones, 0x80ul << 16);
    assert_int_equal(twos, (0x800ul - 0x80) << 8);
    assert_int_equal(threes, 0x10000ul - 0x800 - 0x800);
}

static void test_text(void **state) {
    (void)state;
    assert_true(utf8_valid(view_of_str("")));
    assert_true(utf8_valid(view_of_str("grün \U0001F98A")));
    assert_false(utf8_valid(view_of("a\0b", 3)));
    assert_false(utf8_valid(view_of_str("a\xff")));
    assert_false(utf8_valid(view_of_str("a\xe2\x82")));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_code_points),
        cmocka_unit_test(test_no_other_bytes),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
