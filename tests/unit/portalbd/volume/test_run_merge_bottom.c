/* Merges into the bottom: parts that nothing touches are named again, and what the others took is
 * given back. */
#include <stdlib.h>
#include <string.h>

#include "tests/support/run_rig.h"

static struct run_reader *merge_into(struct run_rig *f, struct run_reader *upper,
                                     struct run_reader *bottom, struct run_merge_stats *stats) {
    struct run_merge_options o = run_rig_options(f, true);
    struct run_reader *runs[] = {upper, bottom};
    struct root_run run;
    struct err e = {0};
    if (run_merge(&o, runs, 2, &run, NULL, stats, &e) < 0)
        fail_msg("%s", e.text);
    return run_rig_open(f, &run);
}

static size_t parts_in_common(const struct run_index *x, const struct run_index *y) {
    size_t n = 0;
    for (size_t i = 0; i < x->part_count; i++)
        for (size_t j = 0; j < y->part_count; j++)
            n += random_id_equal(&x->parts[i].ref.id, &y->parts[j].ref.id);
    return n;
}

/* Merge after merge into the bottom, by turns here and there: the content is right, what is charged
 * is right, parts that were not touched are named again, and nothing crumbles. */
static void levels(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_place *newer = xcalloc(RUN_RIG_SECTORS, sizeof *newer);
    struct run_reader *bottom = run_rig_random_bottom(f, model);
    size_t reused = 0;
    for (int round = 0; round < 60; round++) {
        uint64_t from = run_rig_below(f, RUN_RIG_SECTORS),
                 to = MIN(from + 1 + run_rig_below(f, RUN_RIG_SECTORS / 16), RUN_RIG_SECTORS);
        memset(newer, 0, RUN_RIG_SECTORS * sizeof *newer);
        struct run_reader *upper =
            run_rig_random_part(f, newer, from, to, round % 3 ? RUN_RIG_VOLUMES : 1);
        for (size_t i = 0; i < RUN_RIG_SECTORS; i++)
            if (newer[i].mapped)
                model[i] = newer[i].kind == EXTENT_HOLE ? (struct run_place){0} : newer[i];
        struct run_merge_stats stats;
        struct run_reader *merged = merge_into(f, upper, bottom, &stats);
        const struct run_index *x = run_reader_index(merged);
        assert_int_equal(parts_in_common(x, run_reader_index(bottom)), stats.parts_reused);
        reused += stats.parts_reused;
        run_rig_check_whole(f, merged, model, 4);
        run_rig_check_lookups(f, merged, model);
        run_rig_check_usage(f, merged);
        size_t small = 0;
        for (size_t i = 0; i < x->part_count; i++) {
            uint64_t size = (uint64_t)x->parts[i].page_count * RUN_PAGE_SIZE;
            assert_true(size <= RUN_RIG_PART_SIZE * 3 / 2 + RUN_PAGE_SIZE);
            small += size < RUN_RIG_PART_SIZE / 4;
        }
        assert_true(small <= 2);
        assert_true(x->usage_count <= 2 * RUN_RIG_VOLUMES * RUN_RIG_OBJECTS);
        run_reader_unref(upper);
        run_reader_unref(bottom);
        bottom = merged;
    }
    print_message("%zu parts named again\n", reused);
    assert_true(reused > 150);
    run_reader_unref(bottom);
    free(newer);
    free(model);
}

/* One entry that covers everything, or all but the first part: what it covers is not read. */
static void covered(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *bottom = run_rig_random_bottom(f, model);
    const struct run_index *x = run_reader_index(bottom);
    for (int what = 0; what < 3; what++) {
        struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0],
                                              (struct run_shape){.part_size = RUN_RIG_PART_SIZE});
        struct map_entry m = {.sector = what == 1 ? x->parts[0].last_sector + 1 : 0,
                              .count = RUN_RIG_SECTORS,
                              .kind = what == 2 ? EXTENT_ZERO : EXTENT_HOLE};
        struct root_run run;
        assert_int_equal(run_writer_add(w, &m, NULL, NULL), 0);
        assert_int_equal(run_writer_finish(w, &run, NULL), 0);
        run_writer_free(w);
        struct run_reader *upper = run_rig_open(f, &run);
        struct run_reader *runs[] = {upper, bottom};
        struct run_merge_options o = run_rig_options(f, true);
        struct run_merge_stats stats;
        f->gate.requests = 0;
        assert_int_equal(run_merge(&o, runs, 2, &run, NULL, &stats, NULL), 0);
        assert_int_equal(stats.entries_read, 1);
        assert_int_equal(stats.parts_reused, what == 1 ? 1 : 0);
        if (what == 0) {
            assert_int_equal(run.entry_count, 0);
            assert_int_equal(f->gate.requests, 1);
        } else if (what == 1) { /* the shares of the parts that go, and a new index */
            assert_int_equal(run.entry_count, x->parts[0].entries);
            assert_int_equal(f->gate.requests, 1 + x->part_count - 1 + 1);
        } else {
            assert_int_equal(run.entry_count, 1);
            assert_int_equal(f->gate.requests, 3);
        }
        if (run.entry_count > 0) {
            struct run_reader *merged = run_rig_open(f, &run);
            run_rig_check_usage(f, merged);
            if (what == 2)
                assert_int_equal(run_reader_index(merged)->usage_count, 0);
            run_reader_unref(merged);
        }
        run_reader_unref(upper);
    }
    run_reader_unref(bottom);
    free(model);
}

/* A part whose shares say more than the run does, or whose shares are gone. */
static void damaged_shares(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *bottom = run_rig_random_bottom(f, model);
    const struct run_index *x = run_reader_index(bottom);
    const struct run_part *p = &x->parts[1];
    struct run_reader *upper =
        run_rig_random_part(f, model, p->first_sector, p->first_sector + 500, RUN_RIG_VOLUMES);
    struct run_reader *runs[] = {upper, bottom};
    struct run_merge_options o = run_rig_options(f, true);
    char key[KEY_MAX];
    struct view part;
    key_map(key, &f->keys[0], &p->ref.id);
    assert_true(memory_store_find(f->memory, key, &part));
    size_t pages_len = (size_t)p->page_count * RUN_PAGE_SIZE;
    assert_int_equal(part.len, pages_len + p->shares_len);
    for (int what = 0; what < 3; what++) {
        CLEANUP_BUF struct buf now = {0};
        struct err e = {0};
        struct root_run run;
        buf_append(&now, part.data, pages_len);
        if (what == 0) {
            struct run_share share = {.number = 1, .bytes = UINT64_C(1) << 40};
            run_shares_encode(&now, &share, 1);
            buf_append(&now, part.data, p->shares_len - (now.len - pages_len));
        } else if (what == 1) {
            buf_append(&now, part.data, p->shares_len);
        }
        struct view old = part;
        CLEANUP_BUF struct buf kept = {0};
        buf_append(&kept, old.data, old.len);
        memory_store_replace(f->memory, key, buf_view(&now));
        assert_int_equal(run_merge(&o, runs, 2, &run, NULL, NULL, &e), -ERR_CORRUPT);
        assert_non_null(strstr(e.text, key));
        memory_store_replace(f->memory, key, buf_view(&kept));
        assert_true(memory_store_find(f->memory, key, &part));
    }
    run_reader_unref(upper);
    run_reader_unref(bottom);
    free(model);
}

/* What our newest stored root evacuates is dropped, wherever it stands; nothing else is. */
static void evacuated(void *arg) {
    struct run_rig *f = arg;
    struct run_place *model = xcalloc(RUN_RIG_SECTORS, sizeof *model);
    struct run_reader *runs[3];
    for (size_t i = 3; i-- > 0;) /* in none of them a hole: they would not cover as data does */
        runs[i] = run_rig_random_bottom(f, model);
    struct obj_ref gone[] = {{.kind = OBJ_LOG, .volume = 1, .seq = 7},
                             {.kind = OBJ_LOG, .volume = 0, .seq = 30},
                             {.kind = OBJ_LOG, .volume = 0, .seq = 3}};
    struct volume_key volumes[] = {f->keys[2], f->keys[0]}; /* a root has a table of its own */
    struct root root = {.volumes = volumes,
                        .volume_count = 2,
                        .evacuated = gone,
                        .evacuated_count = ARRAY_LEN(gone)};
    for (int what = 0; what < 2; what++) {
        struct run_merge_options o = run_rig_options(f, what == 1);
        struct root_run run;
        o.evacuates = &root;
        assert_int_equal(run_merge(&o, runs, 3, &run, NULL, NULL, NULL), 0);
        struct run_reader *merged = run_rig_open(f, &run);
        const struct run_index *x = run_reader_index(merged);
        for (size_t i = 0; i < x->usage_count; i++) {
            uint8_t owner = run_rig_owner(f, &x->volumes[x->usage[i].ref.volume]);
            uint64_t seq = x->usage[i].ref.seq;
            assert_false((owner == 0 && seq == 7) || (owner == 2 && (seq == 30 || seq == 3)));
        }
        run_rig_check_usage(f, merged);
        run_reader_unref(merged);
    }
    for (size_t i = 0; i < 3; i++)
        run_reader_unref(runs[i]);
    free(model);
}

#define FIBER_TEST(name, fn)                                                                       \
    static void name(void **state) {                                                               \
        struct run_rig *f = *state;                                                                \
        loop_call(f->loop, fn, f);                                                                 \
    }
FIBER_TEST(test_levels, levels)
FIBER_TEST(test_covered, covered)
FIBER_TEST(test_damaged_shares, damaged_shares)
FIBER_TEST(test_evacuated, evacuated)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_levels, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_covered, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_damaged_shares, run_rig_setup, run_rig_teardown),
        cmocka_unit_test_setup_teardown(test_evacuated, run_rig_setup, run_rig_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
