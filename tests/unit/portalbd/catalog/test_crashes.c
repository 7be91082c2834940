/* A controller that dies at every step of every call: the Nth request of a call is carried out or
 * not, its answer never comes, the process is gone. For N = 1, 2, ... until the call comes through:
 * another controller repeats the call and finishes it, and once everything is deleted and the
 * sweeper's time has passed, nothing is left that nobody needs. */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_fixture.h"

enum { STEPS_MAX = 100 };
static const uint64_t GIB = UINT64_C(1) << 30;

/* What the calls work on; made anew for each step. */
struct stage {
    struct pool_fixture f;
    char volume[ID_MAX]; /* "v": written to, published to node-a, not closed */
    struct volume_key volume_key;
    char snapshot[ID_MAX]; /* "s" of v */
    int rc;
    struct err err;
    bool ended;
    void (*call)(struct stage *st);
};

static void set_up(void *arg) {
    struct stage *st = arg;
    struct catalog *c = &st->f.catalog;
    struct err e;
    struct volume_info v;
    struct snapshot_info s;
    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    ok(catalog_node_register(c, "node-b", "1", &e), &e);
    ok(catalog_volume_create(c, &(struct volume_create){.name = "v", .size_bytes = GIB}, &v, &e),
       &e);
    memcpy(st->volume, v.id, sizeof st->volume);
    st->volume_key = v.record.key;
    volume_info_release(&v);
    ok(catalog_volume_publish(c, st->volume, "node-a", false, false, &v, &e), &e);
    volume_info_release(&v);
    pool_fixture_write(&st->f, &st->volume_key, 1, 3, true);
    ok(catalog_snapshot_create(c, "s", st->volume, &s, &e), &e);
    memcpy(st->snapshot, s.id, sizeof st->snapshot);
    snapshot_info_release(&s);
    pool_fixture_write(&st->f, &st->volume_key, 1, 2, false);
}

/* --- the calls --- */

static void create_from(struct stage *st, const char *source) {
    struct volume_create req = {.name = "w", .size_bytes = 2 * GIB, .source = source};
    struct volume_info v;
    st->rc = catalog_volume_create(&st->f.catalog, &req, &v, &st->err);
    if (st->rc == 0) {
        assert_int_equal(v.size_bytes, 2 * GIB);
        volume_info_release(&v);
    }
}
static void call_create(struct stage *st) {
    create_from(st, NULL);
}
static void call_clone_snapshot(struct stage *st) {
    create_from(st, st->snapshot);
}
static void call_clone_volume(struct stage *st) {
    create_from(st, st->volume);
}
static void call_snapshot(struct stage *st) {
    struct snapshot_info s;
    st->rc = catalog_snapshot_create(&st->f.catalog, "t", st->volume, &s, &st->err);
    if (st->rc == 0)
        snapshot_info_release(&s);
}
static void call_delete_snapshot(struct stage *st) {
    st->rc = catalog_snapshot_delete(&st->f.catalog, st->snapshot, &st->err);
}
static void call_delete_volume(struct stage *st) {
    st->rc = catalog_volume_delete(&st->f.catalog, st->volume, true, &st->err);
}
static void call_unpublish(struct stage *st) {
    st->rc = catalog_volume_unpublish(&st->f.catalog, st->volume, "node-a", &st->err);
}
static void call_steal(struct stage *st) {
    struct volume_info v;
    st->rc =
        catalog_volume_publish(&st->f.catalog, st->volume, "node-b", false, true, &v, &st->err);
    if (st->rc == 0)
        volume_info_release(&v);
}
static void call_expand(struct stage *st) {
    struct volume_info v;
    bool needs_node;
    st->rc =
        catalog_volume_expand(&st->f.catalog, st->volume, 2 * GIB, 0, &v, &needs_node, &st->err);
    if (st->rc == 0)
        volume_info_release(&v);
}
static void call_register(struct stage *st) {
    st->rc = catalog_node_register(&st->f.catalog, "node-c", "2", &st->err);
}
static void call_background(struct stage *st) {
    struct background b;
    struct background_result r;
    background_init(&b, &st->f.catalog);
    st->rc = background_pass(&b, &r, &st->err);
    background_release(&b);
}

static void run_call(void *arg) {
    struct stage *st = arg;
    st->ended = false;
    st->call(st);
    st->ended = true;
}

/* --- afterwards --- */

static void check_roots(struct stage *st) {
    struct err e;
    struct snapshot_list l;
    ok(catalog_snapshot_list(&st->f.catalog, NULL, NULL, 0, &l, NULL, &e), &e);
    for (size_t i = 0; i < l.count; i++) {
        struct pin_root p;
        struct view body;
        char key[KEY_MAX];
        ok(pin_root_get(st->f.store, &l.items[i].record.source, &l.items[i].record.pin, &p, &e),
           &e);
        assert_false(p.expired);
        for (size_t j = 0; j < p.root.tail_count; j++) {
            key_log(key, &p.root.volumes[p.root.tail[j].volume], p.root.tail[j].first);
            assert_true(memory_store_find(st->f.memory, key, &body));
        }
        pin_root_release(&p);
    }
    snapshot_list_release(&l);
}

static void clean_up(void *arg) {
    struct stage *st = arg;
    struct catalog *c = &st->f.catalog;
    struct err e;
    struct snapshot_list snapshots;
    struct volume_list volumes;
    check_roots(st);
    ok(catalog_snapshot_list(c, NULL, NULL, 0, &snapshots, NULL, &e), &e);
    for (size_t i = 0; i < snapshots.count; i++)
        ok(catalog_snapshot_delete(c, snapshots.items[i].id, &e), &e);
    ok(catalog_volume_list(c, NULL, 0, &volumes, NULL, &e), &e);
    for (size_t i = 0; i < volumes.count; i++)
        ok(catalog_volume_delete(c, volumes.items[i].id, true, &e), &e);
    snapshot_list_release(&snapshots);
    volume_list_release(&volumes);
    struct background b;
    background_init(&b, c);
    struct background_result r = {0};
    for (int i = 0; i < 5; i++) {
        ok(background_pass(&b, &r, &e), &e);
        if (r.failures > 0)
            fail_msg("%s", r.first_failure.text);
        fiber_sleep_us(st->f.env, SWEEP_INTERVAL_US);
    }
    assert_int_equal(r.volumes_waiting, 0);
    assert_int_equal(r.pins_suspected, 0);
    background_release(&b);
    assert_int_equal(pool_fixture_count(&st->f, ".claim"), 0);
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(st->f.memory, i, &key, &body); i++)
        if (strstr(key, "/log/") && body.len != SEGMENT_FENCE_SIZE)
            fail_msg("'%s' is left", key);
}

/* True when the call came through before request n. */
static bool die_at(void (*call)(struct stage *st), uint64_t n, enum fault_kind how, int repeats) {
    static struct stage st;
    st = (struct stage){.call = call};
    pool_fixture_init(&st.f, n);
    pool_fixture_run(&st.f, set_up, &st);
    for (int i = 0; i < repeats; i++) {
        struct fault_rule rule = {.kind = how, .nth = n, .times = 1};
        objstore_fault_add(st.f.faults, &rule);
        fiber_start(st.f.env, run_call, &st);
        virtual_env_run(&st.f.venv);
        if (st.ended)
            break;
        fiber_cancel_all(st.f.env);
        virtual_env_run(&st.f.venv);
        assert_true(st.ended);
        assert_int_equal(st.rc, -ERR_CANCELLED);
        objstore_fault_clear(st.f.faults);
    }
    bool through = st.rc == 0;
    if (st.rc < 0 && st.rc != -ERR_CANCELLED)
        fail_msg("request %llu: %s: %s", (unsigned long long)n, err_code_name(st.rc), st.err.text);
    objstore_fault_clear(st.f.faults);
    pool_fixture_run(&st.f, run_call, &st);
    if (st.rc < 0)
        fail_msg("repeated after request %llu: %s: %s", (unsigned long long)n, err_code_name(st.rc),
                 st.err.text);
    pool_fixture_run(&st.f, clean_up, &st);
    pool_fixture_release(&st.f);
    return through;
}

static void die_everywhere(void (*call)(struct stage *st)) {
    for (int repeats = 1; repeats <= 2; repeats++) {
        uint64_t n = 1;
        for (bool through = false; !through; n++) {
            assert_true(n < STEPS_MAX);
            (void)die_at(call, n, FAULT_HANG, repeats); /* not carried out */
            through = die_at(call, n, FAULT_HANG_ANSWER, repeats);
        }
        assert_true(n > 2); /* it did something that could be cut off */
    }
}

#define TEST_CALL(name)                                                                            \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        die_everywhere(call_##name);                                                               \
    }
TEST_CALL(create)
TEST_CALL(clone_snapshot)
TEST_CALL(clone_volume)
TEST_CALL(snapshot)
TEST_CALL(delete_snapshot)
TEST_CALL(delete_volume)
TEST_CALL(unpublish)
TEST_CALL(steal)
TEST_CALL(expand)
TEST_CALL(register)
TEST_CALL(background)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),          cmocka_unit_test(test_clone_snapshot),
        cmocka_unit_test(test_clone_volume),    cmocka_unit_test(test_snapshot),
        cmocka_unit_test(test_delete_snapshot), cmocka_unit_test(test_delete_volume),
        cmocka_unit_test(test_unpublish),       cmocka_unit_test(test_steal),
        cmocka_unit_test(test_expand),          cmocka_unit_test(test_register),
        cmocka_unit_test(test_background),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
