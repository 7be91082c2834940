/* Ids, object references and keys: what is made can be read, what is not ours is refused. */
#include "tests/support/test.h"

#include <string.h>

#include "portalbd/format/ids.h"

static const char hash_a[] = "ca978112ca1bbdcafac231b39a23dc4d"; /* sha256("a"), by sha256sum */

static void test_name_hash(void **state) {
    (void)state;
    char hash[33];
    name_hash(hash, "a");
    assert_string_equal(hash, hash_a);
}

static void test_id_round_trip(void **state) {
    (void)state;
    for (int kind = ID_VOLUME; kind <= ID_SNAPSHOT; kind++) {
        uint64_t numbers[] = {1, 10, 0xffffffffffffff};
        for (size_t i = 0; i < ARRAY_LEN(numbers); i++) {
            struct volume_key key;
            char id[ID_MAX];
            struct parsed_id parsed;
            id_format_key(&key, (enum id_kind)kind, hash_a, numbers[i]);
            id_format(id, &key, "fast-pool1");
            assert_int_equal(id_parse(&parsed, id, NULL), 0);
            assert_int_equal(parsed.kind, kind);
            assert_string_equal(parsed.key.text, key.text);
            assert_string_equal(parsed.name_hash, hash_a);
            assert_true(parsed.number == numbers[i]);
            assert_string_equal(parsed.pool, "fast-pool1");
        }
    }
}

static void test_id_refused(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",
        "pv-",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-1",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-1.",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-.a",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-0.a",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-01.a",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-1.A",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-1.a/b",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-1.elevenchars",
        "pv-ca978112ca1bbdcafac231b39a23dc4d-1ffffffffffffff.a",
        "pv-CA978112ca1bbdcafac231b39a23dc4d-1.a",
        "pv-ca978112ca1bbdcafac231b39a23dc4-1.a",
        "px-ca978112ca1bbdcafac231b39a23dc4d-1.a",
        "snap_ca978112ca1bbdcafac231b39a23dc4d-1.a",
        "../../etc",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct parsed_id parsed;
        struct err e = {0};
        assert_int_equal(id_parse(&parsed, bad[i], &e), -ERR_NOT_FOUND);
        assert_int_equal(e.code, -ERR_NOT_FOUND);
    }
}

static void test_random_id(void **state) {
    (void)state;
    struct random_id id = {0}, back;
    char hex[RANDOM_ID_HEX];
    assert_true(random_id_is_zero(&id));
    for (size_t i = 0; i < RANDOM_ID_SIZE; i++)
        id.bytes[i] = (uint8_t)(i * 17);
    random_id_to_hex(&id, hex);
    assert_string_equal(hex, "00112233445566778899aabbccddeeff");
    assert_int_equal(random_id_from_hex(&back, hex, NULL), 0);
    assert_true(random_id_equal(&id, &back));
    assert_int_equal(random_id_from_hex(&back, "00112233445566778899aabbccddeef", NULL),
                     -ERR_INVALID);
    assert_int_equal(random_id_from_hex(&back, "00112233445566778899aabbccddeeff0", NULL),
                     -ERR_INVALID);
    assert_int_equal(random_id_from_hex(&back, "00112233445566778899AABBccddeeff", NULL),
                     -ERR_INVALID);
}

static void test_keys(void **state) {
    (void)state;
    struct volume_key v;
    struct random_id id = {.bytes = {0xab}}, id_back;
    char key[KEY_MAX];
    uint64_t n;
    bool is_root;
    id_format_key(&v, ID_VOLUME, hash_a, 1);

    key_record(key, hash_a, 1);
    assert_string_equal(key, "records/ca978112ca1bbdcafac231b39a23dc4d/fffffffffffffffe.json");
    assert_int_equal(key_parse_numbered(key, &n), 0);
    assert_true(n == 1);
    key_manifest(key, &v, UINT64_MAX);
    assert_int_equal(key_parse_numbered(key, &n), 0);
    assert_true(n == UINT64_MAX);
    key_log(key, &v, 0x2a);
    assert_string_equal(key, "volumes/pv-ca978112ca1bbdcafac231b39a23dc4d-1/log/000000000000002a");
    assert_int_equal(key_parse_log(key, &n), 0);
    assert_true(n == 0x2a);
    key_pin_claim(key, &v, &id);
    assert_int_equal(key_parse_pin(key, &id_back, &is_root), 0);
    assert_true(random_id_equal(&id, &id_back) && !is_root);
    key_pin_root(key, &v, &id);
    assert_int_equal(key_parse_pin(key, &id_back, &is_root), 0);
    assert_true(is_root);
    key_map(key, &v, &id);
    assert_int_equal(key_parse_random(key, &id_back), 0);
    assert_int_equal(key_parse_pin(key, &id_back, &is_root), -ERR_INVALID);
    assert_int_equal(key_parse_log(key, &n), -ERR_INVALID);
    assert_int_equal(key_parse_numbered(key, &n), -ERR_INVALID);
    assert_int_equal(key_parse_log("log/0000000000000000", &n), -ERR_INVALID);
    assert_int_equal(key_parse_numbered("ffffffffffffffff.json", &n), -ERR_INVALID);
    assert_int_equal(key_parse_numbered("fffffffffffffffe.json~", &n), -ERR_INVALID);
}

static void test_node_keys(void **state) {
    (void)state;
    char key[KEY_MAX];
    key_node(key, "node-1.example.org", 1);
    assert_string_equal(key, "nodes/node-1.example.org/fffffffffffffffe.json");
    static const char *const odd[] = {"", "..", "_x", "a/b", "a b", "\xc3\xa4"};
    for (size_t i = 0; i < ARRAY_LEN(odd); i++) {
        key_nodes_prefix(key, odd[i]);
        assert_int_equal(strlen(key), strlen("nodes/_") + 64 + 1);
        assert_true(strncmp(key, "nodes/_", 7) == 0);
    }
}

static void test_ref_order(void **state) {
    (void)state;
    struct obj_ref a = {.kind = OBJ_LOG, .seq = 5}, b = a;
    assert_true(obj_ref_equal(&a, &b));
    b.seq = 6;
    assert_true(obj_ref_compare(&a, &b) < 0 && obj_ref_compare(&b, &a) > 0);
    a.volume = 1;
    assert_true(obj_ref_compare(&a, &b) > 0);
    b = (struct obj_ref){.volume = 1, .kind = OBJ_MOVED, .id = {{1}}};
    assert_true(obj_ref_compare(&a, &b) < 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_name_hash),  cmocka_unit_test(test_id_round_trip),
        cmocka_unit_test(test_id_refused), cmocka_unit_test(test_random_id),
        cmocka_unit_test(test_keys),       cmocka_unit_test(test_node_keys),
        cmocka_unit_test(test_ref_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
