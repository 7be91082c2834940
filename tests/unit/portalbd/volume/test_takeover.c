/* Two openers of a volume at a time: the older one, however slow, costs the newer one nothing, and
 * learns that it has lost. */
#include "tests/support/test.h"

#include "portalbd/volume/takeover.h"
#include "tests/support/pool_fixture.h"

enum { REQUESTS_MAX = 100, SLOW_US = 1000000 };

struct race {
    struct pool_fixture f;
    struct volume_key key;
    uint64_t n;      /* the older one's request that takes long */
    bool late_fence; /* the newer one's fence takes longer still */
    int older_rc;
    struct err older_err;
    struct fiber_done older_done;
    bool through; /* it took fewer requests */
};

static void run_older(void *arg) {
    struct race *r = arg;
    struct takeover t;
    r->older_rc = volume_takeover(r->f.env, r->f.store, &r->key, 1, NULL, false, &t, &r->older_err);
    if (r->older_rc == 0)
        takeover_release(&t);
    fiber_done_set(&r->older_done);
}

static void create(struct race *r) {
    struct err e;
    struct manifest m = {.number = 1, .size_bytes = 1 << 20, .block_size = 4096, .closed = true};
    root_init(&m.root, &r->key);
    ok(manifest_put(r->f.store, &r->key, &m, &e), &e);
    manifest_release(&m);
}

static void race(void *arg) {
    struct race *r = arg;
    struct err e;
    struct takeover t;
    struct fault_rule slow = {
        .kind = FAULT_DELAY, .nth = r->n, .delay_us_min = SLOW_US, .delay_us_max = SLOW_US};
    create(r);
    objstore_fault_add(r->f.faults, &slow);
    fiber_done_init(&r->older_done);
    fiber_start(r->f.env, run_older, r);
    fiber_sleep_us(r->f.env, SLOW_US / 2);
    objstore_fault_clear(r->f.faults);
    r->through = r->older_done.done;
    struct fault_rule late = {.kind = FAULT_DELAY,
                              .verbs = 1u << OBJ_PUT,
                              .key_part = "/log/",
                              .nth = 1,
                              .delay_us_min = 2 * SLOW_US,
                              .delay_us_max = 2 * SLOW_US};
    if (r->late_fence)
        objstore_fault_add(r->f.faults, &late);
    ok(volume_takeover(r->f.env, r->f.store, &r->key, 2, NULL, false, &t, &e), &e);
    fiber_done_wait_always(r->f.env, &r->older_done);
    for (uint64_t i = 0; i < 40; i++) /* all that FENCE_JUMP leaves room for, and more */
        ok(pool_fixture_put_segment(&r->f, &r->key, &t.manifest, t.first_seq + i, &e), &e);
    ok(manifest_check_newest(r->f.store, &r->key, t.manifest.number, &e), &e);
    takeover_release(&t);
    assert_int_equal(r->older_rc, r->through ? 0 : -ERR_FENCED);
}

static void race_at_each_request(bool late_fence) {
    static struct race r;
    char hash[33];
    uint64_t n = 1;
    name_hash(hash, "v");
    for (; n == 1 || !r.through; n++) {
        assert_true(n < REQUESTS_MAX);
        r = (struct race){.n = n, .late_fence = late_fence};
        id_format_key(&r.key, ID_VOLUME, hash, 1);
        pool_fixture_init(&r.f, n);
        pool_fixture_run(&r.f, race, &r);
        pool_fixture_release(&r.f);
    }
    assert_true(n > 4); /* the newest manifest, ours, the log, its fence, a last look */
}

static void test_slow_older_opener(void **state) {
    (void)state;
    race_at_each_request(false);
}

/* Nothing in the log says so then: the newest manifest does. */
static void test_older_opener_fences_first(void **state) {
    (void)state;
    race_at_each_request(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slow_older_opener),
        cmocka_unit_test(test_older_opener_fences_first),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
