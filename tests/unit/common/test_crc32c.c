/* CRC32C: published values, beside a bit-by-bit implementation, in pieces. */
#include "tests/support/test.h"

#include <string.h>

#include "common/crc32c.h"

static uint32_t bit_by_bit(struct view v) {
    uint32_t crc = ~0u;
    for (size_t i = 0; i < v.len; i++) {
        crc ^= v.data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0x82f63b78 : crc >> 1;
    }
    return ~crc;
}

/* RFC 3720, B.4. */
static void test_published(void **state) {
    (void)state;
    uint8_t bytes[32] = {0};
    assert_int_equal(crc32c(view_of_str("123456789")), 0xe3069283);
    assert_int_equal(crc32c(view_of(NULL, 0)), 0);
    assert_int_equal(crc32c(view_of(bytes, 32)), 0x8a9136aa);
    memset(bytes, 0xff, sizeof bytes);
    assert_int_equal(crc32c(view_of(bytes, 32)), 0x62a8ab43);
    for (unsigned i = 0; i < 32; i++)
        bytes[i] = (uint8_t)i;
    assert_int_equal(crc32c(view_of(bytes, 32)), 0x46dd794e);
}

static void test_every_length_and_cut(void **state) {
    (void)state;
    uint8_t bytes[300];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 5);
    for (size_t len = 0; len <= sizeof bytes; len++) {
        struct view v = view_of(bytes, len);
        uint32_t want = bit_by_bit(v);
        assert_int_equal(crc32c(v), want);
        size_t cut = len * 3 / 7;
        uint32_t first = crc32c(view_part(v, 0, cut));
        assert_int_equal(crc32c_extend(first, view_part(v, cut, len - cut)), want);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published),
        cmocka_unit_test(test_every_length_and_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
