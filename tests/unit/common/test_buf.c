/* Buffers and views. */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "common/bytes.h"

static void test_append(void **state) {
    (void)state;
    CLEANUP_BUF struct buf b = {0};
    assert_string_equal(buf_cstr(&b), "");
    assert_int_equal(b.len, 0);
    buf_append(&b, NULL, 0);
    buf_append_str(&b, "abc");
    buf_append(&b, "\0d", 2);
    memset(buf_extend(&b, 3), 'x', 3);
    assert_int_equal(b.len, 8);
    assert_memory_equal(buf_cstr(&b), "abc\0dxxx", 9);
    assert_true(view_equal(view_part(buf_view(&b), 3, 2), view_of("\0d", 2)));
    size_t cap = b.cap;
    buf_clear(&b);
    assert_int_equal(b.len, 0);
    assert_int_equal(b.cap, cap);
}

static void test_printf(void **state) {
    (void)state;
    CLEANUP_BUF struct buf b = {0};
    char want[4000] = "";
    for (int i = 0; i < 300; i++) {
        buf_printf(&b, "%d,", i);
        snprintf(want + strlen(want), sizeof want - strlen(want), "%d,", i);
    }
    assert_int_equal(b.len, strlen(want));
    assert_string_equal(buf_cstr(&b), want);
}

/* Reserved room is enough: no reallocation moves the bytes. */
static void test_reserve(void **state) {
    (void)state;
    CLEANUP_BUF struct buf b = {0};
    buf_reserve(&b, 1000);
    const uint8_t *before = b.data;
    for (int i = 0; i < 1000; i++)
        buf_append(&b, "x", 1);
    assert_ptr_equal(b.data, before);
    buf_release(&b);
    assert_null(b.data);
    assert_int_equal(b.cap, 0);
}

static void test_views(void **state) {
    (void)state;
    assert_true(view_equal(view_of(NULL, 0), view_of_str("")));
    assert_false(view_equal(view_of_str("a"), view_of_str("b")));
    assert_false(view_equal(view_of_str("a"), view_of_str("ab")));
    assert_int_equal(view_part(view_of_str("abc"), 3, 0).len, 0);
}

static void test_bytes(void **state) {
    (void)state;
    uint8_t bytes[9] = {0};
    store_le64(bytes + 1, UINT64_C(0x1122334455667788));
    assert_int_equal(bytes[1], 0x88);
    assert_int_equal(bytes[8], 0x11);
    assert_true(load_le64(bytes + 1) == UINT64_C(0x1122334455667788));
    assert_true(load_be64(bytes + 1) == UINT64_C(0x8877665544332211));
    store_be32(bytes, 0xa1b2c3d4);
    assert_int_equal(bytes[0], 0xa1);
    assert_true(load_be32(bytes) == 0xa1b2c3d4);
    store_le16(bytes, 0x0102);
    assert_int_equal(load_be16(bytes), 0x0201);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_append),  cmocka_unit_test(test_printf),
        cmocka_unit_test(test_reserve), cmocka_unit_test(test_views),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
