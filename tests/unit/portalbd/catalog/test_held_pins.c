/* The pin that a clone holds in its source: given up once nothing of the clone needs anything of
 * the source, neither its root nor a snapshot or clone of it (protocol I13); then the source's
 * garbage can go. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

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

/* --- what it frees in others --- */

static void expect_garbage(struct stage *st, bool any) {
    struct err e;
    struct fsck k = {.catalog = &st->f.catalog};
    ok(fsck_pool(&k, &e), &e);
    assert_int_equal(k.result.damaged, 0);
    assert_int_equal(k.result.garbage > 0, any);
}

/* source <- clone <- chained, where the middle and the last have come to need nothing of others:
 * one call for the last leaves no garbage in any, be they there or shells of deleted ones. */
static void frees_behind_it(struct stage *st, bool shells) {
    struct err e;
    struct volume_key ignored;
    set_up(st);
    create(st, "chained", st->clone, st->chained);
    const char *ids[] = {st->source, st->clone};
    for (size_t i = 0; i < ARRAY_LEN(ids); i++) {
        if (shells)
            ok(catalog_volume_delete(&st->f.catalog, ids[i], false, &e), &e);
        else
            write_volume(st, ids[i], SIZE, 0, &ignored);
        if (!shells)
            ok(maintain(st, ids[i]), &st->err);
    }
    expect_garbage(st, false); /* the pins need it */
    write_volume(st, st->chained, SIZE, 0, &ignored);
    ok(maintain(st, st->chained), &st->err);
    expect_garbage(st, false);
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(st->f.memory, i, &key, &body); i++)
        assert_true(!strstr(key, "/log/") || body.len == SEGMENT_FENCE_SIZE);
}

static void behind_live(void *arg) {
    frees_behind_it(arg, false);
}

static void behind_shells(void *arg) {
    frees_behind_it(arg, true);
}

static void test_frees_behind_it(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        run_stage(behind_live, seed);
        run_stage(behind_shells, seed);
    }
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

/* --- chains --- */

enum { CHAIN = 12, FLAT_DEPTH = 8 };

struct chain {
    struct stage st;
    char ids[CHAIN][ID_MAX];
    uint8_t *image;
};

static uint32_t depth_of(struct stage *st, const char *id) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_get(&st->f.catalog, id, &i, &e), &e);
    uint32_t depth = i.depth;
    volume_info_release(&i);
    return depth;
}

static uint8_t *content(struct stage *st, const char *id) {
    struct err e;
    struct volume_info i;
    uint8_t *image = xcalloc(1, SIZE);
    ok(catalog_volume_publish(&st->f.catalog, id, "node-a", true, false, &i, &e), &e);
    struct volume *v = engine_open(&st->f, &i.record.key, i.record.publish_epoch);
    engine_read(&st->f, v, 0, SIZE, image);
    engine_end(&st->f, v, true);
    volume_info_release(&i);
    ok(catalog_volume_unpublish(&st->f.catalog, id, "node-a", &e), &e);
    return image;
}

/* Each a clone of the one before with some writes of its own. */
static void chain(void *arg) {
    struct chain *c = arg;
    struct stage *st = &c->st;
    struct err e;
    struct volume_key key;
    set_up(st);
    memcpy(c->ids[0], st->clone, ID_MAX);
    for (size_t i = 1; i < CHAIN; i++) {
        char name[16];
        snprintf(name, sizeof name, "link-%zu", i);
        create(st, name, c->ids[i - 1], c->ids[i]);
        write_volume(st, c->ids[i], SIZE / 8, 3, &key);
        CLEANUP_FREE uint8_t *before = content(st, c->ids[i]);
        uint32_t depth = depth_of(st, c->ids[i]);
        assert_true(depth >= 1 && depth <= FLAT_DEPTH);
        ok(maintain(st, c->ids[i]), &st->err);
        assert_int_equal(depth_of(st, c->ids[i]), depth == FLAT_DEPTH ? 0 : depth);
        CLEANUP_FREE uint8_t *after = content(st, c->ids[i]);
        assert_memory_equal(before, after, SIZE);
    }
    check(st);
    /* The flat one outlives all that it came from, without any of their objects. */
    for (size_t i = 0; i < FLAT_DEPTH - 1; i++)
        ok(catalog_volume_delete(&st->f.catalog, c->ids[i], false, &e), &e);
    ok(catalog_volume_delete(&st->f.catalog, st->source, false, &e), &e);
    struct background b;
    struct background_result r;
    background_init(&b, &st->f.catalog);
    for (size_t i = 0; i < CHAIN; i++)
        ok(background_pass(&b, &r, &e), &e);
    background_release(&b);
    assert_int_equal(r.volumes_waiting, 0);
    check(st);
    CLEANUP_FREE uint8_t *still = content(st, c->ids[CHAIN - 1]);
    assert_non_null(still);
}

static void test_chain(void **state) {
    (void)state;
    static struct chain c;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        c = (struct chain){.st = {.rc = 0}};
        pool_fixture_init(&c.st.f, seed);
        pool_fixture_run(&c.st.f, chain, &c);
        pool_fixture_release(&c.st.f);
    }
}

/* It dies at every third request of the flattening, whose content is as before all the same. */
static void deep(void *arg) {
    struct chain *c = arg;
    struct stage *st = &c->st;
    struct volume_key key;
    set_up(st);
    memcpy(c->ids[0], st->clone, ID_MAX);
    for (size_t i = 1; i < FLAT_DEPTH; i++) {
        char name[16];
        snprintf(name, sizeof name, "link-%zu", i);
        create(st, name, c->ids[i - 1], c->ids[i]);
    }
    write_volume(st, c->ids[FLAT_DEPTH - 1], SIZE / 8, 3, &key);
    memcpy(st->clone, c->ids[FLAT_DEPTH - 1], ID_MAX);
}

static void flat(void *arg) {
    struct chain *c = arg;
    struct stage *st = &c->st;
    check(st);
    CLEANUP_FREE uint8_t *before = content(st, st->clone);
    ok(maintain(st, st->clone), &st->err);
    assert_int_equal(depth_of(st, st->clone), 0);
    CLEANUP_FREE uint8_t *after = content(st, st->clone);
    assert_memory_equal(before, after, SIZE);
    assert_memory_equal(after, c->image, SIZE);
    check(st);
}

static void remember(void *arg) {
    struct chain *c = arg;
    c->image = content(&c->st, c->st.clone);
}

static void test_chain_deaths(void **state) {
    (void)state;
    static struct chain c;
    uint64_t n = 1;
    for (bool through = false; !through; n += 3) {
        c = (struct chain){.st = {.rc = 0}};
        pool_fixture_init(&c.st.f, n);
        pool_fixture_run(&c.st.f, deep, &c);
        pool_fixture_run(&c.st.f, remember, &c);
        struct fault_rule rule = {
            .kind = n % 2 ? FAULT_HANG : FAULT_HANG_ANSWER, .nth = n, .times = 1};
        objstore_fault_add(c.st.f.faults, &rule);
        fiber_start(c.st.f.env, run_maintain, &c.st);
        virtual_env_run(&c.st.f.venv);
        through = c.st.ended;
        fiber_cancel_all(c.st.f.env);
        virtual_env_run(&c.st.f.venv);
        assert_true(c.st.ended);
        objstore_fault_clear(c.st.f.faults);
        pool_fixture_run(&c.st.f, flat, &c);
        free(c.image);
        pool_fixture_release(&c.st.f);
        assert_true(n < STEPS_MAX);
    }
    assert_true(n > 30);
}

/* --- a clone of a clone --- */

/* The root of a clone that is being made was read before the trim, and comes afterwards: its claim
 * alone says that it may still need the source. */
static void released_after_claim(void *arg) {
    struct stage *st = arg;
    struct err e;
    struct pin_root root = {.size_bytes = SIZE, .block_size = 4096};
    struct commit_key commit = {.is_clone = false};
    struct random_id pin;
    struct manifest m;
    set_up(st);
    CLEANUP_FREE uint8_t *before = content(st, st->clone);
    char hash[33];
    name_hash(hash, "of-the-clone");
    key_snapshot(commit.key, hash, 1);
    ok(pin_claim_new(st->f.env, st->f.store, &st->clone_key, &commit, &pin, &e), &e);
    ok(manifest_newest(st->f.store, &st->clone_key, &m, &e), &e);
    root_copy(&root.root, &m.root);
    manifest_release(&m);
    write_volume(st, st->clone, SIZE, 0, &st->clone_key); /* all is trimmed */
    is_held(st, true);
    ok(pin_root_put(st->f.env, st->f.store, &st->clone_key, &pin, &commit, &root, &e), &e);
    pin_root_release(&root);
    write_volume(st, st->source, SIZE, 0, &st->source_key);
    ok(maintain(st, st->source), &st->err);
    is_held(st, true); /* now the root says so, and finds all that it names */
    struct volume_config config = {
        .env = st->f.env, .store = st->f.store, .key = st->clone_key, .cache_size = 65536};
    struct volume *v;
    ok(volume_open_pin(&config, &pin, &v, &e), &e);
    static uint8_t after[SIZE];
    engine_read(&st->f, v, 0, SIZE, after);
    assert_memory_equal(before, after, SIZE);
    engine_end(&st->f, v, false);
    ok(pin_release(st->f.store, &st->clone_key, &pin, &e), &e);
    is_held(st, false);
}

static void test_released_after_claim(void **state) {
    (void)state;
    run_stage(released_after_claim, 1);
}

/* --- flattening what is not in a run yet --- */

static struct volume *publish_and_open(struct stage *st, const char *id, struct volume_key *ret) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_publish(&st->f.catalog, id, "node-a", true, false, &i, &e), &e);
    *ret = i.record.key;
    struct volume *v = engine_open(&st->f, ret, i.record.publish_epoch);
    volume_info_release(&i);
    return v;
}

/* The last clone is made of one that nobody closed: its root names segments behind all runs. */
static void deep_with_tail(struct chain *c) {
    struct stage *st = &c->st;
    struct err e;
    struct volume_key key;
    uint8_t data[4096];
    deep(c);
    struct volume *v = publish_and_open(st, st->clone, &key);
    for (size_t i = 0; i < 3; i++) {
        env_random(st->f.env, data, sizeof data);
        engine_put(&st->f, v, i * SIZE / 4, sizeof data, data);
        ok(volume_flush(v, &e), &e);
    }
    engine_end(&st->f, v, false);
    create(st, "tailed", st->clone, c->ids[FLAT_DEPTH]);
}

static size_t tail_of(struct stage *st) {
    struct err e;
    struct manifest m;
    ok(manifest_newest(st->f.store, &st->clone_key, &m, &e), &e);
    size_t count = m.root.tail_count;
    manifest_release(&m);
    return count;
}

/* One pass makes it flat, without a write that would bring a checkpoint; then there is rest. */
static void flat_with_tail(void *arg) {
    struct chain *c = arg;
    struct stage *st = &c->st;
    struct err e;
    size_t held;
    uint32_t depth;
    static uint8_t before[SIZE], after[SIZE];
    deep_with_tail(c);
    struct volume *v = publish_and_open(st, c->ids[FLAT_DEPTH], &st->clone_key);
    assert_true(tail_of(st) > 0);
    (void)pins(st, &held, &depth);
    assert_true(depth >= FLAT_DEPTH && held == 1);
    engine_read(&st->f, v, 0, SIZE, before);
    ok(volume_collect(v, &e), &e);
    (void)pins(st, &held, &depth);
    assert_int_equal(depth, 0);
    assert_int_equal(held, 0);
    assert_int_equal(tail_of(st), 0);
    uint64_t requests = pool_fixture_requests(&st->f);
    assert_int_equal(fiber_sleep_us(st->f.env, UINT64_C(3600) * 1000000), 0);
    assert_true(pool_fixture_requests(&st->f) - requests < 50); /* what one pass may still ask */
    requests = pool_fixture_requests(&st->f);
    assert_int_equal(fiber_sleep_us(st->f.env, UINT64_C(3600) * 1000000), 0);
    assert_int_equal(pool_fixture_requests(&st->f), requests);
    engine_read(&st->f, v, 0, SIZE, after);
    assert_memory_equal(before, after, SIZE);
    engine_end(&st->f, v, true);
    check(st);
}

static void test_tail(void **state) {
    (void)state;
    static struct chain c;
    c = (struct chain){.st = {.rc = 0}};
    pool_fixture_init(&c.st.f, 1);
    pool_fixture_run(&c.st.f, flat_with_tail, &c);
    pool_fixture_release(&c.st.f);
}

/* --- flattening under writes --- */

struct busy {
    struct chain c;
    struct volume *v;
    bool collected;
};

static void collect(void *arg) {
    struct busy *b = arg;
    struct err e;
    ok(volume_collect(b->v, &e), &e);
    b->collected = true;
}

static void write_until_collected(void *arg) {
    struct busy *b = arg;
    struct stage *st = &b->c.st;
    uint8_t data[4096];
    for (int i = 0; i < 60 || !b->collected; i++) {
        uint64_t off = env_random_u64(st->f.env) % (SIZE / sizeof data) * sizeof data;
        env_random(st->f.env, data, sizeof data);
        engine_put(&st->f, b->v, off, sizeof data, data);
        memcpy(b->c.image + off, data, sizeof data);
        fiber_sleep_us(st->f.env, 5000);
    }
}

static void busy_deep(void *arg) {
    struct busy *b = arg;
    deep(&b->c);
    remember(&b->c);
}

static void busy_start(void *arg) {
    struct busy *b = arg;
    struct err e;
    struct volume_info i;
    struct stage *st = &b->c.st;
    ok(catalog_volume_publish(&st->f.catalog, st->clone, "node-a", false, false, &i, &e), &e);
    b->v = engine_open(&st->f, &i.record.key, i.record.publish_epoch);
    volume_info_release(&i);
    fiber_start(st->f.env, collect, b);
    fiber_start(st->f.env, write_until_collected, b);
}

static void busy_end(void *arg) {
    struct busy *b = arg;
    struct stage *st = &b->c.st;
    struct err e;
    ok(volume_collect(b->v, &e), &e); /* the tail, which its open left in the memtable, too */
    engine_end(&st->f, b->v, true);
    ok(catalog_volume_unpublish(&st->f.catalog, st->clone, "node-a", &e), &e);
    ok(maintain(st, st->clone), &st->err);
    assert_int_equal(depth_of(st, st->clone), 0);
    CLEANUP_FREE uint8_t *after = content(st, st->clone);
    assert_memory_equal(after, b->c.image, SIZE);
    check(st);
    free(b->c.image);
}

static void test_busy(void **state) {
    (void)state;
    static struct busy b;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        b = (struct busy){.collected = false};
        struct pool_fixture *f = &b.c.st.f;
        pool_fixture_init(f, seed);
        pool_fixture_run(f, busy_deep, &b);
        struct fault_rule slow = {.kind = FAULT_DELAY, /* checkpoints come in between */
                                  .verbs = 1u << OBJ_GET,
                                  .key_part = b.c.st.source_key.text,
                                  .delay_us_min = 100 * 1000,
                                  .delay_us_max = 500 * 1000};
        objstore_fault_add(f->delays, &slow);
        pool_fixture_jitter(f);
        fiber_start(f->env, busy_start, &b);
        virtual_env_run(&f->venv);
        pool_fixture_run(f, busy_end, &b);
        pool_fixture_release(f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_released),
        cmocka_unit_test(test_frees_behind_it),
        cmocka_unit_test(test_deaths),
        cmocka_unit_test(test_chain),
        cmocka_unit_test(test_released_after_claim),
        cmocka_unit_test(test_chain_deaths),
        cmocka_unit_test(test_tail),
        cmocka_unit_test(test_busy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
