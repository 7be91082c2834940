/* The sweeper: what it takes away, when, and what it leaves alone. */
#include "tests/support/test.h"

#include "portalbd/format/records.h"
#include "portalbd/volume/numbered.h"
#include "portalbd/volume/sweep.h"
#include "tests/support/pool_fixture.h"

static struct pool_fixture fixture;
static struct volume_key key_v, key_c;
static char snapshots[KEY_MAX];
static struct pin_sweeper sweeper;

static int setup(void **state) {
    pool_fixture_init(&fixture, 7);
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&key_v, ID_VOLUME, hash, 1);
    name_hash(hash, "c");
    id_format_key(&key_c, ID_VOLUME, hash, 1);
    name_hash(hash, "s");
    key_snapshots_prefix(snapshots, hash);
    sweeper = (struct pin_sweeper){0};
    *state = &fixture;
    return 0;
}

static int teardown(void **state) {
    pin_sweeper_release(&sweeper);
    pool_fixture_release(*state);
    return 0;
}

static void put_manifest(struct pool_fixture *f, const struct volume_key *v, uint64_t number,
                         const struct random_id *held) {
    struct err e;
    struct manifest m = {.number = number, .size_bytes = 4096, .block_size = 4096, .closed = true};
    root_init(&m.root, v);
    if (held) {
        m.held_pins = NEW(struct held_pin);
        m.held_pins[0] = (struct held_pin){.volume = key_v, .pin = *held};
        m.held_pin_count = 1;
    }
    ok(manifest_put(f->store, v, &m, &e), &e);
    manifest_release(&m);
}

static void put_first(struct pool_fixture *f, const struct volume_key *v,
                      const struct random_id *held) {
    put_manifest(f, v, 1, held);
}

/* A pin of v, with its claim and perhaps a root, for snapshot record n (0: for the clone). */
static struct random_id make_pin(struct pool_fixture *f, uint64_t n, bool with_root) {
    struct err e;
    struct commit_key commit = {.is_clone = n == 0};
    if (n == 0)
        key_manifest(commit.key, &key_c, 1);
    else
        numbered_key(commit.key, snapshots, n);
    struct random_id pin;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &pin, &e), &e);
    if (with_root) {
        struct pin_root root;
        ok(pin_cut(f->env, f->store, &key_v, &pin, &commit, &root, &e), &e);
        pin_root_release(&root);
    }
    return pin;
}

static void put_record(struct pool_fixture *f, uint64_t n, const struct random_id *pin) {
    struct err e;
    char hash[33];
    name_hash(hash, "s");
    struct snapshot_record r = {.deleted = !pin, .size_bytes = 4096, .block_size = 4096};
    r.name = (char *)"s";
    r.source_name = (char *)"v";
    r.fstype = (char *)"";
    r.source = key_v;
    if (pin)
        r.pin = *pin;
    id_format_key(&r.key, ID_SNAPSHOT, hash, n);
    CLEANUP_BUF struct buf body = {0};
    ok(snapshot_record_encode(&body, &r, &e), &e);
    ok(numbered_put(f->store, snapshots, n, buf_view(&body), &e), &e);
}

/* One round, and then enough time for the next. Returns how many pins were swept. */
static size_t sweep(struct pool_fixture *f) {
    struct err e;
    size_t swept = 0, suspected = 0;
    pin_sweeper_begin(&sweeper);
    ok(pin_sweep_volume(&sweeper, f->env, f->store, &key_v, &swept, &suspected, &e), &e);
    pin_sweeper_end(&sweeper);
    fiber_sleep_us(f->env, SWEEP_INTERVAL_US);
    return swept;
}

static bool is_there(struct pool_fixture *f, const struct random_id *pin, bool root) {
    char key[KEY_MAX];
    struct view body;
    root ? key_pin_root(key, &key_v, pin) : key_pin_claim(key, &key_v, pin);
    return memory_store_find(f->memory, key, &body);
}

static void dead_makers(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    put_first(f, &key_v, NULL);
    struct random_id early = make_pin(f, 1, false), late = make_pin(f, 2, true),
                     clone = make_pin(f, 0, true);
    size_t swept, suspected;
    pin_sweeper_begin(&sweeper);
    for (int i = 0; i < 3; i++) { /* again in the same round: not a second look */
        swept = suspected = 0;
        ok(pin_sweep_volume(&sweeper, f->env, f->store, &key_v, &swept, &suspected, &e), &e);
        assert_int_equal(swept, 0);
        assert_int_equal(suspected, 3);
    }
    pin_sweeper_end(&sweeper);
    fiber_sleep_us(f->env, SWEEP_INTERVAL_US - 1);
    pin_sweeper_begin(&sweeper);
    ok(pin_sweep_volume(&sweeper, f->env, f->store, &key_v, &swept, &suspected, &e), &e);
    pin_sweeper_end(&sweeper);
    assert_int_equal(swept, 0); /* too early */
    fiber_sleep_us(f->env, 2);
    assert_int_equal(sweep(f), 3);
    assert_false(is_there(f, &early, false));
    assert_true(is_there(f, &early, true)); /* expired, for ever */
    assert_false(is_there(f, &late, false) || is_there(f, &late, true));
    assert_false(is_there(f, &clone, false) || is_there(f, &clone, true));

    /* What the makers do when they wake up: nothing of it takes effect. */
    struct commit_key commit = {0};
    numbered_key(commit.key, snapshots, 1);
    struct pin_root root;
    assert_int_equal(pin_cut(f->env, f->store, &key_v, &early, &commit, &root, &e), -ERR_STALE);
    char key[KEY_MAX];
    numbered_key(key, snapshots, 2);
    assert_int_equal(objstore_put(f->store, key, view_of_str("late"), NULL, &e), -ERR_EXISTS);
    struct manifest m;
    ok(manifest_newest(f->store, &key_c, &m, &e), &e);
    assert_true(m.deleted);
    manifest_release(&m);
    assert_int_equal(sweep(f), 0);
    uint64_t before = pool_fixture_requests(f);
    assert_int_equal(sweep(f), 0);
    assert_int_equal(pool_fixture_requests(f) - before, 1); /* the expired one is remembered */
}

static void test_dead_makers(void **state) {
    pool_fixture_run(*state, dead_makers, *state);
}

static void the_living(void *arg) {
    struct pool_fixture *f = arg;
    put_first(f, &key_v, NULL);
    struct random_id snapshot = make_pin(f, 1, true), clone = make_pin(f, 0, true);
    put_record(f, 1, &snapshot);
    put_first(f, &key_c, &clone);
    for (int i = 0; i < 4; i++)
        assert_int_equal(sweep(f), 0);
    assert_true(is_there(f, &snapshot, false) && is_there(f, &snapshot, true));
    assert_true(is_there(f, &clone, false) && is_there(f, &clone, true));

    /* A deleter that died behind its tombstone; the clone's pin is its own business. */
    put_record(f, 2, NULL);
    sweep(f);
    assert_int_equal(sweep(f), 1);
    assert_false(is_there(f, &snapshot, false) || is_there(f, &snapshot, true));
    assert_true(is_there(f, &clone, false) && is_there(f, &clone, true));
}

static void test_the_living(void **state) {
    pool_fixture_run(*state, the_living, *state);
}

/* A deleter that died between claim and root; the name was used again since. */
static void passed_by(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    put_first(f, &key_v, NULL);
    struct random_id old = make_pin(f, 1, true);
    put_record(f, 1, &old);
    put_record(f, 2, NULL);
    struct random_id new = make_pin(f, 3, true);
    put_record(f, 3, &new);
    ok(pin_release_claim(f->store, &key_v, &old, &e), &e);
    sweep(f);
    assert_int_equal(sweep(f), 1);
    assert_false(is_there(f, &old, true));
    assert_true(is_there(f, &new, false) && is_there(f, &new, true));
}

static void test_passed_by(void **state) {
    pool_fixture_run(*state, passed_by, *state);
}

/* A clone gave its pin up; then the PUT of the root, or of the claim, takes effect once more. */
static void late_again(struct pool_fixture *f, bool is_root) {
    struct err e;
    put_first(f, &key_v, NULL);
    struct random_id pin = make_pin(f, 0, true);
    put_first(f, &key_c, &pin);
    assert_int_equal(sweep(f) + sweep(f), 0);
    char key[KEY_MAX];
    if (is_root)
        key_pin_root(key, &key_v, &pin);
    else
        key_pin_claim(key, &key_v, &pin);
    CLEANUP_BUF struct buf body = {0};
    ok(objstore_get(f->store, key, MANIFEST_SIZE_MAX, &body, &e), &e);
    ok(pin_release(f->store, &key_v, &pin, &e), &e);
    put_manifest(f, &key_c, 2, NULL);
    ok(objstore_put(f->store, key, buf_view(&body), NULL, &e), &e);
    assert_int_equal(sweep(f), 0); /* suspected */
    assert_int_equal(sweep(f), 1);
    assert_false(is_there(f, &pin, false) || (is_root && is_there(f, &pin, true)));
}

static void late_root(void *arg) {
    struct pool_fixture *f = arg;
    late_again(f, true);
}

static void late_claim(void *arg) {
    struct pool_fixture *f = arg;
    late_again(f, false);
}

static void test_late_root(void **state) {
    pool_fixture_run(*state, late_root, *state);
}

static void test_late_claim(void **state) {
    pool_fixture_run(*state, late_claim, *state);
}

/* A maker that commits after the sweeper's first look, and one that does so behind its second. */
static void slow_maker(void *arg) {
    struct pool_fixture *f = arg;
    put_first(f, &key_v, NULL);
    struct random_id pin = make_pin(f, 1, true);
    assert_int_equal(sweep(f), 0);
    put_record(f, 1, &pin);
    assert_int_equal(sweep(f), 0);
    assert_int_equal(sweep(f), 0);
    assert_true(is_there(f, &pin, false) && is_there(f, &pin, true));
}

static void test_slow_maker(void **state) {
    pool_fixture_run(*state, slow_maker, *state);
}

/* The maker's record lands between the sweeper's look and its tombstone (trace 18). */
struct late_commit {
    struct pool_fixture *f;
    struct random_id pin;
};

static void commit_soon(void *arg) {
    struct late_commit *l = arg;
    fiber_sleep_us(l->f->env, 5000); /* while the sweeper's tombstone is on its way */
    put_record(l->f, 1, &l->pin);
}

static void look_again(void *arg) {
    struct late_commit *l = arg;
    struct pool_fixture *f = l->f;
    put_first(f, &key_v, NULL);
    l->pin = make_pin(f, 1, true);
    assert_int_equal(sweep(f), 0);
    struct fault_rule slow = {.kind = FAULT_DELAY,
                              .verbs = 1u << OBJ_PUT,
                              .key_part = snapshots,
                              .times = 1,
                              .delay_us_min = 100000,
                              .delay_us_max = 100000};
    objstore_fault_add(f->delays, &slow);
    fiber_start(f->env, commit_soon, l);
    /* The first PUT below snapshots/ is the sweeper's: it comes at once. */
    assert_int_equal(sweep(f), 0);
    assert_true(is_there(f, &l->pin, false) && is_there(f, &l->pin, true));
    assert_int_equal(sweep(f), 0);
}

static void test_look_again(void **state) {
    struct late_commit l = {.f = *state};
    pool_fixture_run(*state, look_again, &l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_dead_makers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_living, setup, teardown),
        cmocka_unit_test_setup_teardown(test_passed_by, setup, teardown),
        cmocka_unit_test_setup_teardown(test_late_root, setup, teardown),
        cmocka_unit_test_setup_teardown(test_late_claim, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_maker, setup, teardown),
        cmocka_unit_test_setup_teardown(test_look_again, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
