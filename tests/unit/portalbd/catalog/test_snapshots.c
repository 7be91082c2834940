/* Snapshots: cut, find, list, restore into a new volume, delete; what they keep alive, and what
 * that costs. */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_test.h"

static const uint64_t GIB = UINT64_C(1) << 30;

POOL_TEST_SETUP(3)

static struct volume_info create(struct pool_fixture *f, const char *name, const char *source) {
    struct err e;
    struct volume_info info;
    struct volume_create req = {.name = name, .size_bytes = source ? 0 : GIB, .source = source};
    ok(catalog_volume_create(&f->catalog, &req, &info, &e), &e);
    return info;
}

static struct snapshot_info cut(struct pool_fixture *f, const char *name, const char *source) {
    struct err e;
    struct snapshot_info info;
    ok(catalog_snapshot_create(&f->catalog, name, source, &info, &e), &e);
    return info;
}

static size_t root_segments(struct pool_fixture *f, const struct snapshot_info *s) {
    struct err e;
    struct pin_root p;
    ok(pin_root_get(f->store, &s->record.source, &s->record.pin, &p, &e), &e);
    size_t count = 0;
    for (size_t i = 0; i < p.root.tail_count; i++)
        count += p.root.tail[i].count;
    pin_root_release(&p);
    return count;
}

static void cut_and_find(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", NULL), b = create(f, "b", NULL);
    pool_fixture_write(f, &a.record.key, 0, 3, true);
    pool_fixture_write(f, &a.record.key, 0, 4, false); /* open, behind a fence */
    uint64_t before = pool_fixture_requests(f);
    struct snapshot_info s = cut(f, "s", a.id), t;
    assert_int_equal(pool_fixture_requests(f) - before, 9);
    assert_int_equal(s.record.size_bytes, GIB);
    assert_string_equal(s.record.source_name, "a");
    assert_string_equal(s.source_id, a.id);
    assert_int_equal(root_segments(f, &s), 7);

    before = pool_fixture_requests(f);
    t = cut(f, "s", a.id);
    assert_int_equal(pool_fixture_requests(f) - before, 2);
    assert_string_equal(s.id, t.id);
    snapshot_info_release(&t);
    assert_int_equal(catalog_snapshot_create(c, "s", b.id, &t, &e), -ERR_EXISTS);
    assert_int_equal(catalog_snapshot_create(c, "", b.id, &t, &e), -ERR_INVALID);
    assert_int_equal(catalog_snapshot_create(c, "t", "x", &t, &e), -ERR_NOT_FOUND);
    ok(catalog_snapshot_get(c, s.id, &t, &e), &e);
    snapshot_info_release(&t);
    ok(catalog_snapshot_find(c, "s", &t, &e), &e);
    snapshot_info_release(&t);
    assert_int_equal(catalog_snapshot_get(c, a.id, &t, &e), -ERR_NOT_FOUND);

    before = pool_fixture_requests(f);
    ok(catalog_snapshot_delete(c, s.id, &e), &e);
    assert_int_equal(pool_fixture_requests(f) - before, 6);
    assert_int_equal(catalog_snapshot_get(c, s.id, &t, &e), -ERR_NOT_FOUND);
    assert_int_equal(pool_fixture_count(f, "/pins/"), 0);
    ok(catalog_snapshot_delete(c, s.id, &e), &e);
    ok(catalog_snapshot_delete(c, "rubbish", &e), &e);

    /* The name is free again, the id is not. Another controller has not met the volume. */
    catalog_init(c, f->env, f->store, "pool");
    before = pool_fixture_requests(f);
    t = cut(f, "s", b.id);
    assert_int_equal(pool_fixture_requests(f) - before, 12); /* there is a tombstone to read, too */
    assert_string_equal(t.record.source_name, "b");
    assert_string_not_equal(s.id, t.id);
    snapshot_info_release(&s);
    snapshot_info_release(&t);
    volume_info_release(&a);
    volume_info_release(&b);
}

static void test_cut_and_find(void **state) {
    pool_fixture_run(*state, cut_and_find, *state);
}

static void lists(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info a = create(f, "a", NULL), b = create(f, "b", NULL);
    for (int i = 0; i < 40; i++) {
        char name[16];
        snprintf(name, sizeof name, "s%d", i);
        struct snapshot_info s = cut(f, name, i % 4 == 0 ? b.id : a.id);
        if (i >= 36)
            ok(catalog_snapshot_delete(c, s.id, &e), &e);
        snapshot_info_release(&s);
    }
    const struct {
        const char *source;
        size_t count;
    } cases[] = {{NULL, 36}, {"", 36}, {a.id, 27}, {b.id, 9}, {"x", 0}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t seen = 0;
        char token[CATALOG_TOKEN_MAX] = "";
        do {
            struct snapshot_list l;
            ok(catalog_snapshot_list(c, cases[i].source, token, 5, &l, NULL, &e), &e);
            assert_true(l.count <= 5);
            seen += l.count;
            memcpy(token, l.next_token, sizeof token);
            snapshot_list_release(&l);
        } while (token[0] != '\0');
        assert_int_equal(seen, cases[i].count);
    }
    volume_info_release(&a);
    volume_info_release(&b);
}

static void test_lists(void **state) {
    pool_fixture_run(*state, lists, *state);
}

static struct background_result pass(struct pool_fixture *f, struct background *b) {
    struct err e;
    struct background_result r;
    ok(background_pass(b, &r, &e), &e);
    if (r.failures > 0)
        fail_msg("%zu failures: %s", r.failures, r.first_failure.text);
    (void)f;
    return r;
}

/* volume -> snapshot -> clone -> snapshot of the clone -> clone: everything but the last is deleted
 * in turn, then that too; the segments live exactly as long as somebody needs them. */
static void chain(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct err e;
    struct background b;
    background_init(&b, c);
    struct volume_info v = create(f, "v", NULL);
    pool_fixture_write(f, &v.record.key, 0, 3, true);
    struct snapshot_info s = cut(f, "s", v.id);
    uint64_t before = pool_fixture_requests(f);
    struct volume_info w = create(f, "w", s.id);
    assert_int_equal(pool_fixture_requests(f) - before, 9);
    assert_int_equal(w.size_bytes, GIB);
    assert_int_equal(w.depth, 1);
    pool_fixture_write(f, &w.record.key, 0, 2, true);
    struct snapshot_info s2 = cut(f, "s2", w.id);
    struct volume_info x = create(f, "x", s2.id);
    assert_int_equal(x.depth, 2);

    struct volume_info gone;
    struct volume_create late = {.name = "late", .source = s.id};
    ok(catalog_snapshot_delete(c, s.id, &e), &e);
    assert_int_equal(catalog_volume_create(c, &late, &gone, &e), -ERR_NOT_FOUND);
    size_t objects = pool_fixture_count(f, "");
    assert_int_equal(catalog_volume_create(c, &late, &gone, &e), -ERR_NOT_FOUND);
    assert_int_equal(pool_fixture_count(f, ""), objects); /* a retry leaves nothing more */
    ok(catalog_volume_delete(c, v.id, false, &e), &e);
    ok(catalog_volume_delete(c, w.id, false, &e), &e);
    ok(catalog_snapshot_delete(c, s2.id, &e), &e);
    struct background_result r = pass(f, &b);
    assert_int_equal(r.volumes_waiting, 2);
    char log_v[KEY_MAX], log_w[KEY_MAX];
    key_log_prefix(log_v, &v.record.key);
    key_log_prefix(log_w, &w.record.key);
    assert_int_equal(pool_fixture_count(f, log_v), 3 + 2);
    assert_int_equal(pool_fixture_count(f, log_w), 2 + 2);

    ok(catalog_volume_delete(c, x.id, false, &e), &e);
    pass(f, &b);
    pass(f, &b);
    r = pass(f, &b);
    assert_int_equal(r.volumes_waiting, 0);
    assert_int_equal(pool_fixture_count(f, log_v), 2);
    assert_int_equal(pool_fixture_count(f, log_w), 2);
    assert_int_equal(pool_fixture_count(f, "/pins/"), 0);
    background_release(&b);
    snapshot_info_release(&s);
    snapshot_info_release(&s2);
    volume_info_release(&v);
    volume_info_release(&w);
    volume_info_release(&x);
}

static void test_chain(void **state) {
    pool_fixture_run(*state, chain, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_cut_and_find, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lists, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chain, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
