/* What must not reach protobuf-c's decoder, and what must. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "csi.pb-c.h"
#include "csi/rpc/rpc.h"
#include "csi/rpc/wire_check.h"

static const char *check(const char *bytes, size_t len) {
    return wire_check(&csi__v1__create_volume_request__descriptor, view_of(bytes, len),
                      RPC_DEPTH_MAX);
}
#define CHECK_BYTES(s) check((s), sizeof(s) - 1)

static void test_well_formed(void **state) {
    (void)state;
    assert_null(CHECK_BYTES(""));
    assert_null(CHECK_BYTES("\x0a\x03"
                            "abc"));                      /* name */
    assert_null(CHECK_BYTES("\x0a\x02\xc3\xa9"));         /* name, two bytes of UTF-8 */
    assert_null(CHECK_BYTES("\x0a\x04\xf0\x9f\x98\x80")); /* ... four */
    assert_null(CHECK_BYTES("\x12\x02\x08\x07"));         /* capacity_range {7} */
    assert_null(CHECK_BYTES("\xfa\x3f\x03"
                            "a\0b")); /* unknown field: not looked into */
    assert_null(CHECK_BYTES("\xf8\x3f\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
    assert_null(CHECK_BYTES("\xf9\x3f"
                            "12345678")); /* fixed64 */
    assert_null(CHECK_BYTES("\xfd\x3f"
                            "1234")); /* fixed32 */
}

static void test_malformed(void **state) {
    (void)state;
    assert_non_null(CHECK_BYTES("\x0a"));
    assert_non_null(CHECK_BYTES("\x0a\xff"));
    assert_non_null(CHECK_BYTES("\x0a\x04"
                                "abc"));
    assert_non_null(CHECK_BYTES("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
    assert_non_null(CHECK_BYTES("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
    assert_non_null(CHECK_BYTES("\x02\x00")); /* field 0 */
    assert_non_null(CHECK_BYTES("\x0b\x0c")); /* groups */
    assert_non_null(CHECK_BYTES("\x0f"));     /* wire type 7 */
    assert_non_null(CHECK_BYTES("\xf9\x3f"
                                "1234567"));
    assert_non_null(CHECK_BYTES("\xfd\x3f"
                                "123"));
    assert_non_null(CHECK_BYTES("\x12\x02\x08")); /* a message cut off */
}

static void test_text(void **state) {
    (void)state;
    static const char *const bad[] = {"\xff",
                                      "\xc3",
                                      "\xc3(",
                                      "\xc0\x80",
                                      "\xe0\x80\x80",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "a\x80"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_false(wire_text_valid(view_of_str(bad[i])));
    assert_false(wire_text_valid(view_of("a\0b", 3)));
    assert_true(wire_text_valid(view_of_str("\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf")));
    assert_non_null(CHECK_BYTES("\x0a\x03"
                                "a\0b"));
    /* in a map, in a message */
    assert_non_null(CHECK_BYTES("\x22\x04\x0a\x02\xc3\x28"));
}

/* The messages of CSI are not recursive; the limit is for those that will be. */
static void test_depth(void **state) {
    (void)state;
    assert_null(
        wire_check(&csi__v1__create_volume_request__descriptor, view_of("\x12\x02\x08\x07", 4), 2));
    assert_non_null(
        wire_check(&csi__v1__create_volume_request__descriptor, view_of("\x12\x02\x08\x07", 4), 1));
}

/* Whatever passes decodes or is refused, within the arena's cap. */
static void test_random_bytes(void **state) {
    (void)state;
    srandom(1);
    unsigned passed = 0;
    for (int round = 0; round < 200000; round++) {
        uint8_t bytes[24];
        size_t len = (size_t)random() % sizeof bytes;
        for (size_t i = 0; i < len; i++)
            bytes[i] = (uint8_t)(random() % 3 ? random() % 40 : random());
        if (wire_check(&csi__v1__create_volume_request__descriptor, view_of(bytes, len),
                       RPC_DEPTH_MAX))
            continue;
        passed++;
        CLEANUP_ARENA struct arena arena;
        arena_init(&arena, 64 * 1024);
        ProtobufCAllocator allocator = arena_allocator(&arena);
        ProtobufCMessage *m = protobuf_c_message_unpack(&csi__v1__create_volume_request__descriptor,
                                                        &allocator, len, bytes);
        if (m)
            assert_true(protobuf_c_message_get_packed_size(m) <= 4 * sizeof bytes);
    }
    assert_true(passed > 1000);
}

/* 2 MiB of empty sub-messages: refused by the arena, not by the machine. */
static void test_amplification(void **state) {
    (void)state;
    size_t count = 500000;
    uint8_t *bytes = malloc(2 * count);
    for (size_t i = 0; i < count; i++) {
        bytes[2 * i] = 0x1a; /* volume_capabilities {} */
        bytes[2 * i + 1] = 0;
    }
    assert_null(wire_check(&csi__v1__create_volume_request__descriptor, view_of(bytes, 2 * count),
                           RPC_DEPTH_MAX));
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, RPC_ARENA_MAX_DEFAULT);
    ProtobufCAllocator allocator = arena_allocator(&arena);
    assert_null(protobuf_c_message_unpack(&csi__v1__create_volume_request__descriptor, &allocator,
                                          2 * count, bytes));
    assert_true(arena.exhausted);
    assert_true(arena.used_bytes <= RPC_ARENA_MAX_DEFAULT);
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_well_formed),  cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_text),         cmocka_unit_test(test_depth),
        cmocka_unit_test(test_random_bytes), cmocka_unit_test(test_amplification),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
