/* The pin that a clone holds in its source: given up once nothing of the clone needs anything of
 * the source, neither its root nor a snapshot or clone of it (protocol I13); then the source's
 * garbage can go. */
#include "tests/support/test.h"

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/catalog/fsck.h"
#include "tests/support/engine_writer.h"

enum { SIZE = 1024 * 1024, STEPS_MAX = 200 };

struct stage {
    struct pool_fixture f;
    char source[ID_MAX], clone[ID_MAX], snapshot[ID_MAX], chained[ID_MAX];
    struct volume_key source_key, clone_key;
    int rc;
    struct err err;
    bool ended;
};

static void ok(int rc, const struct err *e) {
    if (rc < 0)
        fail_msg("%s: %s", err_code_name(rc), e->text);
}

static void write_volume(struct stage *st, const char *id, uint64_t size_bytes, int writes,
                         struct volume_key *ret_key) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_publish(&st->f.catalog, id, "node-a", false, false, &i, &e), &e);
    *ret_key = i.record.key;
    struct volume *v = engine_open(&st->f, ret_key, i.record.publish_epoch);
    if (writes > 0)
        engine_write(&st->f, v, size_bytes, writes);
    else
        engine_trim(&st->f, v, size_bytes);
    engine_end(&st->f, v, true);
    volume_info_release(&i);
    ok(catalog_volume_unpublish(&st->f.catalog, id, "node-a", &e), &e);
}

static void create(struct stage *st, const char *name, const char *source, char ret[ID_MAX]) {
    struct err e;
    struct volume_info i;
    struct volume_create req = {.name = name, .size_bytes = SIZE, .source = source};
    ok(catalog_volume_create(&st->f.catalog, &req, &i, &e), &e);
    memcpy(ret, i.id, ID_MAX);
    volume_info_release(&i);
}

static void cut(struct stage *st, const char *name, const char *volume) {
    struct err e;
    struct snapshot_info s;
    ok(catalog_snapshot_create(&st->f.catalog, name, volume, &s, &e), &e);
    memcpy(st->snapshot, s.id, ID_MAX);
    snapshot_info_release(&s);
}

static void set_up(void *arg) {
    struct stage *st = arg;
    struct err e;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    ok(catalog_pool_create(&st->f.catalog, &options, &pool, &e), &e);
    pool_record_release(&pool);
    ok(catalog_node_register(&st->f.catalog, "node-a", "1", &e), &e);
    create(st, "source", NULL, st->source);
    write_volume(st, st->source, SIZE, 60, &st->source_key);
    create(st, "clone", st->source, st->clone);
    write_volume(st, st->clone, SIZE, 20, &st->clone_key);
}

static int maintain(struct stage *st, const char *id) {
    struct volume_maintained m;
    return catalog_volume_maintain(&st->f.catalog, id, &m, &st->err);
}

/* Pins in the source, and what the clone's newest manifest says of them. */
static size_t pins(struct stage *st, size_t *ret_held, uint32_t *ret_depth) {
    struct err e;
    struct pin_list l;
    struct manifest m;
    ok(pin_list_once(st->f.store, &st->source_key, &l, &e), &e);
    size_t count = l.count;
    pin_list_release(&l);
    ok(manifest_newest(st->f.store, &st->clone_key, &m, &e), &e);
    *ret_held = m.held_pin_count;
    *ret_depth = m.depth;
    manifest_release(&m);
    return count;
}

static void check(struct stage *st) {
    struct err e;
    struct fsck k = {.catalog = &st->f.catalog};
    ok(fsck_pool(&k, &e), &e);
    assert_int_equal(k.result.damaged, 0);
}

static void is_held(struct stage *st, bool held) {
    size_t in_manifest;
    uint32_t depth;
    ok(maintain(st, st->clone), &st->err);
    assert_int_equal(pins(st, &in_manifest, &depth), held);
    assert_int_equal(in_manifest, held);
    assert_int_equal(depth, held);
    check(st);
}

static void released(void *arg) {
    struct stage *st = arg;
    struct err e;
    set_up(st);
    is_held(st, true); /* its root needs it */
    cut(st, "clone@then", st->clone);
    create(st, "chained", st->snapshot, st->chained);
    write_volume(st, st->clone, SIZE, 0, &st->clone_key); /* all is trimmed */
    is_held(st, true);                                    /* a snapshot needs it, and a clone */
    ok(catalog_snapshot_delete(&st->f.catalog, st->snapshot, &e), &e);
    is_held(st, true); /* the clone's clone */
    ok(catalog_volume_delete(&st->f.catalog, st->chained, false, &e), &e);
    is_held(st, false);
    is_held(st, false);
    ok(catalog_volume_delete(&st->f.catalog, st->source, false, &e), &e);
    struct background b;
    struct background_result r;
    background_init(&b, &st->f.catalog);
    ok(background_pass(&b, &r, &e), &e);
    assert_int_equal(r.volumes_waiting, 0); /* no shell is left of the source */
    background_release(&b);
    check(st);
    write_volume(st, st->clone, SIZE, 20, &st->clone_key);
    check(st);
}

static void run_stage(void (*fn)(void *arg), uint64_t seed) {
    static struct stage st;
    st = (struct stage){0};
    pool_fixture_init(&st.f, seed);
    pool_fixture_run(&st.f, fn, &st);
    pool_fixture_release(&st.f);
}

static void test_released(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++)
        run_stage(released, seed);
}

/* --- deaths --- */

static void set_up_trimmed(void *arg) {
    struct stage *st = arg;
    set_up(st);
    write_volume(st, st->clone, SIZE, 0, &st->clone_key);
}

static void run_maintain(void *arg) {
    struct stage *st = arg;
    st->ended = false;
    st->rc = maintain(st, st->clone);
    st->ended = true;
}

static void afterwards(void *arg) {
    struct stage *st = arg;
    check(st);
    is_held(st, false);
}

static bool die_at(uint64_t n, enum fault_kind how) {
    static struct stage st;
    st = (struct stage){0};
    pool_fixture_init(&st.f, n);
    pool_fixture_run(&st.f, set_up_trimmed, &st);
    struct fault_rule rule = {.kind = how, .nth = n, .times = 1};
    objstore_fault_add(st.f.faults, &rule);
    fiber_start(st.f.env, run_maintain, &st);
    virtual_env_run(&st.f.venv);
    bool through = st.ended;
    if (!through) {
        fiber_cancel_all(st.f.env);
        virtual_env_run(&st.f.venv);
        assert_true(st.ended);
    }
    objstore_fault_clear(st.f.faults);
    pool_fixture_run(&st.f, afterwards, &st);
    pool_fixture_release(&st.f);
    return through;
}

static void test_deaths(void **state) {
    (void)state;
    uint64_t n = 1;
    for (bool through = false; !through; n++) {
        assert_true(n < STEPS_MAX);
        (void)die_at(n, FAULT_HANG);
        through = die_at(n, FAULT_HANG_ANSWER);
    }
    assert_true(n > 15);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released),
        cmocka_unit_test(test_deaths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
