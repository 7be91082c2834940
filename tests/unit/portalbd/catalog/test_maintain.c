/* Maintenance of a volume that nobody has: what nothing needs is gone afterwards, and nothing else;
 * it dies at every request, and is overtaken by a publish, a restore, a deletion. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <unistd.h>

#include "common/log.h"
#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/catalog/fsck.h"
#include "tests/support/engine_writer.h"

enum { SIZE = 1024 * 1024, STEPS_MAX = 200 };

struct stage {
    struct pool_fixture f;
    char volume[ID_MAX], snapshot[ID_MAX];
    struct volume_key key;
    struct volume_maintained done;
    int rc;
    struct err err;
    bool ended;
};

static void write_volume(struct stage *st, int writes, bool close) {
    struct err e;
    struct volume_info i;
    ok(catalog_volume_publish(&st->f.catalog, st->volume, "node-a", false, false, &i, &e), &e);
    st->key = i.record.key;
    struct volume *v = engine_open(&st->f, &st->key, i.record.publish_epoch);
    engine_write(&st->f, v, SIZE, writes);
    engine_end(&st->f, v, close);
    volume_info_release(&i);
    ok(catalog_volume_unpublish(&st->f.catalog, st->volume, "node-a", &e), &e);
}

static void cut(struct stage *st, const char *name) {
    struct err e;
    struct snapshot_info s;
    ok(catalog_snapshot_create(&st->f.catalog, name, st->volume, &s, &e), &e);
    memcpy(st->snapshot, s.id, sizeof st->snapshot);
    snapshot_info_release(&s);
}

/* Garbage that a snapshot, deleted meanwhile, has held, and of a writer that died. */
static void set_up(void *arg) {
    struct stage *st = arg;
    struct catalog *c = &st->f.catalog;
    struct err e;
    struct volume_info i;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    ok(catalog_pool_create(c, &options, &pool, &e), &e);
    pool_record_release(&pool);
    ok(catalog_node_register(c, "node-a", "1", &e), &e);
    ok(catalog_volume_create(c, &(struct volume_create){.name = "v", .size_bytes = SIZE}, &i, &e),
       &e);
    memcpy(st->volume, i.id, sizeof st->volume);
    volume_info_release(&i);
    write_volume(st, 40, true);
    cut(st, "v@gone");
    write_volume(st, 80, true);
    ok(catalog_snapshot_delete(c, st->snapshot, &e), &e);
    cut(st, "v@stays");
    write_volume(st, 40, false);
}

static struct fsck_result check(struct stage *st) {
    struct err e;
    struct fsck k = {.catalog = &st->f.catalog};
    ok(fsck_pool(&k, &e), &e);
    assert_int_equal(k.result.damaged, 0);
    assert_int_equal(k.result.unsettled, 0);
    return k.result;
}

static void run_maintain(void *arg) {
    struct stage *st = arg;
    st->ended = false;
    st->rc = catalog_volume_maintain(&st->f.catalog, st->volume, &st->done, &st->err);
    st->ended = true;
}

static void at_rest(struct stage *st) {
    struct err e;
    struct volume_record r;
    bool closed;
    ok(volume_record_by_id(&st->f.catalog, st->volume, &r, &e), &e);
    assert_int_equal(r.state, VOLUME_READY);
    assert_string_equal(r.node, "");
    ok(catalog_is_closed(&st->f.catalog, &r, &closed, &e), &e);
    assert_true(closed);
    volume_record_release(&r);
}

static void frees(void *arg) {
    struct stage *st = arg;
    struct err e;
    struct volume_info i;
    struct volume_maintained none;
    set_up(st);
    assert_true(check(st).garbage > 0);
    run_maintain(st);
    ok(st->rc, &st->err);
    assert_true(st->done.objects_deleted > 0 && st->done.bytes_deleted > 0);
    assert_int_equal(check(st).garbage, 0);
    at_rest(st);
    for (int round = 0; round < 2; round++) /* manifests of the first one go with the second */
        ok(catalog_volume_maintain(&st->f.catalog, st->volume, &none, &e), &e);
    assert_int_equal(none.objects_deleted, 0); /* it has come to rest */

    ok(catalog_volume_publish(&st->f.catalog, st->volume, "node-a", false, false, &i, &e), &e);
    volume_info_release(&i);
    assert_int_equal(catalog_volume_maintain(&st->f.catalog, st->volume, &none, &e), -ERR_IN_USE);
    assert_non_null(strstr(e.text, "node-a"));
    assert_int_equal(catalog_volume_maintain(&st->f.catalog, "pv-x", &none, &e), -ERR_NOT_FOUND);
}

static void test_frees(void **state) {
    (void)state;
    static struct stage st;
    st = (struct stage){0};
    pool_fixture_init(&st.f, 1);
    pool_fixture_run(&st.f, frees, &st);
    pool_fixture_release(&st.f);
}

/* --- misplaced --- */

/* The newest index of the root of the newest manifest, or of the volume's one pin. */
static void newest_index(struct stage *st, const struct volume_key *v, bool of_pin,
                         char ret[KEY_MAX]) {
    struct err e;
    struct manifest m = {0};
    struct pin_list pins = {0};
    struct pin_root p = {0};
    if (of_pin) {
        ok(pin_list_once(st->f.store, v, &pins, &e), &e);
        assert_int_equal(pins.count, 1);
        ok(pin_root_get(st->f.store, v, &pins.items[0].pin, &p, &e), &e);
    } else {
        ok(manifest_newest(st->f.store, v, &m, &e), &e);
    }
    const struct root *root = of_pin ? &p.root : &m.root;
    assert_true(root->run_count > 0 && root->runs[0].index.volume == 0);
    key_map(ret, v, &root->runs[0].index.id);
    pin_list_release(&pins);
    pin_root_release(&p);
    manifest_release(&m);
}

static void newest_manifest(struct stage *st, const struct volume_key *v, char ret[KEY_MAX]) {
    uint64_t n;
    struct err e;
    ok(manifest_newest_number(st->f.store, v, &n, &e), &e);
    key_manifest(ret, v, n);
}

static void swap(struct stage *st, const char *a, const char *b) {
    struct view body;
    CLEANUP_BUF struct buf of_a = {0}, of_b = {0};
    assert_true(memory_store_find(st->f.memory, a, &body));
    buf_append(&of_a, body.data, body.len);
    assert_true(memory_store_find(st->f.memory, b, &body));
    buf_append(&of_b, body.data, body.len);
    memory_store_replace(st->f.memory, a, buf_view(&of_b));
    memory_store_replace(st->f.memory, b, buf_view(&of_a));
}

/* Somebody puts the index of another volume where ours was, and back: nothing was believed, and
 * nothing is gone. The second time the two differ in nothing but the volume that they are about. */
static void misplaced(void *arg) {
    struct stage *st = arg;
    struct catalog *c = &st->f.catalog;
    struct err e;
    struct volume_info i;
    struct volume_maintained done;
    struct background b;
    struct background_result result;
    struct volume_key shell;
    char own[KEY_MAX], other[KEY_MAX], pinned[KEY_MAX];
    set_up(st);
    run_maintain(st);
    ok(st->rc, &st->err);
    struct volume_key first = st->key;
    char first_id[ID_MAX];
    memcpy(first_id, st->volume, ID_MAX);
    newest_index(st, &first, false, own);

    static const char *const names[] = {"shell", "another"};
    for (size_t k = 0; k < ARRAY_LEN(names); k++) { /* the first lives on in its snapshot only */
        struct volume_create req = {.name = names[k], .size_bytes = SIZE};
        ok(catalog_volume_create(c, &req, &i, &e), &e);
        memcpy(st->volume, i.id, ID_MAX);
        volume_info_release(&i);
        write_volume(st, 1, true);
        if (k > 0)
            break;
        cut(st, "shell@last");
        shell = st->key;
        newest_index(st, &shell, true, pinned);
        ok(catalog_volume_delete(c, st->volume, false, &e), &e);
    }
    newest_index(st, &st->key, false, other);
    check(st);

    swap(st, own, other);
    assert_int_equal(catalog_volume_maintain(c, first_id, &done, &e), -ERR_CORRUPT);
    assert_non_null(strstr(e.text, own));
    assert_int_equal(catalog_volume_maintain(c, st->volume, &done, &e), -ERR_CORRUPT);
    swap(st, own, other);
    check(st);

    char first_key[KEY_MAX], other_key[KEY_MAX];
    newest_manifest(st, &first, first_key);
    newest_manifest(st, &st->key, other_key);
    swap(st, first_key, other_key);
    assert_int_equal(catalog_volume_maintain(c, first_id, &done, &e), -ERR_CORRUPT);
    assert_non_null(strstr(e.text, first_key));
    swap(st, first_key, other_key);
    check(st);

    char stays[KEY_MAX],
        wrong[KEY_MAX]; /* the pin of v@stays under another name, and the shell's */
    struct pin_list pins;
    struct pin_root root;
    struct random_id shell_pin;
    ok(pin_list_once(st->f.store, &shell, &pins, &e), &e);
    shell_pin = pins.items[0].pin;
    pin_list_release(&pins);
    ok(pin_list_once(st->f.store, &first, &pins, &e), &e);
    key_pin_root(stays, &first, &pins.items[0].pin);
    key_pin_root(wrong, &shell, &shell_pin);
    swap(st, stays, wrong);
    assert_int_equal(pin_root_get(st->f.store, &shell, &shell_pin, &root, &e), -ERR_CORRUPT);
    assert_int_equal(catalog_volume_maintain(c, first_id, &done, &e), -ERR_CORRUPT);
    pin_list_release(&pins);
    swap(st, stays, wrong);
    check(st);

    swap(st, pinned, other);
    background_init(&b, c);
    ok(background_pass(&b, &result, &e), &e);
    assert_true(result.failures > 0);
    assert_non_null(strstr(result.first_failure.text, pinned));
    background_release(&b);
    swap(st, pinned, other);
    check(st);
}

static void test_misplaced(void **state) {
    (void)state;
    static struct stage st;
    st = (struct stage){0};
    pool_fixture_init(&st.f, 1);
    pool_fixture_run(&st.f, misplaced, &st);
    pool_fixture_release(&st.f);
}

/* --- deaths --- */

static void afterwards(void *arg) {
    struct stage *st = arg;
    check(st);
    run_maintain(st);
    ok(st->rc, &st->err);
    assert_int_equal(check(st).garbage, 0);
    at_rest(st);
}

static bool die_at(uint64_t n, enum fault_kind how) {
    static struct stage st;
    st = (struct stage){0};
    pool_fixture_init(&st.f, n);
    pool_fixture_run(&st.f, set_up, &st);
    struct fault_rule rule = {.kind = how, .nth = n, .times = 1};
    objstore_fault_add(st.f.faults, &rule);
    fiber_start(st.f.env, run_maintain, &st);
    virtual_env_run(&st.f.venv);
    bool through = st.ended;
    if (!through) { /* the engine below it goes with it */
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
    assert_true(n > 20);
}

/* --- overtaken --- */

enum overtaker { PUBLISH, RESTORE, DELETE, MAINTAIN, OVERTAKERS };

struct race {
    struct stage st;
    enum overtaker who;
    int rc;
    struct err err;
};

static void overtake(void *arg) {
    struct race *r = arg;
    struct catalog *c = &r->st.f.catalog;
    struct volume_info i;
    struct volume_maintained m;
    fiber_sleep_us(r->st.f.env, env_random_u64(r->st.f.env) % 60000);
    switch (r->who) {
    case PUBLISH:
        r->rc = catalog_volume_publish(c, r->st.volume, "node-a", false, false, &i, &r->err);
        if (r->rc < 0)
            return;
        struct volume *v = engine_open(&r->st.f, &r->st.key, i.record.publish_epoch);
        engine_write(&r->st.f, v, SIZE, 20); /* nobody fences this one */
        engine_end(&r->st.f, v, true);
        volume_info_release(&i);
        r->rc = catalog_volume_unpublish(c, r->st.volume, "node-a", &r->err);
        return;
    case RESTORE:
        r->rc = catalog_snapshot_restore(c, r->st.snapshot, r->st.volume, &i, &r->err);
        if (r->rc == 0)
            volume_info_release(&i);
        return;
    case DELETE:
        r->rc = catalog_volume_delete(c, r->st.volume, false, &r->err);
        return;
    default:
        r->rc = catalog_volume_maintain(c, r->st.volume, &m, &r->err);
    }
}

static void after_race(void *arg) {
    struct race *r = arg;
    struct background b;
    struct background_result result;
    struct err e;
    ok(r->rc, &r->err);
    check(&r->st);
    background_init(&b, &r->st.f.catalog);
    ok(background_pass(&b, &result, &e), &e);
    background_release(&b);
    if (r->who == DELETE) {
        assert_true(r->st.rc == 0 || r->st.rc == -ERR_NOT_FOUND);
    } else {
        assert_true(r->st.rc == 0 || r->st.rc == -ERR_IN_USE || r->st.rc == -ERR_BUSY);
        run_maintain(&r->st);
        ok(r->st.rc, &r->st.err);
    }
    assert_int_equal(check(&r->st).garbage, 0);
}

static void test_overtaken(void **state) {
    (void)state;
    static struct race r;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        r = (struct race){.who = (enum overtaker)(seed % OVERTAKERS)};
        pool_fixture_init(&r.st.f, seed);
        pool_fixture_run(&r.st.f, set_up, &r.st);
        pool_fixture_jitter(&r.st.f);
        fiber_start(r.st.f.env, run_maintain, &r.st);
        fiber_start(r.st.f.env, overtake, &r);
        virtual_env_run(&r.st.f.venv);
        pool_fixture_run(&r.st.f, after_race, &r);
        pool_fixture_release(&r.st.f);
    }
}

/* --- several at the same time --- */

enum { CROWD = 3, CROWDS = 40 };

struct crowd {
    struct stage st;
    int rc[CROWD], next;
    struct err err[CROWD];
};

static void one_of_crowd(void *arg) {
    struct crowd *c = arg;
    struct volume_maintained m;
    int i = c->next++;
    c->rc[i] = catalog_volume_maintain(&c->st.f.catalog, c->st.volume, &m, &c->err[i]);
}

static size_t fences(struct crowd *c) {
    const char *key;
    struct view body;
    size_t count = 0;
    for (size_t i = 0; memory_store_at(c->st.f.memory, i, &key, &body); i++)
        count += strstr(key, "/log/") && body.len == SEGMENT_FENCE_SIZE;
    return count;
}

static void after_crowd(void *arg) {
    struct crowd *c = arg;
    at_rest(&c->st);
    run_maintain(&c->st);
    ok(c->st.rc, &c->st.err);
    assert_int_equal(check(&c->st).garbage, 0);
}

/* All come through, they do not fence each other without end (a fence stays for ever), and nobody
 * reads of an error. */
static void test_crowd(void **state) {
    (void)state;
    static struct crowd c;
    char line[256];
    int log[2];
    size_t left = 0;
    assert_int_equal(pipe2(log, O_CLOEXEC | O_NONBLOCK), 0);
    log_init(&(struct log_config){.level = LOG_LEVEL_INFO, .fd = log[1]});
    for (uint64_t seed = 1; seed <= CROWDS; seed++) {
        size_t count = seed % 2 == 0 ? CROWD : 2;
        c = (struct crowd){.next = 0};
        pool_fixture_init(&c.st.f, seed);
        pool_fixture_run(&c.st.f, set_up, &c.st);
        pool_fixture_jitter(&c.st.f);
        size_t before = fences(&c);
        for (size_t i = 0; i < count; i++)
            fiber_start(c.st.f.env, one_of_crowd, &c);
        virtual_env_run(&c.st.f.venv);
        for (size_t i = 0; i < count; i++)
            ok(c.rc[i], &c.err[i]);
        left += fences(&c) - before - count; /* each leaves one when it is alone */
        pool_fixture_run(&c.st.f, after_crowd, &c);
        pool_fixture_release(&c.st.f);
    }
    log_init(&(struct log_config){.level = LOG_LEVEL_INFO});
    assert_int_equal(read(log[0], line, sizeof line), -1);
    close(log[0]);
    close(log[1]);

    assert_true(left <= (size_t)CROWDS * CROWD);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frees),  cmocka_unit_test(test_misplaced),
        cmocka_unit_test(test_deaths), cmocka_unit_test(test_overtaken),
        cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
