/* The end of a volume: what is deleted when, and what never is. */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/volume/destroy.h"
#include "tests/support/pool_fixture.h"

static struct pool_fixture fixture;
static struct volume_key key_v, key_c;

static int setup(void **state) {
    pool_fixture_init(&fixture, 6);
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&key_v, ID_VOLUME, hash, 1);
    name_hash(hash, "c");
    id_format_key(&key_c, ID_VOLUME, hash, 1);
    *state = &fixture;
    return 0;
}

static int teardown(void **state) {
    pool_fixture_release(*state);
    return 0;
}

static void put_first(struct pool_fixture *f, const struct volume_key *v) {
    struct err e;
    struct manifest m = {.number = 1, .size_bytes = 4096, .block_size = 4096, .closed = true};
    root_init(&m.root, v);
    ok(manifest_put(f->store, v, &m, &e), &e);
    manifest_release(&m);
}

static size_t segments(struct pool_fixture *f, const struct volume_key *v) {
    char prefix[KEY_MAX];
    key_log_prefix(prefix, v);
    size_t count = 0;
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        count += strncmp(key, prefix, strlen(prefix)) == 0 && body.len != SEGMENT_FENCE_SIZE;
    return count;
}

static struct commit_key snapshot_key(uint64_t n) {
    struct commit_key k = {0};
    char hash[33];
    name_hash(hash, "s");
    key_snapshot(k.key, hash, n);
    return k;
}

static struct volume_collected collect(struct pool_fixture *f, const struct volume_key *v) {
    struct err e;
    struct volume_collected done;
    ok(volume_collect_deleted(f->env, f->store, v, &done, &e), &e);
    return done;
}

static void never_was(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct manifest m;
    struct volume_collected done;
    assert_int_equal(volume_collect_deleted(f->env, f->store, &key_v, &done, &e), -ERR_NOT_FOUND);
    ok(volume_destroy(f->env, f->store, &key_v, 7, &e), &e);
    ok(manifest_newest(f->store, &key_v, &m, &e), &e);
    assert_true(m.deleted);
    assert_int_equal(m.number, 1);
    manifest_release(&m);
    assert_int_equal(pool_fixture_count(f, ""), 1);
    ok(volume_destroy(f->env, f->store, &key_v, 7, &e), &e);
    assert_false(collect(f, &key_v).waiting);
    assert_int_equal(pool_fixture_count(f, ""), 1);
    struct takeover t;
    assert_int_equal(volume_takeover(f->env, f->store, &key_v, 9, NULL, false, &t, &e),
                     -ERR_NOT_FOUND);
}

static void test_never_was(void **state) {
    pool_fixture_run(*state, never_was, *state);
}

static void pinned(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    put_first(f, &key_v);
    pool_fixture_write(f, &key_v, 1, 3, true);
    struct commit_key commit = snapshot_key(1);
    struct random_id pin, claim;
    struct pin_root root;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &pin, &e), &e);
    ok(pin_cut(f->env, f->store, &key_v, &pin, &commit, &root, &e), &e);
    pin_root_release(&root);
    pool_fixture_write(f, &key_v, 1, 4, true); /* after the snapshot */
    commit = snapshot_key(2);
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &claim, &e), &e);

    ok(volume_destroy(f->env, f->store, &key_v, 1, &e), &e); /* also above the record's epoch */
    assert_true(collect(f, &key_v).waiting);
    assert_int_equal(segments(f, &key_v), 7); /* a claim without a root: nothing at all */
    assert_int_equal(pin_cut(f->env, f->store, &key_v, &claim, &commit, &root, &e), -ERR_NOT_FOUND);
    ok(pin_release_claim(f->store, &key_v, &claim, &e), &e);
    struct volume_collected done = collect(f, &key_v);
    assert_true(done.waiting);
    assert_int_equal(segments(f, &key_v), 3);

    ok(pin_release(f->store, &key_v, &pin, &e), &e);
    uint64_t before = pool_fixture_count(f, "/manifest/");
    done = collect(f, &key_v);
    assert_false(done.waiting);
    assert_int_equal(done.objects_deleted, 3);
    assert_int_equal(segments(f, &key_v), 0);
    assert_int_equal(pool_fixture_count(f, "/manifest/"), before); /* nothing to condemn anew */
    assert_int_equal(pool_fixture_count(f, "/log/"), 3);           /* fences stay */
    assert_int_equal(collect(f, &key_v).objects_deleted, 0);
}

static void test_pinned(void **state) {
    pool_fixture_run(*state, pinned, *state);
}

/* A zombie's objects appear after everything was collected; map and moved objects too. */
static void zombies(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    put_first(f, &key_v);
    pool_fixture_write(f, &key_v, 1, 2, true);
    ok(volume_destroy(f->env, f->store, &key_v, 2, &e), &e);
    collect(f, &key_v);
    assert_int_equal(segments(f, &key_v), 0);
    struct random_id id = {{1}};
    char key[KEY_MAX];
    key_map(key, &key_v, &id);
    memory_store_replace(f->memory, key, view_of_str("part"));
    key_moved(key, &key_v, &id);
    memory_store_replace(f->memory, key, view_of_str("moved"));
    key_log(key, &key_v, 1000);
    memory_store_replace(f->memory, key, view_of_str("segment"));
    char foreign[KEY_MAX];
    key_volume_prefix(foreign, &key_v);
    strcat(foreign, "notes.txt");
    memory_store_replace(f->memory, foreign, view_of_str("not ours"));
    assert_int_equal(collect(f, &key_v).objects_deleted, 3 + 2); /* and two manifests */
    assert_int_equal(segments(f, &key_v), 0);
    assert_int_equal(pool_fixture_count(f, "/map/") + pool_fixture_count(f, "/moved/"), 0);
    assert_int_equal(pool_fixture_count(f, "notes.txt"), 1);
}

static void test_zombies(void **state) {
    pool_fixture_run(*state, zombies, *state);
}

/* More ranges than a manifest may condemn: several rounds. */
static void long_lists(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    put_first(f, &key_v);
    for (uint64_t i = 0; i < ROOT_LIST_MAX + 500; i++) {
        char key[KEY_MAX];
        key_log(key, &key_v, 100000 + 2 * i);
        memory_store_replace(f->memory, key, view_of_str("segment"));
    }
    ok(volume_destroy(f->env, f->store, &key_v, 1, &e), &e);
    struct volume_collected done = collect(f, &key_v);
    assert_false(done.waiting);
    assert_int_equal(segments(f, &key_v), 0);
    assert_int_equal(pool_fixture_count(f, "/manifest/"), 2);
}

static void test_long_lists(void **state) {
    pool_fixture_run(*state, long_lists, *state);
}

/* A clone's pin in its source goes only when the clone itself has no pin any more. */
static void held_pins(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    put_first(f, &key_v);
    pool_fixture_write(f, &key_v, 1, 2, true);
    struct commit_key commit = {.is_clone = true}, snapshot = snapshot_key(1);
    key_manifest(commit.key, &key_c, 1);
    struct random_id held, own;
    struct pin_root root;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &held, &e), &e);
    ok(pin_cut(f->env, f->store, &key_v, &held, &commit, &root, &e), &e);
    struct manifest m = {.number = 1, .size_bytes = 4096, .block_size = 4096, .closed = true};
    ok(root_rebase(&m.root, &root.root, &key_c, &e), &e);
    pin_root_release(&root);
    m.held_pins = NEW(struct held_pin);
    m.held_pins[0] = (struct held_pin){.volume = key_v, .pin = held};
    m.held_pin_count = 1;
    ok(manifest_put(f->store, &key_c, &m, &e), &e);
    manifest_release(&m);
    ok(pin_claim_new(f->env, f->store, &key_c, &snapshot, &own, &e), &e);
    ok(pin_cut(f->env, f->store, &key_c, &own, &snapshot, &root, &e), &e);
    pin_root_release(&root);

    ok(volume_destroy(f->env, f->store, &key_v, 2, &e), &e);
    ok(volume_destroy(f->env, f->store, &key_c, 1, &e), &e);
    assert_true(collect(f, &key_c).waiting);
    assert_true(collect(f, &key_v).waiting);
    assert_int_equal(segments(f, &key_v), 2); /* the snapshot of the clone needs them */
    ok(pin_release(f->store, &key_c, &own, &e), &e);
    assert_false(collect(f, &key_c).waiting);
    assert_int_equal(pool_fixture_count(f, "/pins/"), 0);
    assert_false(collect(f, &key_v).waiting);
    assert_int_equal(segments(f, &key_v), 0);
}

static void test_held_pins(void **state) {
    pool_fixture_run(*state, held_pins, *state);
}

/* What a pinned root's run needs: index, part and the objects that its entries name. */
static void runs(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct random_id index_id = {{1}}, part_id = {{2}}, moved_id = {{3}}, other_id = {{4}};
    struct run_part part = {.ref = {.kind = OBJ_MAP, .id = part_id},
                            .page_count = 1,
                            .last_sector = 7,
                            .entries = 1,
                            .sectors = 8};
    struct run_usage usage[] = {{.ref = {.kind = OBJ_LOG, .seq = 5}, .bytes = 100},
                                {.ref = {.kind = OBJ_MOVED, .id = moved_id}, .bytes = 100}};
    struct run_index x = {.volumes = &key_v,
                          .volume_count = 1,
                          .parts = &part,
                          .part_count = 1,
                          .usage = usage,
                          .usage_count = 2,
                          .entry_count = 1,
                          .nonce = {{9}}};
    CLEANUP_BUF struct buf body = {0};
    ok(run_index_encode(&body, &x, &e), &e);
    char key[KEY_MAX];
    key_map(key, &key_v, &index_id);
    memory_store_replace(f->memory, key, buf_view(&body));
    key_map(key, &key_v, &part_id);
    memory_store_replace(f->memory, key, view_of_str("part"));
    key_map(key, &key_v, &other_id);
    memory_store_replace(f->memory, key, view_of_str("other"));
    key_moved(key, &key_v, &moved_id);
    memory_store_replace(f->memory, key, view_of_str("moved"));
    for (uint64_t seq = 4; seq <= 6; seq++) {
        key_log(key, &key_v, seq);
        memory_store_replace(f->memory, key, view_of_str("segment"));
    }
    struct manifest m = {.number = 1, .size_bytes = 4096, .block_size = 4096, .closed = true};
    root_init(&m.root, &key_v);
    m.root.next_seq = 50;
    m.root.runs = NEW(struct root_run);
    m.root.runs[0] = (struct root_run){
        .index = {.kind = OBJ_MAP, .id = index_id}, .age = 50, .entry_count = 1, .size = 100};
    m.root.run_count = 1;
    ok(manifest_put(f->store, &key_v, &m, &e), &e);
    manifest_release(&m);

    struct commit_key commit = snapshot_key(1);
    struct random_id pin;
    struct pin_root root;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &pin, &e), &e);
    ok(pin_cut(f->env, f->store, &key_v, &pin, &commit, &root, &e), &e);
    pin_root_release(&root);
    ok(volume_destroy(f->env, f->store, &key_v, 1, &e), &e);
    assert_int_equal(collect(f, &key_v).objects_deleted, 3 + 1); /* 4, 6, other; a manifest */
    assert_int_equal(segments(f, &key_v), 1);
    assert_int_equal(pool_fixture_count(f, "/map/"), 2);
    assert_int_equal(pool_fixture_count(f, "/moved/"), 1);
    ok(pin_release(f->store, &key_v, &pin, &e), &e);
    assert_int_equal(collect(f, &key_v).objects_deleted, 4);
}

static void test_runs(void **state) {
    pool_fixture_run(*state, runs, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_never_was, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pinned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_zombies, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_lists, setup, teardown),
        cmocka_unit_test_setup_teardown(test_held_pins, setup, teardown),
        cmocka_unit_test_setup_teardown(test_runs, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
