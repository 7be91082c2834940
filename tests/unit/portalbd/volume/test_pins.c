/* Pins: the cut of a snapshot beside a writer, a root seen from a clone, listings. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "portalbd/volume/pins.h"
#include "tests/support/pool_fixture.h"

static struct pool_fixture fixture;
static struct volume_key key_v, key_c;
static struct commit_key commit;

static int setup(void **state) {
    pool_fixture_init(&fixture, 8);
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&key_v, ID_VOLUME, hash, 1);
    name_hash(hash, "c");
    id_format_key(&key_c, ID_VOLUME, hash, 1);
    name_hash(hash, "s");
    commit = (struct commit_key){0};
    key_snapshot(commit.key, hash, 1);
    *state = &fixture;
    return 0;
}

static int teardown(void **state) {
    pool_fixture_release(*state);
    return 0;
}

static void put_first(struct pool_fixture *f) {
    struct err e;
    struct manifest m = {.number = 1, .size_bytes = 8192, .block_size = 4096, .closed = true};
    root_init(&m.root, &key_v);
    ok(manifest_put(f->store, &key_v, &m, &e), &e);
    manifest_release(&m);
}

static size_t tail_segments(const struct root *r) {
    size_t count = 0;
    for (size_t i = 0; i < r->tail_count; i++)
        count += r->tail[i].count;
    return count;
}

static struct pin_root cut(struct pool_fixture *f) {
    struct err e;
    struct random_id pin;
    struct pin_root root;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &pin, &e), &e);
    ok(pin_cut(f->env, f->store, &key_v, &pin, &commit, &root, &e), &e);
    return root;
}

static void cuts(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct random_id pin;
    struct pin_root r;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &pin, &e), &e);
    assert_int_equal(pin_cut(f->env, f->store, &key_v, &pin, &commit, &r, &e), -ERR_NOT_FOUND);
    put_first(f);
    r = cut(f);
    assert_int_equal(r.root.next_seq, 1);
    assert_int_equal(r.size_bytes, 8192);
    assert_int_equal(r.root.tail_count, 0);
    pin_root_release(&r);

    pool_fixture_write(f, &key_v, 1, 3, false);
    pool_fixture_write(f, &key_v, 1, 2, false); /* another open: a fence in between */
    uint64_t before = pool_fixture_requests(f);
    r = cut(f);
    assert_int_equal(pool_fixture_requests(f) - before, 1 + 5);
    assert_int_equal(tail_segments(&r.root), 5);
    /* Fence at 1, 34..36, fence at 37, 70..71. */
    assert_int_equal(r.root.tail_count, 2);
    assert_int_equal(r.root.tail[0].first, 34);
    assert_int_equal(r.root.tail[1].first, 70);
    assert_int_equal(r.root.next_seq, 72);

    /* What a zombie writes behind the fence is in no snapshot. */
    char key[KEY_MAX];
    key_log(key, &key_v, 38);
    memory_store_replace(f->memory, key, view_of_str("zombie"));
    struct pin_root again = cut(f), read;
    assert_int_equal(tail_segments(&again.root), 5);
    ok(pin_root_get(f->store, &key_v, &again.pin, &read, &e), &e);
    assert_int_equal(read.root.next_seq, 72);
    assert_int_equal(tail_segments(&read.root), 5);
    pin_root_release(&read);
    pin_root_release(&again);
    pin_root_release(&r);
}

static void test_cuts(void **state) {
    pool_fixture_run(*state, cuts, *state);
}

/* A writer opens, checkpoints and closes while a snapshot is cut, at every step of it: the snapshot
 * has at least what was stored before it began, and what its root names is there. */
struct beside {
    struct pool_fixture f;
    uint64_t delay_us;
    struct pin_root root;
};

static void beside_prepare(void *arg) {
    struct beside *b = arg;
    put_first(&b->f);
    pool_fixture_write(&b->f, &key_v, 1, 4, false);
}

static void beside_writer(void *arg) {
    struct beside *b = arg;
    fiber_sleep_us(b->f.env, b->delay_us);
    pool_fixture_write(&b->f, &key_v, 1, 2, true);
    pool_fixture_write(&b->f, &key_v, 1, 3, true);
}

static void beside_cut(void *arg) {
    struct beside *b = arg;
    b->root = cut(&b->f);
}

static void test_beside_a_writer(void **state) {
    (void)state;
    for (uint64_t delay_us = 0; delay_us < 12000; delay_us += 200) {
        static struct beside b;
        b = (struct beside){.delay_us = delay_us};
        pool_fixture_init(&b.f, delay_us + 1);
        pool_fixture_run(&b.f, beside_prepare, &b);
        struct fault_rule slow = {.kind = FAULT_DELAY, .delay_us_min = 500, .delay_us_max = 1500};
        objstore_fault_add(b.f.delays, &slow);
        fiber_start(b.f.env, beside_cut, &b);
        fiber_start(b.f.env, beside_writer, &b);
        virtual_env_run(&b.f.venv);
        size_t count = tail_segments(&b.root.root);
        assert_true(count >= 4 && count <= 9);
        assert_true(b.root.root.next_seq >= 38);
        for (size_t i = 0; i < b.root.root.tail_count; i++)
            for (uint64_t j = 0; j < b.root.root.tail[i].count; j++) {
                char key[KEY_MAX];
                struct view body;
                key_log(key, &key_v, b.root.root.tail[i].first + j);
                assert_true(memory_store_find(b.f.memory, key, &body));
                assert_true(body.len != SEGMENT_FENCE_SIZE);
            }
        pin_root_release(&b.root);
        pool_fixture_release(&b.f);
    }
}

static void test_rebase(void **state) {
    (void)state;
    struct err e;
    struct root from, to;
    root_init(&from, &key_v);
    from.next_seq = 100;
    from.runs = xcalloc(1, sizeof *from.runs);
    from.run_count = 1;
    from.runs[0] = (struct root_run){.index = {.kind = OBJ_MAP, .id = {{1}}}, .age = 50};
    from.tail = xcalloc(1, sizeof *from.tail);
    from.tail_count = 1;
    from.tail[0] = (struct root_tail){.first = 60, .count = 10};
    from.evacuated = xcalloc(1, sizeof *from.evacuated);
    from.evacuated_count = 1;
    from.evacuated[0] = (struct obj_ref){.kind = OBJ_LOG, .seq = 7};
    ok(root_rebase(&to, &from, &key_c, &e), &e);
    assert_int_equal(to.volume_count, 2);
    assert_string_equal(to.volumes[0].text, key_c.text);
    assert_string_equal(to.volumes[1].text, key_v.text);
    assert_int_equal(to.runs[0].index.volume, 1);
    assert_int_equal(to.runs[0].age, 50);
    assert_int_equal(to.tail[0].volume, 1);
    assert_int_equal(to.evacuated[0].volume, 1);
    assert_int_equal(to.next_seq, 100);
    assert_int_equal(from.runs[0].index.volume, 0); /* untouched */
    root_release(&to);
    assert_int_equal(root_rebase(&to, &from, &key_v, &e), -ERR_CORRUPT);
    from.volumes = xrealloc(from.volumes, ROOT_VOLUMES_MAX * sizeof *from.volumes);
    for (uint64_t i = 1; i < ROOT_VOLUMES_MAX; i++) {
        char hash[33];
        name_hash(hash, "x");
        id_format_key(&from.volumes[i], ID_VOLUME, hash, i);
    }
    from.volume_count = ROOT_VOLUMES_MAX;
    assert_int_equal(root_rebase(&to, &from, &key_c, &e), -ERR_OVERLOAD);
    root_release(&from);
}

static void listings(void *arg) {
    struct pool_fixture *f = arg;
    struct err e;
    struct pin_list l;
    ok(pin_list_stable(f->store, &key_v, &l, &e), &e);
    assert_int_equal(l.count, 0);
    pin_list_release(&l);
    put_first(f);
    struct random_id only_claim;
    ok(pin_claim_new(f->env, f->store, &key_v, &commit, &only_claim, &e), &e);
    struct pin_root r = cut(f);
    char key[KEY_MAX];
    key_pins_prefix(key, &key_v);
    strcat(key, "notes.txt");
    memory_store_replace(f->memory, key, view_of_str("not ours"));
    uint64_t before = pool_fixture_requests(f);
    ok(pin_list_stable(f->store, &key_v, &l, &e), &e);
    assert_int_equal(pool_fixture_requests(f) - before, 2);
    assert_int_equal(l.count, 2);
    for (size_t i = 0; i < 2; i++) {
        assert_true(l.items[i].has_claim);
        assert_int_equal(l.items[i].has_root, random_id_equal(&l.items[i].pin, &r.pin));
    }
    pin_list_release(&l);
    ok(pin_release(f->store, &key_v, &r.pin, &e), &e);
    ok(pin_release(f->store, &key_v, &r.pin, &e), &e);
    ok(pin_release_claim(f->store, &key_v, &only_claim, &e), &e);
    ok(pin_list_once(f->store, &key_v, &l, &e), &e);
    assert_int_equal(l.count, 0);
    pin_list_release(&l);
    pin_root_release(&r);
}

static void test_listings(void **state) {
    pool_fixture_run(*state, listings, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_cuts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_beside_a_writer, setup, teardown),
        cmocka_unit_test(test_rebase),
        cmocka_unit_test_setup_teardown(test_listings, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
