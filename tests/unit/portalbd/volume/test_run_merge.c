/* Runs on a store: written, read, looked up and merged. */
#include <stdlib.h>
#include <string.h>

#include "tests/support/run_rig.h"

enum { RUNS = 6 };

static void write_and_read(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *r = run_rig_random(f, model);
    run_rig_check_whole(f, r, model, 1);
    run_rig_check_whole(f, r, model, 3);
    run_rig_check_whole(f, r, model, RUN_READ_AHEAD_MAX);
    run_rig_check_lookups(f, r, model);
    run_rig_check_usage(f, r);
    run_reader_unref(r);
    free(model);
}

static void merge_runs(struct run_rig *f, size_t count, bool bottom) {
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_place *one = xcalloc(RUN_RIG_SECTORS, sizeof *one);
    struct run_reader *runs[RUNS];
    for (size_t i = count; i-- > 0;) { /* the oldest first; runs[0] is the newest */
        memset(one, 0, RUN_RIG_SECTORS * sizeof *one);
        runs[i] = run_rig_random(f, one);
        for (size_t s = 0; s < RUN_RIG_SECTORS; s++)
            if (one[s].mapped)
                model[s] = one[s];
    }
    for (size_t s = 0; bottom && s < RUN_RIG_SECTORS; s++)
        if (model[s].kind == EXTENT_HOLE)
            model[s] = (struct run_place){0};
    struct root_run run;
    struct err e = {0};
    struct run_merge_options o = run_rig_options(f, bottom);
    int rc = run_merge(&o, runs, count, &run, NULL, NULL, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    struct run_reader *merged = run_rig_open(f, &run);
    run_rig_check_whole(f, merged, model, 4);
    run_rig_check_lookups(f, merged, model);
    run_rig_check_usage(f, merged);
    run_reader_unref(merged);
    for (size_t i = 0; i < count; i++)
        run_reader_unref(runs[i]);
    free(one);
    free(model);
}

static void merge_many(void *arg) {
    for (size_t count = 1; count <= RUNS; count++) {
        merge_runs(arg, count, false);
        merge_runs(arg, count, true);
    }
}

enum { ENTRIES = 150000 };

/* A run of ENTRIES extents, each in an object of its own, becomes one of `kept`: of each of the
 * other objects all is given back. So many of them are a worker's work. */
static void cut_many(struct run_rig *f, struct run_reader *r, uint64_t kept, bool reuses) {
    struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){0});
    struct map_entry m = {.sector = kept * EXTENT_SECTORS_MAX,
                          .count = (ENTRIES - kept) * EXTENT_SECTORS_MAX,
                          .kind = EXTENT_HOLE};
    struct root_run run;
    assert_int_equal(run_writer_add(w, &m, NULL, NULL), 0);
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    run_writer_free(w);
    struct run_reader *upper = run_rig_open(f, &run), *runs[] = {upper, r};
    struct run_merge_options o = run_rig_options(f, true);
    struct run_merge_stats stats;
    o.shape = (struct run_shape){0};
    assert_int_equal(run_merge(&o, runs, 2, &run, NULL, &stats, NULL), 0);
    assert_int_equal(stats.parts_reused > 0, reuses);
    assert_int_equal(run.entry_count, kept);
    struct run_reader *merged = run_rig_open(f, &run);
    const struct run_index *before = run_reader_index(r), *x = run_reader_index(merged);
    assert_int_equal(x->usage_count, kept);
    for (size_t i = 0; i < kept; i++)
        assert_int_equal(x->usage[i].bytes, before->usage[i].bytes);
    run_reader_unref(merged);
    run_reader_unref(upper);
}

/* More than one part; entries that nothing can join. */
static void several_parts(void *arg) {
    struct run_rig *f = arg;
    struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){0});
    uint16_t lens[EXTENT_FRAMES_MAX];
    for (size_t i = 0; i < EXTENT_FRAMES_MAX; i++)
        lens[i] = (uint16_t)(FRAME_SIZE_MAX - i);
    struct map_entry m = {.count = EXTENT_SECTORS_MAX,
                          .kind = EXTENT_DATA,
                          .lens = lens,
                          .len_count = EXTENT_FRAMES_MAX,
                          .off = SEGMENT_HEADER_SIZE,
                          .ref = {.kind = OBJ_LOG}};
    for (uint64_t i = 0; i < ENTRIES; i++) {
        m.sector = i * EXTENT_SECTORS_MAX;
        m.ref.seq = i + 1;
        assert_int_equal(run_writer_add(w, &m, &f->keys[1], NULL), 0);
    }
    struct root_run run;
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    run_writer_free(w);
    struct run_reader *r = run_rig_open(f, &run);
    assert_true(run_reader_index(r)->part_count >= 2);
    assert_int_equal(run_reader_index(r)->usage_count, ENTRIES);
    struct run_iter it;
    run_iter_init(&it, r, 16);
    for (uint64_t i = 0; i < ENTRIES; i++) {
        assert_int_equal(run_iter_next(&it, NULL), 1);
        assert_true(it.entry.sector == i * EXTENT_SECTORS_MAX && it.entry.ref.seq == i + 1);
    }
    assert_int_equal(run_iter_next(&it, NULL), 0);
    for (uint64_t i = 0; i < ENTRIES; i += 997) {
        assert_int_equal(run_iter_seek(&it, i * EXTENT_SECTORS_MAX + 5, NULL), 0);
        assert_int_equal(run_iter_next(&it, NULL), 1);
        assert_true(it.entry.ref.seq == i + 1);
    }
    run_iter_release(&it);
    cut_many(f, r, ENTRIES * 2 / 3, true);
    cut_many(f, r, ENTRIES / 10, false);
    run_reader_unref(r);
}

static void joining(void *arg) {
    struct run_rig *f = arg;
    struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){0});
    struct map_entry m = {.count = 10, .kind = EXTENT_HOLE};
    for (m.sector = 0; m.sector < 1000; m.sector += 10)
        assert_int_equal(run_writer_add(w, &m, NULL, NULL), 0);
    m.kind = EXTENT_ZERO;
    assert_int_equal(run_writer_add(w, &m, NULL, NULL), 0);
    uint16_t len = 100;
    m = (struct map_entry){.sector = 2000,
                           .count = 32,
                           .kind = EXTENT_DATA,
                           .off = 96,
                           .lens = &len,
                           .len_count = 1,
                           .ref = {.kind = OBJ_LOG, .seq = 9}};
    for (int i = 0; i < 100; i++) { /* 64 frames make one entry, 36 the next */
        assert_int_equal(run_writer_add(w, &m, &f->keys[0], NULL), 0);
        m.sector += 32;
        m.off += len;
    }
    struct root_run run;
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    assert_int_equal(run.entry_count, 4);
    run_writer_free(w);

    w = run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){0});
    size_t objects = memory_store_count(f->memory);
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    assert_int_equal(run.entry_count, 0);
    assert_int_equal(memory_store_count(f->memory), objects);
    run_writer_free(w);
}

/* A part that is gone, cut short, or another's: an error that names it, never wrong entries. */
static void damage(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *r = run_rig_random(f, model);
    const struct run_part *p = &run_reader_index(r)->parts[0];
    char key[KEY_MAX];
    struct view part;
    key_map(key, &f->keys[0], &p->ref.id);
    assert_true(memory_store_find(f->memory, key, &part));
    assert_true(p->page_count >= 2);
    uint8_t *copy = xmalloc(part.len);
    size_t len = part.len;
    memcpy(copy, part.data, len);

    struct err e = {0};
    struct run_iter it;
    memory_store_replace(f->memory, key, view_of(copy, RUN_PAGE_SIZE + 10));
    run_iter_init(&it, r, 2);
    assert_int_equal(run_iter_next(&it, &e), -ERR_CORRUPT);
    run_iter_release(&it);
    run_iter_init(&it, r, 1);
    assert_int_equal(run_iter_seek(&it, run_part_page_first(p, 1), &e), -ERR_CORRUPT);
    assert_non_null(strstr(e.text, key));

    memcpy(copy + RUN_PAGE_SIZE, copy, RUN_PAGE_SIZE); /* a good page, but not this one */
    memory_store_replace(f->memory, key, view_of(copy, len));
    assert_int_equal(run_iter_seek(&it, run_part_page_first(p, 1), &e), -ERR_CORRUPT);
    copy[100] ^= 1;
    memory_store_replace(f->memory, key, view_of(copy, len));
    assert_int_equal(run_iter_seek(&it, run_part_page_first(p, 0), &e), -ERR_CORRUPT);
    run_iter_release(&it);
    memory_store_remove(f->memory, key);
    run_iter_init(&it, r, 3);
    assert_int_equal(run_iter_seek(&it, run_part_page_first(p, 0), &e), -ERR_NOT_FOUND);
    run_iter_release(&it);
    run_reader_unref(r);
    free(copy);
    free(model);
}

struct cancelled_merge {
    struct run_rig *f;
    struct run_reader *runs[2];
    int rc;
    bool ended;
};

static void merge_fiber(void *arg) {
    struct cancelled_merge *c = arg;
    struct root_run run;
    struct run_merge_options o = run_rig_options(c->f, true);
    c->rc = run_merge(&o, c->runs, 2, &run, NULL, NULL, NULL);
    c->ended = true;
}

/* Cancelled after 0, 1, 2, ... turns it ends soon, with that error, and leaks nothing. */
static void cancel(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct cancelled_merge c = {.f = f};
    c.runs[0] = run_rig_random(f, model);
    c.runs[1] = run_rig_random(f, model);
    bool finished = false;
    int cancelled = 0;
    for (int turns = 0; !finished; turns += 1 + turns / 4) {
        assert_true(turns < 100000);
        c.ended = false;
        struct fiber *merge = fiber_start(f->env, merge_fiber, &c);
        for (int i = 0; i < turns && !c.ended; i++)
            fiber_yield(f->env);
        finished = c.ended;
        if (!c.ended)
            fiber_cancel(merge);
        while (!c.ended)
            fiber_yield(f->env);
        assert_true(c.rc == 0 || (c.rc == -ERR_CANCELLED && !finished));
        cancelled += c.rc < 0;
    }
    assert_true(cancelled > 5);
    run_reader_unref(c.runs[0]);
    run_reader_unref(c.runs[1]);
    free(model);
}

/* Each request of a merge fails once, in turn: its error comes out, and what was merged before is
 * still whole. */
static void fault_sweep_of(struct run_rig *f, bool bottom) {
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *runs[2];
    runs[1] = bottom ? run_rig_random_bottom(f, model) : run_rig_random(f, model);
    runs[0] = run_rig_random_part(f, model, RUN_RIG_SECTORS / 3, RUN_RIG_SECTORS / 3 + 9000,
                                  RUN_RIG_VOLUMES);
    for (size_t i = 0; bottom && i < RUN_RIG_SECTORS; i++)
        if (model[i].kind == EXTENT_HOLE)
            model[i] = (struct run_place){0};
    struct root_run run;
    unsigned failures = 0;
    for (int rc = -1; rc < 0; failures++) {
        struct err e = {0};
        f->gate.requests = 0;
        f->gate.fail_at = failures + 1;
        struct run_merge_options o = run_rig_options(f, bottom);
        rc = run_merge(&o, runs, 2, &run, NULL, NULL, &e);
        assert_true(rc == 0 || rc == -ERR_DENIED);
        assert_true(rc == 0 || strstr(e.text, "denied"));
    }
    f->gate.fail_at = 0;
    assert_true(failures > 4); /* a read of each source, a part, the index; then none */
    struct run_reader *merged = run_rig_open(f, &run);
    run_rig_check_whole(f, merged, model, 4);
    run_reader_unref(merged);
    run_reader_unref(runs[0]);
    run_reader_unref(runs[1]);
    free(model);
}

static void fault_sweep(void *arg) {
    fault_sweep_of(arg, false);
    fault_sweep_of(arg, true);
}

static void stopped(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *r = run_rig_random(f, model);
    struct run_merge_options o = run_rig_options(f, true);
    struct root_run run;
    bool stop = true;
    o.stop = &stop;
    assert_int_equal(run_merge(&o, &r, 1, &run, NULL, NULL, NULL), -ERR_CANCELLED);
    run_reader_unref(r);
    free(model);
}

static void too_many_volumes(void *arg) {
    struct run_rig *f = arg;
    struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){0});
    uint16_t len = 100;
    struct map_entry m = {.count = 1,
                          .kind = EXTENT_DATA,
                          .off = 96,
                          .lens = &len,
                          .len_count = 1,
                          .ref = {.kind = OBJ_LOG, .seq = 9}};
    for (uint64_t i = 1; i <= RUN_VOLUMES_MAX + 1; i++) {
        struct volume_key key;
        id_format_key(&key, ID_VOLUME, "0123456789abcdef0123456789abcdef", i);
        m.sector = i;
        int rc = run_writer_add(w, &m, &key, NULL);
        assert_int_equal(rc, i <= RUN_VOLUMES_MAX ? 0 : -ERR_OVERLOAD);
    }
    run_writer_free(w);
}

#define FIBER_TEST(name, fn)                                                                       \
    static void name(void **state) {                                                               \
        struct run_rig *f = *state;                                                                \
        loop_call(f->loop, fn, f);                                                                 \
    }
FIBER_TEST(test_write_and_read, write_and_read)
FIBER_TEST(test_merge, merge_many)
FIBER_TEST(test_several_parts, several_parts)
FIBER_TEST(test_joining, joining)
FIBER_TEST(test_damage, damage)
FIBER_TEST(test_cancel, cancel)
FIBER_TEST(test_fault_sweep, fault_sweep)
FIBER_TEST(test_stopped, stopped)
FIBER_TEST(test_too_many_volumes, too_many_volumes)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_and_read, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_merge, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_several_parts, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_joining, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_damage, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_cancel, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_fault_sweep, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_stopped, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_too_many_volumes, run_rig_setup, run_rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
