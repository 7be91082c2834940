/* fsck: a pool that the real engine wrote has nothing to be told; every object of it that goes, or
 * in which a bit turns, is told; beside a writer nothing is told that is not so. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/catalog/fsck.h"
#include "portalbd/catalog/inspect.h"
#include "portalbd/volume/run_writer.h"
#include "tests/support/engine_writer.h"
#include "tests/support/fsck_story.h"
#include "tests/support/pool_test.h"

POOL_TEST_SETUP(7)

static void healthy(void *arg) {
    struct pool_fixture *f = arg;
    struct fsck_story s;
    static struct findings l;
    fsck_story_tell(f, &s);
    size_t objects = memory_store_count(f->memory);
    struct fsck_result r = fsck_story_check(f, NULL, false, &l);
    assert_int_equal(r.damaged, 0);
    assert_int_equal(r.volumes, 5);
    assert_int_equal(r.snapshots, 2);
    assert_int_equal(r.unsettled, 0);
    assert_true(r.objects > 50 && r.frames > 200 && r.entries > 200 && r.runs > 4 && r.roots > 8);
    const char *each[] = {s.volume, s.clone, s.chained};
    for (size_t i = 0; i < ARRAY_LEN(each); i++) {
        r = fsck_story_check(f, each[i], false, &l);
        assert_int_equal(r.damaged, 0);
        assert_int_equal(r.volumes, 1);
        assert_true(r.objects > 10);
        r = fsck_story_check(f, each[i], true, &l);
        assert_int_equal(r.damaged, 0);
        assert_int_equal(r.objects, 0);
    }
    assert_int_equal(fsck_story_check(f, NULL, true, &l).damaged, 0);
    assert_int_equal(memory_store_count(f->memory), objects); /* it changes nothing */
    struct fsck k = {.catalog = &f->catalog};
    struct err e;
    assert_int_equal(fsck_volume(&k, "pv-x", &e), -ERR_NOT_FOUND);
}

static void test_healthy(void **state) {
    pool_fixture_run(*state, healthy, *state);
}

/* --- damage --- */

/* What may go without anybody missing it. Records before the newest are history. */
static bool may_go(struct pool_fixture *f, const char *key) {
    char folder[KEY_MAX];
    uint64_t n, newest = 0;
    struct err e;
    if (strncmp(key, "nodes/", 6) == 0)
        return true;
    if (strstr(key, ".claim")) { /* of a clone: it may be about to be given up */
        struct view body;
        struct pin_claim claim;
        assert_true(memory_store_find(f->memory, key, &body));
        ok(pin_claim_decode(&claim, body, &e), &e);
        return claim.commit.is_clone;
    }
    if (strstr(key, "/log/")) {
        struct view body;
        return memory_store_find(f->memory, key, &body) && body.len == SEGMENT_FENCE_SIZE;
    }
    if (key_parse_numbered(key, &n) < 0)
        return false;
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(key, '/') + 1 - key), key);
    if (strncmp(key, "volumes/", 8) == 0)
        return n != 1; /* an older one is as good as a restored backup: records tell below */
    ok(numbered_newest_number(f->store, folder, &newest, &e), &e);
    return n != newest || strncmp(key, "snapshots/", 10) == 0 || n > 1;
}

static void every_object(void *arg) {
    struct pool_fixture *f = arg;
    struct fsck_story s;
    static struct findings l;
    fsck_story_tell(f, &s);
    static struct findings garbage; /* what nothing needs is not read */
    size_t unneeded = (size_t)fsck_story_check(f, NULL, false, &garbage).garbage;
    size_t count = memory_store_count(f->memory);
    assert_true(unneeded <= ARRAY_LEN(garbage.keys));
    for (size_t i = 0; i < count; i++) {
        const char *at;
        struct view body;
        assert_true(memory_store_at(f->memory, i, &at, &body));
        CLEANUP_FREE char *key = xstrdup(at);
        CLEANUP_FREE uint8_t *whole = view_copy(body);
        size_t len = body.len;

        if (!may_go(f, key)) {
            assert_true(memory_store_remove(f->memory, key));
            struct fsck_result r = fsck_story_check(f, NULL, true, &l);
            if (r.damaged == 0 && r.leaked == 0 && r.garbage == unneeded)
                fail_msg("'%s' is lost and nothing is told", key);
            memory_store_replace(f->memory, key, view_of(whole, len));
        }
        for (size_t bit = 0; bit < 3 && !findings_name(&garbage, key);
             bit++) { /* at the start, the middle, the end */
            CLEANUP_FREE uint8_t *bad = view_copy(view_of(whole, len));
            size_t off = bit == 0 ? len / 50 : bit == 1 ? len / 2 : len - 2;
            bad[off] ^= 0x10;
            memory_store_replace(f->memory, key, view_of(bad, len));
            struct fsck_result r = fsck_story_check(f, NULL, false, &l);
            if (r.damaged == 0)
                fail_msg("'%s' is bad at %zu of %zu and nothing is told", key, off, len);
            if (!findings_name(&l, key))
                fail_msg("'%s' is bad and '%s' is told (%s)", key, l.keys[0], l.texts[0]);
        }
        memory_store_replace(f->memory, key, view_of(whole, len));
    }
    assert_int_equal(fsck_story_check(f, NULL, false, &l).damaged, 0);
}

static void test_every_object(void **state) {
    pool_fixture_run(*state, every_object, *state);
}

/* --- contradictions --- */

enum lie { NO_LIE, OTHER_SECTOR, NO_FRAME, OTHER_LENGTH, BEHIND_OBJECT, LIES };

/* A run of one entry, about the first frame of a segment, on top of the volume's runs. */
static void lay_run(struct pool_fixture *f, const struct volume_key *v, enum lie lie) {
    struct err e;
    struct manifest m;
    ok(manifest_newest(f->store, v, &m, &e), &e);
    struct segment_meta meta;
    struct segment_table t = {0};
    size_t need, i = 0;
    uint64_t seq = 0, size = 0;
    struct view body;
    const char *key;
    char log[KEY_MAX];
    key_log_prefix(log, v);
    for (size_t k = 0; seq == 0 && memory_store_at(f->memory, k, &key, &body); k++) {
        if (!strstr(key, log) || body.len == SEGMENT_FENCE_SIZE)
            continue;
        ok(key_parse_log(key, &seq), &e);
        ok(segment_decode_tail(body, body.len, &meta, &t, &need, &e), &e);
        size = body.len;
    }
    while (t.extents[i].kind != EXTENT_DATA)
        i++;
    const struct segment_extent *x = &t.extents[i];
    uint16_t len = t.lens[x->first_len];
    struct map_entry entry = {.sector = x->sector + (lie == OTHER_SECTOR),
                              .count = 1,
                              .kind = EXTENT_DATA,
                              .len_count = 1,
                              .off = lie == BEHIND_OBJECT ? (uint32_t)size - 20
                                                          : x->off + (lie == NO_FRAME),
                              .ref = {.kind = OBJ_LOG, .seq = seq},
                              .lens = &len};
    len = (uint16_t)(len - (lie == OTHER_LENGTH));
    struct run_writer *w = run_writer_new(f->env, f->store, v, (struct run_shape){0});
    struct root_run run;
    ok(run_writer_add(w, &entry, v, &e), &e);
    ok(run_writer_finish(w, &run, &e), &e);
    run_writer_free(w);
    run.age = m.root.next_seq;
    m.root.runs = xrealloc(m.root.runs, (m.root.run_count + 1) * sizeof *m.root.runs);
    memmove(m.root.runs + 1, m.root.runs, m.root.run_count++ * sizeof *m.root.runs);
    m.root.runs[0] = run;
    m.number++;
    ok(manifest_put(f->store, v, &m, &e), &e);
    segment_table_release(&t);
    manifest_release(&m);
}

static void contradictions(void *arg) {
    static const char *const texts[LIES] = {[OTHER_SECTOR] = "holds other sectors",
                                            [NO_FRAME] = "no such frame",
                                            [OTHER_LENGTH] = "no such frame",
                                            [BEHIND_OBJECT] = "behind its object"};
    struct pool_fixture *f = arg;
    struct fsck_story s;
    static struct findings l;
    struct err e;
    struct volume_info i;
    struct manifest m;
    char source[ID_MAX];
    fsck_story_tell(f, &s);
    for (int lie = 0; lie < LIES; lie++) {
        char name[16];
        snprintf(name, sizeof name, "lie-%d", lie);
        fsck_story_create(f, name, NULL, source);
        fsck_story_write(f, source, 10);
        ok(catalog_volume_get(&f->catalog, source, &i, &e), &e);
        lay_run(f, &i.record.key, (enum lie)lie);
        struct fsck_result r = fsck_story_check(f, source, false, &l);
        assert_int_equal(r.damaged > 0, lie != NO_LIE);
        if (texts[lie])
            findings_tell(&l, texts[lie]);
        volume_info_release(&i);
    }

    /* A manifest that was opened with an epoch that nobody gave out. */
    ok(catalog_volume_get(&f->catalog, s.clone, &i, &e), &e);
    ok(manifest_newest(f->store, &i.record.key, &m, &e), &e);
    m.number++;
    m.epoch += UINT64_C(1) << 32;
    ok(manifest_put(f->store, &i.record.key, &m, &e), &e);
    assert_true(fsck_story_check(f, s.clone, true, &l).damaged > 0);
    findings_tell(&l, "was opened with");

    /* The pin that protects what the clone needs of its source. */
    char key[KEY_MAX];
    assert_int_equal(m.held_pin_count, 1);
    key_pin_root(key, &m.held_pins[0].volume, &m.held_pins[0].pin);
    assert_true(memory_store_remove(f->memory, key));
    assert_true(fsck_story_check(f, s.clone, true, &l).damaged > 0);
    findings_tell(&l, "needs what it holds");
    manifest_release(&m);
    volume_info_release(&i);

    /* Nobody has ever heard of this volume. */
    struct volume_key stranger;
    struct random_id id = {.bytes = {1}};
    id_format_key(&stranger, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    key_map(key, &stranger, &id);
    ok(objstore_put(f->store, key, view_of_str("x"), NULL, &e), &e);
    assert_int_equal(fsck_story_check(f, NULL, true, &l).leaked, 1);
    findings_tell(&l, "no record has ever named");
}

static void test_contradictions(void **state) {
    pool_fixture_run(*state, contradictions, *state);
}

/* --- any object, readable --- */

static void described(void *arg) {
    struct pool_fixture *f = arg;
    struct fsck_story s;
    struct err e;
    const char *key;
    struct view body;
    json_t *o = NULL;
    fsck_story_tell(f, &s);
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++) {
        if (object_describe(key, body, &o, &e) < 0)
            fail_msg("%s: %s", key, e.text);
        const char *type = json_string_value(json_object_get(o, "type"));
        assert_non_null(type);
        assert_int_equal(strstr(key, "/log/") != NULL, strcmp(type, "segment") == 0);
        assert_int_equal(strstr(key, "/manifest/") != NULL, strcmp(type, "manifest") == 0);
        assert_int_equal(strstr(key, ".root") != NULL, strcmp(type, "pin-root") == 0);
        json_decref(o);
        CLEANUP_FREE uint8_t *bad = view_copy(body);
        bad[body.len - 3] ^= 0x04;
        int rc = object_describe(key, view_of(bad, body.len), &o, &e);
        if (rc == 0)
            fail_msg("%s: damaged and described", key);
    }

    /* A segment with a bad frame: the frame is named, the rest is there. */
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        if (strstr(key, "/log/") && body.len > SEGMENT_FENCE_SIZE)
            break;
    CLEANUP_FREE uint8_t *bad = view_copy(body);
    bad[110] ^= 0x04;
    o = NULL;
    assert_int_equal(object_describe(key, view_of(bad, body.len), &o, &e), -ERR_CORRUPT);
    assert_string_equal(json_string_value(json_object_get(o, "type")), "segment");
    json_decref(o);
    assert_int_equal(object_describe("x", view_of_str("what is this"), &o, &e), -ERR_INVALID);
    assert_int_equal(object_describe("x", view_of_str(""), &o, &e), -ERR_INVALID);
    assert_int_equal(object_describe("x", view_of_str("{}"), &o, &e), -ERR_INVALID);
}

static void test_described(void **state) {
    pool_fixture_run(*state, described, *state);
}

/* --- many deleted volumes --- */

/* What is left of a deleted volume is looked at beside that of others. */
static void many_deleted(void *arg) {
    enum { VOLUMES = 24, LATENCY_US = 10 * 1000 };
    struct pool_fixture *f = arg;
    static struct findings l;
    struct err e;
    struct pool_record pool;
    struct pool_create options = {.cluster_id = NULL};
    ok(catalog_pool_create(&f->catalog, &options, &pool, &e), &e);
    pool_record_release(&pool);
    for (int i = 0; i < VOLUMES; i++) {
        char name[16], id[ID_MAX];
        snprintf(name, sizeof name, "v%d", i);
        fsck_story_create(f, name, NULL, id);
        ok(catalog_volume_delete(&f->catalog, id, false, &e), &e);
    }
    objstore_fault_add(f->delays, &(struct fault_rule){.kind = FAULT_DELAY,
                                                       .delay_us_min = LATENCY_US,
                                                       .delay_us_max = LATENCY_US});
    uint64_t requests = pool_fixture_requests(f), from = env_now_us(f->env);
    struct fsck_result r = fsck_story_check(f, NULL, false, &l);
    requests = pool_fixture_requests(f) - requests;
    uint64_t one_by_one_us = requests * LATENCY_US;
    assert_int_equal(r.volumes, VOLUMES);
    assert_int_equal(l.count, 0);
    printf("%llu requests took as long as %llu, one by one\n", (unsigned long long)requests,
           (unsigned long long)((env_now_us(f->env) - from) / LATENCY_US));
    assert_true(env_now_us(f->env) - from < one_by_one_us / 2);
}

static void test_many_deleted(void **state) {
    pool_fixture_run(*state, many_deleted, *state);
}

/* --- beside a writer --- */

enum { ROUNDS = 4 };

struct live {
    struct pool_fixture f;
    struct fsck_story story;
    int running;
    size_t rounds, unsettled;
};

static void live_set_up(void *arg) {
    struct live *l = arg;
    fsck_story_tell(&l->f, &l->story);
}

static void live_writer(void *arg) {
    struct live *l = arg;
    for (int i = 0; i < 2 || (l->rounds < ROUNDS && i < 50); i++)
        fsck_story_write(&l->f, l->story.volume, 50);
    l->running--;
}

static void live_cutter(void *arg) {
    struct live *l = arg;
    struct err e;
    char snapshot[ID_MAX], clone[ID_MAX];
    for (int i = 0; i < 2 || (l->rounds < ROUNDS && i < 50); i++) {
        fsck_story_cut(&l->f, "v@live", l->story.volume, snapshot);
        fsck_story_create(&l->f, "brief", snapshot, clone);
        ok(catalog_snapshot_delete(&l->f.catalog, snapshot, &e), &e);
        ok(catalog_volume_delete(&l->f.catalog, clone, false, &e), &e);
    }
    l->running--;
}

static void live_fsck(void *arg) {
    struct live *l = arg;
    static struct findings found;
    while (l->running > 0) {
        struct err e;
        memset(&found, 0, sizeof found); /* a value of it would not fit the stack of a fiber */
        struct fsck k = {.catalog = &l->f.catalog,
                         .quick = l->rounds % 2 == 1,
                         .on_finding = findings_add,
                         .arg = &found};
        int rc = l->rounds % 3 == 2 ? fsck_volume(&k, l->story.volume, &e) : fsck_pool(&k, &e);
        ok(rc, &e);
        if (k.result.damaged > 0)
            fail_msg("'%s': %s", found.keys[0], found.texts[0]);
        l->unsettled += k.result.unsettled;
        l->rounds++;
    }
}

static void test_live(void **state) {
    (void)state;
    static struct live l;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        l = (struct live){.running = 2};
        pool_fixture_init(&l.f, seed);
        pool_fixture_run(&l.f, live_set_up, &l);
        pool_fixture_jitter(&l.f);
        fiber_start(l.f.env, live_writer, &l);
        fiber_start(l.f.env, live_cutter, &l);
        fiber_start(l.f.env, live_fsck, &l);
        virtual_env_run(&l.f.venv);
        assert_int_equal(l.running, 0);
        assert_int_equal(l.unsettled, 0);
        assert_true(l.rounds >= ROUNDS);
        pool_fixture_release(&l.f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_healthy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_every_object, setup, teardown),
        cmocka_unit_test_setup_teardown(test_contradictions, setup, teardown),
        cmocka_unit_test_setup_teardown(test_described, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many_deleted, setup, teardown),
        cmocka_unit_test(test_live),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
