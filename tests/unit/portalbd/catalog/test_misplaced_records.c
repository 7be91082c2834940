/* Records under another's key, as a backup that was restored wrongly leaves them, with good
 * checksums: every command says so and does nothing, to this one or to the other. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/sweep.h"
#include "tests/support/pool_test.h"

POOL_TEST_SETUP(11)

enum { SIZE = 1024 * 1024 };

struct story {
    struct pool_fixture *f;
    char a[ID_MAX], b[ID_MAX];   /* volumes */
    char as[ID_MAX], bs[ID_MAX]; /* a snapshot of each */
};

static void tell(struct story *s, struct pool_fixture *f) {
    struct catalog *c = &f->catalog;
    struct err e;
    struct volume_info v;
    struct snapshot_info i;
    s->f = f;
    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    ok(catalog_node_register(c, "node-b", "1", &e), &e);
    for (int k = 0; k < 2; k++) {
        struct volume_create req = {.name = k ? "b" : "a", .size_bytes = SIZE};
        ok(catalog_volume_create(c, &req, &v, &e), &e);
        memcpy(k ? s->b : s->a, v.id, ID_MAX);
        pool_fixture_write(f, &v.record.key, 0, 3, true);
        ok(catalog_snapshot_create(c, k ? "b@s" : "a@s", v.id, &i, &e), &e);
        memcpy(k ? s->bs : s->as, i.id, ID_MAX);
        snapshot_info_release(&i);
        volume_info_release(&v);
    }
}

/* Everything that is in the store. */
static void snap(struct pool_fixture *f, struct buf *ret) {
    const char *key;
    struct view body;
    buf_clear(ret);
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++) {
        buf_append(ret, key, strlen(key) + 1);
        buf_append(ret, body.data, body.len);
    }
}

/* What lies under `from` is what lies under `to`, too. */
static void copy(struct pool_fixture *f, const char *from, const char *to, struct buf *ret_before) {
    struct view body;
    CLEANUP_BUF struct buf bytes = {0};
    assert_true(memory_store_find(f->memory, to, &body));
    buf_append(ret_before, body.data, body.len);
    assert_true(memory_store_find(f->memory, from, &body));
    buf_append(&bytes, body.data, body.len);
    memory_store_replace(f->memory, to, buf_view(&bytes));
}

static void expect(int rc, const struct err *e, const char *key) {
    assert_int_equal(rc, -ERR_CORRUPT);
    assert_non_null(strstr(e->text, key));
    assert_non_null(strstr(e->text, "it is another"));
}

/* Passes that are far enough apart to sweep whatever nothing seems to name. */
static void housekeeping(struct story *s, const char *key) {
    struct background b;
    struct background_result r;
    struct err e;
    background_init(&b, &s->f->catalog);
    for (int i = 0; i < 3; i++) {
        ok(background_pass(&b, &r, &e), &e);
        assert_int_equal(r.failures, 1);
        expect(r.first_failure.code, &r.first_failure, key);
        assert_int_equal(r.volumes_finished + r.pins_swept + r.objects_deleted, 0);
        fiber_sleep_us(s->f->env, 2 * SWEEP_INTERVAL_US);
    }
    background_release(&b);
}

/* The volume's newest record is not its own. */
static void all_of_volume(struct story *s, const char *key) {
    struct catalog fresh, *c = &fresh; /* that has not met it */
    struct err e, damage = {0};
    struct volume_info v;
    struct volume_list l;
    struct snapshot_info i;
    struct volume_maintained m;
    bool needs_node;
    catalog_init(c, s->f->env, s->f->store, "pool");
    expect(catalog_volume_delete(c, s->a, false, &e), &e, key);
    expect(catalog_volume_delete(c, s->a, true, &e), &e, key);
    expect(catalog_volume_get(c, s->a, &v, &e), &e, key);
    expect(catalog_volume_find(c, "a", &v, &e), &e, key);
    expect(catalog_volume_publish(c, s->a, "node-a", false, true, &v, &e), &e, key);
    expect(catalog_volume_unpublish(c, s->a, "", &e), &e, key);
    expect(catalog_volume_expand(c, s->a, 2 * SIZE, 0, &v, &needs_node, &e), &e, key);
    expect(catalog_volume_maintain(c, s->a, &m, &e), &e, key);
    expect(catalog_snapshot_restore(c, s->as, s->a, &v, &e), &e, key);
    struct volume_create again = {.name = "a", .size_bytes = SIZE};
    expect(catalog_volume_create(c, &again, &v, &e), &e, key);
    struct volume_create clone = {.name = "clone", .source = s->a};
    expect(catalog_volume_create(c, &clone, &v, &e), &e, key);
    expect(catalog_snapshot_create(c, "a@new", s->a, &i, &e), &e, key);
    expect(catalog_volume_list(c, NULL, 0, &l, NULL, &e), &e, key);
    ok(catalog_volume_list(c, NULL, 0, &l, &damage, &e), &e);
    expect(damage.code, &damage, key);
    assert_int_equal(l.count, 1);
    assert_string_equal(l.items[0].id, s->b);
    volume_list_release(&l);
    housekeeping(s, key);
}

static void all_of_snapshot(struct story *s, const char *key) {
    struct catalog *c = &s->f->catalog;
    struct err e, damage = {0};
    struct volume_info v;
    struct snapshot_info i;
    struct snapshot_list l;
    expect(catalog_snapshot_delete(c, s->as, &e), &e, key);
    expect(catalog_snapshot_get(c, s->as, &i, &e), &e, key);
    expect(catalog_snapshot_find(c, "a@s", &i, &e), &e, key);
    expect(catalog_snapshot_create(c, "a@s", s->a, &i, &e), &e, key);
    expect(catalog_snapshot_restore(c, s->as, s->a, &v, &e), &e, key);
    struct volume_create clone = {.name = "clone", .source = s->as};
    expect(catalog_volume_create(c, &clone, &v, &e), &e, key);
    expect(catalog_snapshot_list(c, NULL, NULL, 0, &l, NULL, &e), &e, key);
    ok(catalog_snapshot_list(c, NULL, NULL, 0, &l, &damage, &e), &e);
    expect(damage.code, &damage, key);
    assert_int_equal(l.count, 1);
    assert_string_equal(l.items[0].id, s->bs);
    snapshot_list_release(&l);
    housekeeping(s, key);
}

/* Puts what lies under `from` under `to`, lets all commands run, and puts it back: the pool is as
 * it was. */
static void try(struct story *s, void (*all)(struct story *s, const char *key), const char *from,
                const char *to) {
    CLEANUP_BUF struct buf before = {0}, after = {0}, own = {0};
    snap(s->f, &before);
    copy(s->f, from, to, &own);
    all(s, to);
    memory_store_replace(s->f->memory, to, buf_view(&own));
    snap(s->f, &after);
    assert_true(view_equal(buf_view(&before), buf_view(&after)));
}

/* Record n of a name. */
static void key_of(char ret[KEY_MAX], bool snapshot, const char *name, uint64_t n) {
    char hash[33];
    name_hash(hash, name);
    (snapshot ? key_snapshot : key_record)(ret, hash, n);
}

static void volumes(void *arg) {
    struct story s;
    struct err e;
    char a[KEY_MAX], b[KEY_MAX];
    tell(&s, arg);
    key_of(a, false, "a", 1);
    key_of(b, false, "b", 1);
    try(&s, all_of_volume, b, a);

    /* The other's says deleted: ours does not. */
    struct volume_info v;
    struct volume_create gone = {.name = "gone", .size_bytes = SIZE};
    ok(catalog_volume_create(&s.f->catalog, &gone, &v, &e), &e);
    ok(catalog_volume_delete(&s.f->catalog, v.id, false, &e), &e);
    volume_info_release(&v);
    key_of(b, false, "gone", 2);
    try(&s, all_of_volume, b, a);
}

static void snapshots(void *arg) {
    struct story s;
    struct err e;
    char a[KEY_MAX], b[KEY_MAX];
    struct snapshot_info i;
    tell(&s, arg);
    key_of(a, true, "a@s", 1);
    key_of(b, true, "b@s", 1);
    try(&s, all_of_snapshot, b, a);

    ok(catalog_snapshot_create(&s.f->catalog, "gone", s.b, &i, &e), &e);
    ok(catalog_snapshot_delete(&s.f->catalog, i.id, &e), &e);
    snapshot_info_release(&i);
    key_of(b, true, "gone", 2);
    try(&s, all_of_snapshot, b, a);
}

static void all_of_node(struct story *s, const char *key) {
    struct catalog *c = &s->f->catalog;
    struct err e;
    struct node_record r;
    struct node_list l;
    struct volume_info v;
    expect(catalog_node_get(c, "node-a", &r, &e), &e, key);
    expect(catalog_node_register(c, "node-a", "2", &e), &e, key);
    expect(catalog_node_delete(c, "node-a", &e), &e, key);
    expect(catalog_node_list(c, &l, &e), &e, key);
    expect(catalog_volume_publish(c, s->a, "node-a", false, false, &v, &e), &e, key);
}

static void nodes(void *arg) {
    struct story s;
    char a[KEY_MAX], b[KEY_MAX];
    tell(&s, arg);
    key_node(a, "node-a", 1);
    key_node(b, "node-b", 1);
    try(&s, all_of_node, b, a);
}

static void test_volumes(void **state) {
    pool_fixture_run(*state, volumes, *state);
}

static void test_snapshots(void **state) {
    pool_fixture_run(*state, snapshots, *state);
}

static void test_nodes(void **state) {
    pool_fixture_run(*state, nodes, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_volumes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_snapshots, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nodes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
