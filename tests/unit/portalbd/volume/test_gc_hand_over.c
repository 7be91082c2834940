/* GC while a pin is handed over to another between two pages of a LIST of the pins: neither may be
 * missed (docs/protocol.md, Garbage, 2). */
#include "tests/support/test.h"

#include <stdio.h>

#include "portalbd/volume/pins.h"
#include "tests/support/engine_writer.h"

enum { VOLUME_SIZE = 1024 * 1024, PAGE_US = 1000000 };

struct stage {
    struct pool_fixture f;
    struct volume_key key;
    struct volume *v;
    uint8_t before[VOLUME_SIZE], found[VOLUME_SIZE];
    struct fiber_done collected;
};

static void create(struct stage *st) {
    struct err e;
    struct manifest m = {.number = 1, .size_bytes = VOLUME_SIZE, .block_size = 4096};
    m.closed = true;
    root_init(&m.root, &st->key);
    ok(manifest_put(st->f.store, &st->key, &m, &e), &e);
    manifest_release(&m);
    st->v = engine_open(&st->f, &st->key, 1);
    engine_write(&st->f, st->v, VOLUME_SIZE, 100);
    ok(volume_flush(st->v, &e), &e);
    engine_read(&st->f, st->v, 0, VOLUME_SIZE, st->before);
}

static struct commit_key commit_key(uint64_t n) {
    struct commit_key k = {0};
    char hash[33];
    name_hash(hash, "s");
    key_snapshot(k.key, hash, n);
    return k;
}

/* A claimed pin whose id is in the lower or the upper half. */
static struct random_id claim_in_half(struct stage *st, bool upper, const struct commit_key *c) {
    struct err e;
    for (;;) {
        struct random_id pin;
        ok(pin_claim_new(st->f.env, st->f.store, &st->key, c, &pin, &e), &e);
        if ((pin.bytes[0] >= 0x80) == upper)
            return pin;
        ok(pin_release_claim(st->f.store, &st->key, &pin, &e), &e);
    }
}

/* A page of keys in the middle of the pins' folder that are none. */
static void fill_page(struct stage *st) {
    char key[KEY_MAX];
    key_pins_prefix(key, &st->key);
    size_t len = strlen(key);
    for (unsigned i = 0; i < OBJ_LIST_MAX; i++) {
        snprintf(key + len, sizeof key - len, "80000000000000000000000000000000.%03u", i);
        memory_store_replace(st->f.memory, key, view_of_str("no pin"));
    }
}

/* What was there at first is not needed by the newest root any more. */
static void overwrite(struct stage *st) {
    struct err e;
    uint8_t data[16 * 1024];
    for (uint64_t off = 0; off < VOLUME_SIZE; off += sizeof data) {
        env_random(st->f.env, data, sizeof data);
        engine_put(&st->f, st->v, off, sizeof data, data);
    }
    ok(volume_checkpoint(st->v, &e), &e);
}

static void collect(void *arg) {
    struct stage *st = arg;
    struct err e;
    ok(volume_collect(st->v, &e), &e);
    fiber_done_set(&st->collected);
}

/* The second page of the first listing takes long. */
static void start_collecting(struct stage *st) {
    struct fault_rule slow = {.kind = FAULT_DELAY,
                              .verbs = 1u << OBJ_LIST,
                              .key_part = "/pins/",
                              .nth = 2,
                              .delay_us_min = PAGE_US,
                              .delay_us_max = PAGE_US};
    objstore_fault_add(st->f.delays, &slow);
    fiber_done_init(&st->collected);
    fiber_start(st->f.env, collect, st);
    assert_int_equal(fiber_sleep_us(st->f.env, PAGE_US / 2), 0);
    assert_int_equal(objstore_fault_hits(st->f.delays), 1);
}

static void check_pin(struct stage *st, const struct random_id *pin) {
    struct err e;
    struct volume *v;
    struct volume_config config = {
        .env = st->f.env, .store = st->f.store, .key = st->key, .cache_size = 65536};
    ok(volume_open_pin(&config, pin, &v, &e), &e);
    engine_read(&st->f, v, 0, VOLUME_SIZE, st->found);
    assert_memory_equal(st->found, st->before, VOLUME_SIZE);
    engine_end(&st->f, v, false);
}

/* The first page comes before the new pin, the second behind the old one: that listing has none. */
static void handed_over(void *arg) {
    struct stage *st = arg;
    struct err e;
    struct pin_root root;
    struct volume_status s;
    create(st);
    struct commit_key commit = commit_key(1);
    struct random_id old = claim_in_half(st, true, &commit);
    ok(pin_cut(st->f.env, st->f.store, &st->key, &old, &commit, &root, &e), &e);
    fill_page(st);
    overwrite(st);
    start_collecting(st);
    commit = commit_key(2);
    struct random_id new = claim_in_half(st, false, &commit);
    ok(pin_root_put(st->f.env, st->f.store, &st->key, &new, &commit, &root, &e), &e);
    ok(pin_release(st->f.store, &st->key, &old, &e), &e);
    assert_false(st->collected.done);
    fiber_done_wait_always(st->f.env, &st->collected);
    volume_status(st->v, &s);
    assert_true(s.gc_objects_deleted > 0);
    assert_true(s.gc_held > 0);
    check_pin(st, &new);
    pin_root_release(&root);
    engine_end(&st->f, st->v, true);
}

static void test_handed_over(void **state) {
    (void)state;
    static struct stage st;
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&st.key, ID_VOLUME, hash, 1);
    pool_fixture_init(&st.f, 1);
    pool_fixture_run(&st.f, handed_over, &st);
    pool_fixture_release(&st.f);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_handed_over)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
