/* Records of the pool: round trips, damage, what users must not be able to put in. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/format/records.h"

static const char hash[] = "0123456789abcdef0123456789abcdef";

static struct volume_record some_volume(void) {
    struct volume_record r = {.nonce = {{1}},
                              .name = xstrdup("w\xc3\xb6rk \"1\""),
                              .size_bytes = 1 << 30,
                              .block_size = 4096,
                              .fingerprint = xstrdup("f00"),
                              .source_kind = SOURCE_SNAPSHOT,
                              .source = xstrdup("snap-x"),
                              .node = xstrdup("node-1"),
                              .read_only = true,
                              .publish_epoch = UINT32_MAX,
                              .state = VOLUME_FENCING,
                              .restore_snapshot = xstrdup(""),
                              .created_ms = 1700000000000};
    id_format_key(&r.key, ID_VOLUME, hash, 3);
    string_map_set(&r.parameters, "pool", "fast");
    string_map_set(&r.parameters, "cacheSize", "1Gi");
    string_map_set(&r.parameters, "pool", "slow");
    return r;
}

static void test_volume(void **state) {
    (void)state;
    struct volume_record r = some_volume(), back, copy;
    CLEANUP_BUF struct buf a = {0};
    CLEANUP_BUF struct buf b = {0};
    assert_int_equal(volume_record_encode(&a, &r, NULL), 0);
    struct err e = {0};
    if (volume_record_decode(&back, 8, buf_view(&a), &e) < 0)
        fail_msg("%s", e.text);
    assert_string_equal(back.name, r.name);
    assert_true(back.number == 8 && back.publish_epoch == UINT32_MAX && back.read_only);
    assert_int_equal(back.state, VOLUME_FENCING);
    assert_int_equal(back.source_kind, SOURCE_SNAPSHOT);
    assert_int_equal(back.parameters.count, 2);
    assert_string_equal(string_map_get(&back.parameters, "pool"), "slow");
    assert_null(string_map_get(&back.parameters, "x"));
    volume_record_copy(&copy, &back);
    volume_record_release(&back);
    assert_int_equal(volume_record_encode(&b, &copy, NULL), 0);
    assert_true(view_equal(buf_view(&a), buf_view(&b)));
    for (size_t bit = 0; bit < a.len * 8; bit++) {
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(volume_record_decode(&back, 8, buf_view(&a), NULL) < 0);
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    for (size_t len = 0; len < a.len; len++)
        assert_int_equal(volume_record_decode(&back, 8, view_of(a.data, len), NULL), -ERR_CORRUPT);
    volume_record_release(&copy);
    volume_record_release(&r);
}

static int encode_with_name(const char *name) {
    struct volume_record r = some_volume();
    CLEANUP_BUF struct buf a = {0};
    free(r.name);
    r.name = xstrdup(name);
    int rc = volume_record_encode(&a, &r, NULL);
    volume_record_release(&r);
    return rc;
}

static void test_refused(void **state) {
    (void)state;
    char name[ENTITY_NAME_MAX + 2];
    memset(name, 'x', sizeof name);
    name[ENTITY_NAME_MAX + 1] = '\0';
    assert_int_equal(encode_with_name(name), -ERR_INVALID);
    name[ENTITY_NAME_MAX] = '\0';
    assert_int_equal(encode_with_name(name), 0);
    assert_int_equal(encode_with_name(""), -ERR_INVALID);
    assert_int_equal(encode_with_name("\xff\xfe"), -ERR_INVALID);

    struct volume_record r = some_volume();
    CLEANUP_BUF struct buf a = {0};
    char *big = xmalloc(RECORD_PARAMETERS_MAX + 1);
    memset(big, 'v', RECORD_PARAMETERS_MAX);
    big[RECORD_PARAMETERS_MAX] = '\0';
    string_map_set(&r.parameters, "big", big);
    assert_int_equal(volume_record_encode(&a, &r, NULL), -ERR_INVALID);
    free(big);
    volume_record_release(&r);
    r = some_volume();
    r.size_bytes = 1000;
    assert_int_equal(volume_record_encode(&a, &r, NULL), -ERR_INVALID);
    volume_record_release(&r);
}

static void test_snapshot(void **state) {
    (void)state;
    struct snapshot_record r = {.nonce = {{2}},
                                .name = xstrdup("db@monday"),
                                .source_name = xstrdup("db"),
                                .pin = {{3}},
                                .size_bytes = 1 << 20,
                                .block_size = 4096,
                                .created_ms = 5,
                                .fstype = xstrdup("xfs")},
                           back, copy;
    id_format_key(&r.key, ID_SNAPSHOT, hash, 1);
    id_format_key(&r.source, ID_VOLUME, hash, 1);
    CLEANUP_BUF struct buf a = {0};
    assert_int_equal(snapshot_record_encode(&a, &r, NULL), 0);
    assert_int_equal(snapshot_record_decode(&back, 1, buf_view(&a), NULL), 0);
    assert_string_equal(back.fstype, "xfs");
    assert_string_equal(back.key.text, r.key.text);
    assert_true(random_id_equal(&back.pin, &r.pin));
    snapshot_record_copy(&copy, &back);
    assert_string_equal(copy.name, "db@monday");
    snapshot_record_release(&copy);
    snapshot_record_release(&back);
    snapshot_record_release(&r);

    struct snapshot_record tombstone = {.nonce = {{4}}, .deleted = true};
    buf_clear(&a);
    assert_int_equal(snapshot_record_encode(&a, &tombstone, NULL), 0);
    assert_int_equal(snapshot_record_decode(&back, 2, buf_view(&a), NULL), 0);
    assert_true(back.deleted && random_id_equal(&back.nonce, &tombstone.nonce));
    assert_string_equal(back.source_name, "");
    snapshot_record_release(&back);
}

static void test_node_and_pool(void **state) {
    (void)state;
    struct node_record n = {.nonce = {{5}},
                            .node_id = xstrdup("n1"),
                            .version = xstrdup("0.1.0"),
                            .registered_ms = 6},
                       n_back;
    CLEANUP_BUF struct buf a = {0};
    assert_int_equal(node_record_encode(&a, &n, NULL), 0);
    assert_int_equal(node_record_decode(&n_back, 3, buf_view(&a), NULL), 0);
    assert_string_equal(n_back.node_id, "n1");
    assert_true(n_back.number == 3 && n_back.registered_ms == 6 && !n_back.deleted);
    node_record_release(&n_back);
    node_record_release(&n);

    struct pool_record p = {.uuid = {{7}},
                            .cluster_id = xstrdup("c1"),
                            .conditional_put = true,
                            .created_ms = 8},
                       p_back;
    buf_clear(&a);
    assert_int_equal(pool_record_encode(&a, &p, NULL), 0);
    assert_int_equal(pool_record_decode(&p_back, buf_view(&a), NULL), 0);
    assert_true(p_back.conditional_put && random_id_equal(&p_back.uuid, &p.uuid));
    assert_string_equal(p_back.cluster_id, "c1");
    assert_int_equal(node_record_decode(&n_back, 3, buf_view(&a), NULL), -ERR_CORRUPT);
    pool_record_release(&p_back);
    pool_record_release(&p);
}

/* Of a folder, a name, an id and its number only those of one make a good record. */
static void test_place(void **state) {
    (void)state;
    struct volume_record v = some_volume(), back;
    char own[33], other[33], key[KEY_MAX];
    CLEANUP_BUF struct buf a = {0};
    name_hash(own, v.name);
    name_hash(other, "other");
    for (int i = 0; i < 4; i++) { /* good, another's folder, another's id, an id of later */
        id_format_key(&v.key, ID_VOLUME, i == 2 ? other : own, i == 3 ? 9 : 7);
        key_record(key, i == 1 ? other : own, 8);
        buf_clear(&a);
        assert_int_equal(volume_record_encode(&a, &v, NULL), 0);
        assert_int_equal(volume_record_decode_at(&back, key, buf_view(&a), NULL),
                         i == 0 ? 0 : -ERR_CORRUPT);
        if (i == 0)
            assert_int_equal(back.number, 8);
        if (i == 0)
            volume_record_release(&back);
    }

    struct snapshot_record s = {.name = v.name,
                                .source = v.key,
                                .source_name = v.name,
                                .pin = {{3}},
                                .size_bytes = 1 << 20,
                                .block_size = 4096,
                                .fstype = v.node},
                           s_back;
    for (int i = 0; i < 4; i++) { /* good, another's folder, another's id, another number */
        id_format_key(&s.key, ID_SNAPSHOT, i == 2 ? other : own, 8);
        key_snapshot(key, i == 1 ? other : own, i == 3 ? 9 : 8);
        buf_clear(&a);
        assert_int_equal(snapshot_record_encode(&a, &s, NULL), 0);
        assert_int_equal(snapshot_record_decode_at(&s_back, key, buf_view(&a), NULL),
                         i == 0 ? 0 : -ERR_CORRUPT);
        if (i == 0)
            snapshot_record_release(&s_back);
    }
    for (int i = 0; i < 3; i++) { /* tombstones: its own, the sweeper's, another one's */
        struct snapshot_record gone = {.deleted = true,
                                       .name = i == 1   ? NULL
                                               : i == 2 ? (char *)"other"
                                                        : v.name};
        key_snapshot(key, own, 9);
        buf_clear(&a);
        assert_int_equal(snapshot_record_encode(&a, &gone, NULL), 0);
        assert_int_equal(snapshot_record_decode_at(&s_back, key, buf_view(&a), NULL),
                         i < 2 ? 0 : -ERR_CORRUPT);
        if (i < 2)
            snapshot_record_release(&s_back);
    }
    volume_record_release(&v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_volume),   cmocka_unit_test(test_refused),
        cmocka_unit_test(test_snapshot), cmocka_unit_test(test_node_and_pool),
        cmocka_unit_test(test_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
