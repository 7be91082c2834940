/* Publishing: one node at a time, an epoch each, fencing when the writer did not close. */
#include "tests/support/test.h"

#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_test.h"

static const uint64_t GIB = UINT64_C(1) << 30;

POOL_TEST_SETUP(2)

static struct volume_info create(struct pool_fixture *f) {
    struct err e;
    struct volume_info info;
    ok(catalog_volume_create(&f->catalog, &(struct volume_create){.name = "v", .size_bytes = GIB},
                             &info, &e),
       &e);
    ok(catalog_node_register(&f->catalog, "node-a", "1", &e), &e);
    ok(catalog_node_register(&f->catalog, "node-b", "1", &e), &e);
    return info;
}

static uint64_t publish(struct pool_fixture *f, const char *id, const char *node, bool steal) {
    struct err e;
    struct volume_info v;
    ok(catalog_volume_publish(&f->catalog, id, node, false, steal, &v, &e), &e);
    assert_string_equal(v.record.node, node);
    uint64_t epoch = v.record.publish_epoch;
    volume_info_release(&v);
    return epoch;
}

static struct volume_record record(struct pool_fixture *f, const char *id) {
    struct err e;
    struct volume_record r;
    ok(volume_record_by_id(&f->catalog, id, &r, &e), &e);
    return r;
}

static void nodes_and_epochs(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f), v;
    assert_int_equal(catalog_volume_publish(c, "x", "node-a", false, false, &v, &e),
                     -ERR_NOT_FOUND);
    assert_int_equal(catalog_volume_publish(c, a.id, "node-x", false, false, &v, &e),
                     -ERR_NOT_FOUND);
    assert_non_null(strstr(e.text, "node-x"));
    assert_int_equal(catalog_volume_publish(c, a.id, "", false, false, &v, &e), -ERR_INVALID);

    uint64_t before = pool_fixture_requests(f);
    assert_int_equal(publish(f, a.id, "node-a", false), 1);
    assert_int_equal(pool_fixture_requests(f) - before, 8);
    before = pool_fixture_requests(f);
    assert_int_equal(publish(f, a.id, "node-a", false), 1);
    assert_int_equal(pool_fixture_requests(f) - before, 4);
    assert_int_equal(catalog_volume_publish(c, a.id, "node-a", true, false, &v, &e), -ERR_EXISTS);
    assert_int_equal(catalog_volume_publish(c, a.id, "node-b", false, false, &v, &e), -ERR_IN_USE);
    assert_non_null(strstr(e.text, "node-a"));
    assert_int_equal(catalog_volume_delete(c, a.id, false, &e), -ERR_IN_USE);
    assert_int_equal(publish(f, a.id, "node-b", true), 2); /* stolen */
    ok(catalog_volume_unpublish(c, a.id, "node-a", &e), &e);
    struct volume_record r = record(f, a.id);
    assert_string_equal(r.node, "node-b"); /* not its business any more */
    volume_record_release(&r);
    ok(catalog_volume_delete(c, a.id, true, &e), &e); /* by force */
    ok(catalog_volume_unpublish(c, a.id, "node-b", &e), &e);
    volume_info_release(&a);
}

static void test_nodes_and_epochs(void **state) {
    pool_fixture_run(*state, nodes_and_epochs, *state);
}

static void closed_or_not(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f);

    /* Closed at the record's publish epoch: nothing to fence. */
    assert_int_equal(publish(f, a.id, "node-a", false), 1);
    pool_fixture_write(f, &a.record.key, 1, 3, true);
    uint64_t before = pool_fixture_requests(f);
    ok(catalog_volume_unpublish(c, a.id, "node-a", &e), &e);
    assert_int_equal(pool_fixture_requests(f) - before, 6);
    struct volume_record r = record(f, a.id);
    assert_int_equal(r.publish_epoch, 1);
    assert_string_equal(r.node, "");
    volume_record_release(&r);

    /* A writer that is still there: fenced, its tail kept. */
    assert_int_equal(publish(f, a.id, "node-b", false), 2);
    pool_fixture_write(f, &a.record.key, 2, 4, false);
    ok(catalog_volume_unpublish(c, a.id, "node-b", &e), &e);
    r = record(f, a.id);
    assert_int_equal(r.publish_epoch, 3);
    assert_int_equal(r.state, VOLUME_READY);
    assert_string_equal(r.node, "");
    volume_record_release(&r);
    struct manifest m;
    ok(manifest_newest(f->store, &a.record.key, &m, &e), &e);
    assert_true(m.closed);
    assert_int_equal(epoch_publish(m.epoch), 3);
    uint64_t segments = 0;
    for (size_t i = 0; i < m.root.tail_count; i++)
        segments += m.root.tail[i].count;
    assert_int_equal(segments, 7);
    manifest_release(&m);

    /* The old writer's epoch opens nothing any more. */
    struct takeover t;
    assert_int_equal(volume_takeover(f->env, f->store, &a.record.key, 2, NULL, false, &t, &e),
                     -ERR_FENCED);
    assert_int_equal(publish(f, a.id, "node-a", false), 4);
    volume_info_release(&a);
}

static void test_closed_or_not(void **state) {
    pool_fixture_run(*state, closed_or_not, *state);
}

/* A controller that died in mid-fencing: whoever comes next finishes it. */
static void half_fenced(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct volume_info a = create(f);
    for (int who = 0; who < 3; who++) {
        uint64_t epoch = publish(f, a.id, "node-a", false);
        pool_fixture_write(f, &a.record.key, (uint32_t)epoch, 1, false);
        struct volume_record r = record(f, a.id);
        r.state = VOLUME_FENCING;
        ok(volume_record_next_epoch(&r, &e), &e);
        ok(volume_record_advance(&f->catalog, &r, &e), &e);
        volume_record_release(&r);
        if (who == 0)
            assert_int_equal(publish(f, a.id, "node-b", false), epoch + 2);
        else if (who == 1)
            ok(catalog_volume_unpublish(&f->catalog, a.id, "node-a", &e), &e);
        else
            ok(catalog_volume_delete(&f->catalog, a.id, false, &e), &e);
        if (who == 0)
            ok(catalog_volume_unpublish(&f->catalog, a.id, NULL, &e), &e);
        if (who < 2) {
            r = record(f, a.id);
            assert_string_equal(r.node, "");
            assert_int_equal(r.state, VOLUME_READY);
            volume_record_release(&r);
        }
    }
    volume_info_release(&a);
}

static void test_half_fenced(void **state) {
    pool_fixture_run(*state, half_fenced, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_nodes_and_epochs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_closed_or_not, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_fenced, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
