/* Housekeeping: deletions that died, ids that were passed by, old records, what is left alone. */
#include "tests/support/test.h"

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_test.h"

static const uint64_t GIB = UINT64_C(1) << 30;

POOL_TEST_SETUP(9)

static struct volume_info create(struct pool_fixture *f, const char *name) {
    struct err e;
    struct volume_info v;
    ok(catalog_volume_create(&f->catalog, &(struct volume_create){.name = name, .size_bytes = GIB},
                             &v, &e),
       &e);
    return v;
}

static struct background_result pass(struct background *b) {
    struct err e;
    struct background_result r;
    ok(background_pass(b, &r, &e), &e);
    if (r.failures > 0)
        fail_msg("%zu failures: %s", r.failures, r.first_failure.text);
    return r;
}

/* The record says deleted, nothing else was done; the name went on to another volume since. */
static void died(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct background b;
    background_init(&b, &f->catalog);
    struct volume_info a = create(f, "a"), kept = create(f, "kept");
    pool_fixture_write(f, &a.record.key, 0, 3, false);
    pool_fixture_write(f, &kept.record.key, 0, 2, false);
    struct volume_key old = a.record.key;
    a.record.state = VOLUME_DELETED;
    ok(volume_record_next_epoch(&a.record, &e), &e);
    ok(volume_record_advance(&f->catalog, &a.record, &e), &e);
    volume_info_release(&a);
    a = create(f, "a");
    assert_false(volume_keys_equal(&a.record.key, &old));
    pool_fixture_write(f, &a.record.key, 0, 4, true);

    struct background_result r = pass(&b);
    assert_int_equal(r.volumes, 3);
    assert_int_equal(r.volumes_finished, 1);
    assert_int_equal(r.volumes_waiting, 0);
    struct manifest m;
    ok(manifest_newest(f->store, &old, &m, &e), &e);
    assert_true(m.deleted);
    manifest_release(&m);
    ok(manifest_newest(f->store, &kept.record.key, &m, &e), &e);
    assert_false(m.deleted || m.closed); /* its writer was not disturbed */
    manifest_release(&m);
    char log[KEY_MAX];
    key_log_prefix(log, &a.record.key);
    assert_int_equal(pool_fixture_count(f, log), 5);

    uint64_t before = pool_fixture_requests(f);
    r = pass(&b);
    assert_int_equal(r.volumes_finished, 0);
    assert_int_equal(r.objects_deleted, 0);
    /* Each volume 1, each living one 3 more, the end of the list and three kinds of records 1. */
    assert_int_equal(pool_fixture_requests(f) - before, 3 * 1 + 2 * 3 + 1 + 3);
    background_release(&b);
    volume_info_release(&a);
    volume_info_release(&kept);
}

static void test_died(void **state) {
    pool_fixture_run(*state, died, *state);
}

/* What a zombie writes into a deleted volume is found again, later. */
static void zombies(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct background b;
    background_init(&b, &f->catalog);
    struct volume_info a = create(f, "a");
    ok(catalog_volume_delete(&f->catalog, a.id, false, &e), &e);
    pass(&b);
    char key[KEY_MAX];
    key_log(key, &a.record.key, 500);
    memory_store_replace(f->memory, key, view_of_str("segment"));
    size_t deleted = 0;
    for (int i = 0; i < 40; i++)
        deleted += pass(&b).objects_deleted;
    assert_true(deleted >= 1);
    assert_int_equal(pool_fixture_count(f, key), 0);
    background_release(&b);
    volume_info_release(&a);
}

static void test_zombies(void **state) {
    pool_fixture_run(*state, zombies, *state);
}

static void records_and_strangers(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct background b;
    background_init(&b, &f->catalog);
    struct volume_info a = create(f, "a"), v;
    for (uint64_t i = 1; i < NUMBERED_KEEP + 20; i++) {
        bool needs_node;
        ok(catalog_volume_expand(&f->catalog, a.id, GIB + i * 4096, 0, &v, &needs_node, &e), &e);
        volume_info_release(&v);
    }
    const char *strangers[] = {"volumes/notes.txt", "volumes/lost/found", "volumes/pv-x/manifest/1",
                               "records/notes.txt",
                               "volumes/pv-00000000000000000000000000000000-1/log/x"};
    for (size_t i = 0; i < ARRAY_LEN(strangers); i++)
        memory_store_replace(f->memory, strangers[i], view_of_str("x"));
    struct background_result r = pass(&b);
    assert_int_equal(r.records_pruned, 20);
    assert_int_equal(r.volumes, 2);
    for (size_t i = 0; i < ARRAY_LEN(strangers); i++)
        assert_int_equal(pool_fixture_count(f, strangers[i]), 1);
    ok(catalog_volume_get(&f->catalog, a.id, &v, &e), &e);
    assert_int_equal(v.size_bytes, GIB + 4096 * (NUMBERED_KEEP + 19));
    volume_info_release(&v);

    /* A damaged record stops the work on its volume only. */
    struct volume_info c = create(f, "c");
    char folder[KEY_MAX], key[KEY_MAX], hash[33];
    name_hash(hash, "a");
    key_records_prefix(folder, hash);
    numbered_key(key, folder, a.record.number + NUMBERED_KEEP + 19);
    memory_store_replace(f->memory, key, view_of_str("rubbish"));
    ok(background_pass(&b, &r, &e), &e);
    assert_int_equal(r.failures, 1);
    assert_int_equal(r.first_failure.code, -ERR_CORRUPT);
    assert_int_equal(r.volumes, 3);
    background_release(&b);
    volume_info_release(&a);
    volume_info_release(&c);
}

static void test_records_and_strangers(void **state) {
    pool_fixture_run(*state, records_and_strangers, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_died, setup, teardown),
        cmocka_unit_test_setup_teardown(test_zombies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_records_and_strangers, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
