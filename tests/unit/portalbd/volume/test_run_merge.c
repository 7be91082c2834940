/* Runs on a store: written, read, looked up and merged, against a plain array of sectors. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/loop.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/volume/run_merge.h"

enum { SECTORS = 400000, RUNS = 6, VOLUMES = 3, OBJECTS = 50, PART_SIZE = 4 * RUN_PAGE_SIZE };

/* The store as the runs see it: fails its request number fail_at, when that is set. */
struct gate {
    struct objstore base;
    struct objstore *inner;
    unsigned requests;
    unsigned fail_at;
};

struct fixture {
    struct gate gate;
    struct loop *loop;
    struct env *env;
    struct memory_store *memory;
    struct objstore *store;
    struct page_cache *pages;
    struct volume_key keys[VOLUMES];
    uint64_t rng;
};

/* Where the bytes of one sector are. */
struct place {
    uint8_t kind;
    bool mapped;
    uint8_t owner;
    uint8_t in_frame; /* sector inside its frame */
    uint16_t len;     /* of the frame */
    uint32_t off;     /* of the frame */
    uint64_t seq;
};

static uint64_t rng(struct fixture *f, uint64_t below) {
    f->rng ^= f->rng << 13;
    f->rng ^= f->rng >> 7;
    f->rng ^= f->rng << 17;
    return f->rng % below;
}

static void answer_failed(struct env_event *event) {
    struct obj_request *req = container_of(event, struct obj_request, event);
    req->done(req);
}

static void gate_submit(struct objstore *store, struct obj_request *req) {
    struct gate *g = container_of(store, struct gate, base);
    if (++g->requests != g->fail_at) {
        objstore_submit(g->inner, req);
        return;
    }
    req->rc = err_set(&req->err, -ERR_DENIED, "'%s': denied", req->key);
    req->event.fn = answer_failed;
    env_post(store->env, &req->event);
}

static void gate_cancel(struct objstore *store, struct obj_request *req) {
    objstore_cancel(container_of(store, struct gate, base)->inner, req);
}

static const struct objstore_ops gate_ops = {.submit = gate_submit, .cancel = gate_cancel};

static void open_store(void *arg) {
    struct fixture *f = arg;
    f->gate = (struct gate){.base = {.ops = &gate_ops, .env = f->env},
                            .inner = objstore_memory_open(f->env, f->memory)};
    f->store = &f->gate.base;
    f->pages = page_cache_new(f->env, f->store, 8 * RUN_PAGE_SIZE);
}

static void close_store(void *arg) {
    struct fixture *f = arg;
    page_cache_free(f->pages);
    objstore_close(f->gate.inner);
}

static int setup(void **state) {
    static struct fixture f;
    f = (struct fixture){.loop = loop_new(1), .memory = memory_store_new(), .rng = 0x1234567};
    f.env = loop_env(f.loop);
    for (int i = 0; i < VOLUMES; i++)
        id_format_key(&f.keys[i], ID_VOLUME, "0123456789abcdef0123456789abcdef", 1 + (uint64_t)i);
    loop_thread_start(f.loop, "test");
    loop_call(f.loop, open_store, &f);
    *state = &f;
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    loop_call(f->loop, close_store, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    memory_store_free(f->memory);
    return 0;
}

static struct place place_of(const struct map_entry *m, uint8_t owner, uint64_t sector) {
    struct place p = {.kind = m->kind, .mapped = true};
    if (m->kind != EXTENT_DATA)
        return p;
    uint64_t at = m->skip + (sector - m->sector);
    p.owner = owner;
    p.seq = m->ref.seq;
    p.off = m->off;
    for (size_t i = 0; i < at / FRAME_SECTORS_MAX; i++)
        p.off += m->lens[i];
    p.len = m->lens[at / FRAME_SECTORS_MAX];
    p.in_frame = (uint8_t)(at % FRAME_SECTORS_MAX);
    return p;
}

static bool place_equal(const struct place *a, const struct place *b) {
    return a->mapped == b->mapped && a->kind == b->kind && a->owner == b->owner &&
           a->in_frame == b->in_frame && a->len == b->len && a->off == b->off && a->seq == b->seq;
}

static uint8_t owner_number(const struct fixture *f, const struct volume_key *key) {
    for (uint8_t i = 0; i < VOLUMES; i++)
        if (volume_key_equal(&f->keys[i], key))
            return i;
    fail();
    return 0;
}

static struct run_reader *open_reader(struct fixture *f, const struct root_run *run) {
    struct run_reader *r = NULL;
    struct err e = {0};
    int rc = run_reader_open(f->env, f->store, f->pages, &f->keys[0], &run->index.id, &r, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    return r;
}

/* A run of random entries in [from, to), which also go into `model`; owned by volumes below
 * `owners`. */
static struct run_reader *random_part(struct fixture *f, struct place *model, uint64_t from,
                                      uint64_t to, uint8_t owners) {
    struct run_writer *w =
        run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){.part_size = PART_SIZE});
    uint64_t sector = from + rng(f, 100);
    while (sector < to) {
        uint16_t lens[EXTENT_FRAMES_MAX];
        struct map_entry m = {.sector = sector,
                              .kind = (uint8_t)(rng(f, 3) ? EXTENT_DATA : 1 + rng(f, 2))};
        uint64_t longest = rng(f, 200) ? 64 : EXTENT_SECTORS_MAX - FRAME_SECTORS_MAX;
        uint64_t left = to - sector;
        m.count = 1 + rng(f, MIN(longest, left));
        uint8_t owner = (uint8_t)rng(f, owners);
        if (m.kind == EXTENT_DATA) {
            m.skip = (uint8_t)(rng(f, 2) ? 0 : rng(f, FRAME_SECTORS_MAX));
            m.len_count = (uint16_t)extent_frames(m.skip + m.count);
            m.off = (uint32_t)(SEGMENT_HEADER_SIZE + rng(f, 1 << 20));
            m.ref = (struct obj_ref){.kind = OBJ_LOG, .seq = 1 + rng(f, OBJECTS)};
            m.lens = lens;
            for (size_t i = 0; i < m.len_count; i++)
                lens[i] = (uint16_t)(FRAME_HEADER_SIZE + 1 + rng(f, 16000));
        }
        assert_int_equal(
            run_writer_add(w, &m, m.kind == EXTENT_DATA ? &f->keys[owner] : NULL, NULL), 0);
        for (uint64_t s = sector; s < sector + m.count; s++)
            model[s] = place_of(&m, owner, s);
        sector += m.count + (rng(f, 3) ? 0 : rng(f, 40));
    }
    struct root_run run;
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    run_writer_free(w);
    return open_reader(f, &run);
}

static struct run_reader *random_run(struct fixture *f, struct place *model) {
    struct run_reader *r = random_part(f, model, 0, SECTORS, VOLUMES);
    assert_true(run_reader_index(r)->entry_count > 50);
    assert_true(run_reader_index(r)->part_count >= 2);
    return r;
}

static void check_place(const struct fixture *f, const struct run_reader *r,
                        const struct map_entry *m, const struct place *model, uint64_t sector) {
    uint8_t owner = 0;
    if (m->kind == EXTENT_DATA)
        owner = owner_number(f, &run_reader_index(r)->volumes[m->ref.volume]);
    struct place p = place_of(m, owner, sector);
    assert_true(place_equal(&p, &model[sector]));
}

/* Everything that the run says is what the model says, and nothing is missing. */
static void check_whole(struct fixture *f, struct run_reader *r, const struct place *model,
                        uint32_t read_ahead) {
    struct run_iter it;
    uint64_t at = 0, entries = 0;
    int rc;
    run_iter_init(&it, r, read_ahead);
    while ((rc = run_iter_next(&it, NULL)) == 1) {
        for (; at < it.entry.sector; at++)
            assert_false(model[at].mapped);
        for (; at < it.entry.sector + it.entry.count; at++)
            check_place(f, r, &it.entry, model, at);
        entries++;
    }
    assert_int_equal(rc, 0);
    for (; at < SECTORS; at++)
        assert_false(model[at].mapped);
    assert_true(entries == run_reader_index(r)->entry_count);
    run_iter_release(&it);
}

static void check_lookups(struct fixture *f, struct run_reader *r, const struct place *model) {
    struct run_iter it;
    run_iter_init(&it, r, 1);
    for (int i = 0; i < 2000; i++) {
        uint64_t sector = rng(f, SECTORS);
        assert_int_equal(run_iter_seek(&it, sector, NULL), 0);
        int rc = run_iter_next(&it, NULL);
        assert_true(rc >= 0);
        if (rc == 1 && it.entry.sector <= sector) {
            assert_true(it.entry.sector + it.entry.count > sector);
            check_place(f, r, &it.entry, model, sector);
            continue;
        }
        uint64_t next = rc == 1 ? it.entry.sector : SECTORS;
        for (uint64_t s = sector; s < next; s++)
            assert_false(model[s].mapped);
    }
    run_iter_release(&it);
}

/* What a run charges objects with is what its entries take, object by object and part by part. */
static void check_usage(struct fixture *f, struct run_reader *r) {
    const struct run_index *x = run_reader_index(r);
    uint64_t wanted[VOLUMES][OBJECTS + 1] = {{0}};
    struct run_iter it;
    run_iter_init(&it, r, 4);
    while (run_iter_next(&it, NULL) == 1)
        if (it.entry.kind == EXTENT_DATA)
            wanted[owner_number(f, &x->volumes[it.entry.ref.volume])][it.entry.ref.seq] +=
                map_entry_charge(&it.entry);
    run_iter_release(&it);
    uint64_t *shared = xcalloc(MAX(x->usage_count, 1), sizeof *shared);
    for (size_t i = 0; i < x->part_count; i++) {
        struct run_share *shares;
        size_t count;
        assert_int_equal(run_reader_shares(r, i, &shares, &count, NULL), 0);
        for (size_t j = 0; j < count; j++) {
            assert_true(shares[j].number < x->usage_count);
            shared[shares[j].number] += shares[j].bytes;
        }
        free(shares);
    }
    for (size_t i = 0; i < x->usage_count; i++) {
        const struct run_usage *u = &x->usage[i];
        assert_true(u->bytes == shared[i]);
        if (run_usage_is_free(u))
            continue;
        uint64_t *want = &wanted[owner_number(f, &x->volumes[u->ref.volume])][u->ref.seq];
        assert_true(*want == u->bytes);
        *want = 0;
    }
    for (size_t i = 0; i < VOLUMES; i++)
        for (size_t j = 0; j <= OBJECTS; j++)
            assert_true(wanted[i][j] == 0);
    free(shared);
}

static void write_and_read(void *arg) {
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *r = random_run(f, model);
    check_whole(f, r, model, 1);
    check_whole(f, r, model, 3);
    check_whole(f, r, model, RUN_READ_AHEAD_MAX);
    check_lookups(f, r, model);
    check_usage(f, r);
    run_reader_unref(r);
    free(model);
}

static struct run_merge_options options(struct fixture *f, bool bottom) {
    return (struct run_merge_options){.env = f->env,
                                      .store = f->store,
                                      .own = f->keys[0],
                                      .shape = {.part_size = PART_SIZE},
                                      .bottom = bottom};
}

static void merge_runs(struct fixture *f, size_t count, bool bottom) {
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct place *one = xcalloc(SECTORS, sizeof *one);
    struct run_reader *runs[RUNS];
    for (size_t i = count; i-- > 0;) { /* the oldest first; runs[0] is the newest */
        memset(one, 0, SECTORS * sizeof *one);
        runs[i] = random_run(f, one);
        for (size_t s = 0; s < SECTORS; s++)
            if (one[s].mapped)
                model[s] = one[s];
    }
    for (size_t s = 0; bottom && s < SECTORS; s++)
        if (model[s].kind == EXTENT_HOLE)
            model[s] = (struct place){0};
    struct root_run run;
    struct err e = {0};
    struct run_merge_options o = options(f, bottom);
    int rc = run_merge(&o, runs, count, &run, NULL, NULL, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    struct run_reader *merged = open_reader(f, &run);
    check_whole(f, merged, model, 4);
    check_lookups(f, merged, model);
    check_usage(f, merged);
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
static void cut_many(struct fixture *f, struct run_reader *r, uint64_t kept, bool reuses) {
    struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0], (struct run_shape){0});
    struct map_entry m = {.sector = kept * EXTENT_SECTORS_MAX,
                          .count = (ENTRIES - kept) * EXTENT_SECTORS_MAX,
                          .kind = EXTENT_HOLE};
    struct root_run run;
    assert_int_equal(run_writer_add(w, &m, NULL, NULL), 0);
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    run_writer_free(w);
    struct run_reader *upper = open_reader(f, &run), *runs[] = {upper, r};
    struct run_merge_options o = options(f, true);
    struct run_merge_stats stats;
    o.shape = (struct run_shape){0};
    assert_int_equal(run_merge(&o, runs, 2, &run, NULL, &stats, NULL), 0);
    assert_int_equal(stats.parts_reused > 0, reuses);
    assert_int_equal(run.entry_count, kept);
    struct run_reader *merged = open_reader(f, &run);
    const struct run_index *before = run_reader_index(r), *x = run_reader_index(merged);
    assert_int_equal(x->usage_count, kept);
    for (size_t i = 0; i < kept; i++)
        assert_int_equal(x->usage[i].bytes, before->usage[i].bytes);
    run_reader_unref(merged);
    run_reader_unref(upper);
}

/* More than one part; entries that nothing can join. */
static void several_parts(void *arg) {
    struct fixture *f = arg;
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
    struct run_reader *r = open_reader(f, &run);
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
    struct fixture *f = arg;
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
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *r = random_run(f, model);
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
    struct fixture *f;
    struct run_reader *runs[2];
    int rc;
    bool ended;
};

static void merge_fiber(void *arg) {
    struct cancelled_merge *c = arg;
    struct root_run run;
    struct run_merge_options o = options(c->f, true);
    c->rc = run_merge(&o, c->runs, 2, &run, NULL, NULL, NULL);
    c->ended = true;
}

/* Cancelled after 0, 1, 2, ... turns it ends soon, with that error, and leaks nothing. */
static void cancel(void *arg) {
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct cancelled_merge c = {.f = f};
    c.runs[0] = random_run(f, model);
    c.runs[1] = random_run(f, model);
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

/* The last source without holes, as merges into the bottom leave it. */
static struct run_reader *random_bottom(struct fixture *f, struct place *model) {
    struct run_reader *r = random_run(f, model);
    struct run_merge_options o = options(f, true);
    struct root_run run;
    assert_int_equal(run_merge(&o, &r, 1, &run, NULL, NULL, NULL), 0);
    run_reader_unref(r);
    for (size_t i = 0; i < SECTORS; i++)
        if (model[i].kind == EXTENT_HOLE)
            model[i] = (struct place){0};
    return open_reader(f, &run);
}

/* Each request of a merge fails once, in turn: its error comes out, and what was merged before is
 * still whole. */
static void fault_sweep_of(struct fixture *f, bool bottom) {
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *runs[2];
    runs[1] = bottom ? random_bottom(f, model) : random_run(f, model);
    runs[0] = random_part(f, model, SECTORS / 3, SECTORS / 3 + 9000, VOLUMES);
    for (size_t i = 0; bottom && i < SECTORS; i++)
        if (model[i].kind == EXTENT_HOLE)
            model[i] = (struct place){0};
    struct root_run run;
    unsigned failures = 0;
    for (int rc = -1; rc < 0; failures++) {
        struct err e = {0};
        f->gate.requests = 0;
        f->gate.fail_at = failures + 1;
        struct run_merge_options o = options(f, bottom);
        rc = run_merge(&o, runs, 2, &run, NULL, NULL, &e);
        assert_true(rc == 0 || rc == -ERR_DENIED);
        assert_true(rc == 0 || strstr(e.text, "denied"));
    }
    f->gate.fail_at = 0;
    assert_true(failures > 4); /* a read of each source, a part, the index; then none */
    struct run_reader *merged = open_reader(f, &run);
    check_whole(f, merged, model, 4);
    run_reader_unref(merged);
    run_reader_unref(runs[0]);
    run_reader_unref(runs[1]);
    free(model);
}

static void fault_sweep(void *arg) {
    fault_sweep_of(arg, false);
    fault_sweep_of(arg, true);
}

/* --- into the bottom --- */

static struct run_reader *merge_into(struct fixture *f, struct run_reader *upper,
                                     struct run_reader *bottom, struct run_merge_stats *stats) {
    struct run_merge_options o = options(f, true);
    struct run_reader *runs[] = {upper, bottom};
    struct root_run run;
    struct err e = {0};
    if (run_merge(&o, runs, 2, &run, NULL, stats, &e) < 0)
        fail_msg("%s", e.text);
    return open_reader(f, &run);
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
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct place *newer = xcalloc(SECTORS, sizeof *newer);
    struct run_reader *bottom = random_bottom(f, model);
    size_t reused = 0;
    for (int round = 0; round < 60; round++) {
        uint64_t from = rng(f, SECTORS), to = MIN(from + 1 + rng(f, SECTORS / 16), SECTORS);
        memset(newer, 0, SECTORS * sizeof *newer);
        struct run_reader *upper = random_part(f, newer, from, to, round % 3 ? VOLUMES : 1);
        for (size_t i = 0; i < SECTORS; i++)
            if (newer[i].mapped)
                model[i] = newer[i].kind == EXTENT_HOLE ? (struct place){0} : newer[i];
        struct run_merge_stats stats;
        struct run_reader *merged = merge_into(f, upper, bottom, &stats);
        const struct run_index *x = run_reader_index(merged);
        assert_int_equal(parts_in_common(x, run_reader_index(bottom)), stats.parts_reused);
        reused += stats.parts_reused;
        check_whole(f, merged, model, 4);
        check_lookups(f, merged, model);
        check_usage(f, merged);
        size_t small = 0;
        for (size_t i = 0; i < x->part_count; i++) {
            uint64_t size = (uint64_t)x->parts[i].page_count * RUN_PAGE_SIZE;
            assert_true(size <= PART_SIZE * 3 / 2 + RUN_PAGE_SIZE);
            small += size < PART_SIZE / 4;
        }
        assert_true(small <= 2);
        assert_true(x->usage_count <= 2 * VOLUMES * OBJECTS);
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
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *bottom = random_bottom(f, model);
    const struct run_index *x = run_reader_index(bottom);
    for (int what = 0; what < 3; what++) {
        struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0],
                                              (struct run_shape){.part_size = PART_SIZE});
        struct map_entry m = {.sector = what == 1 ? x->parts[0].last_sector + 1 : 0,
                              .count = SECTORS,
                              .kind = what == 2 ? EXTENT_ZERO : EXTENT_HOLE};
        struct root_run run;
        assert_int_equal(run_writer_add(w, &m, NULL, NULL), 0);
        assert_int_equal(run_writer_finish(w, &run, NULL), 0);
        run_writer_free(w);
        struct run_reader *upper = open_reader(f, &run);
        struct run_reader *runs[] = {upper, bottom};
        struct run_merge_options o = options(f, true);
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
            struct run_reader *merged = open_reader(f, &run);
            check_usage(f, merged);
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
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *bottom = random_bottom(f, model);
    const struct run_index *x = run_reader_index(bottom);
    const struct run_part *p = &x->parts[1];
    struct run_reader *upper =
        random_part(f, model, p->first_sector, p->first_sector + 500, VOLUMES);
    struct run_reader *runs[] = {upper, bottom};
    struct run_merge_options o = options(f, true);
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
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *runs[3];
    for (size_t i = 3; i-- > 0;) /* in none of them a hole: they would not cover as data does */
        runs[i] = random_bottom(f, model);
    struct obj_ref gone[] = {{.kind = OBJ_LOG, .volume = 1, .seq = 7},
                             {.kind = OBJ_LOG, .volume = 0, .seq = 30},
                             {.kind = OBJ_LOG, .volume = 0, .seq = 3}};
    struct volume_key volumes[] = {f->keys[2], f->keys[0]}; /* a root has a table of its own */
    struct root root = {.volumes = volumes,
                        .volume_count = 2,
                        .evacuated = gone,
                        .evacuated_count = ARRAY_LEN(gone)};
    for (int what = 0; what < 2; what++) {
        struct run_merge_options o = options(f, what == 1);
        struct root_run run;
        o.evacuates = &root;
        assert_int_equal(run_merge(&o, runs, 3, &run, NULL, NULL, NULL), 0);
        struct run_reader *merged = open_reader(f, &run);
        const struct run_index *x = run_reader_index(merged);
        for (size_t i = 0; i < x->usage_count; i++) {
            uint8_t owner = owner_number(f, &x->volumes[x->usage[i].ref.volume]);
            uint64_t seq = x->usage[i].ref.seq;
            assert_false((owner == 0 && seq == 7) || (owner == 2 && (seq == 30 || seq == 3)));
        }
        check_usage(f, merged);
        run_reader_unref(merged);
    }
    for (size_t i = 0; i < 3; i++)
        run_reader_unref(runs[i]);
    free(model);
}

static void stopped(void *arg) {
    struct fixture *f = arg;
    struct place *model = xcalloc(SECTORS, sizeof *model);
    struct run_reader *r = random_run(f, model);
    struct run_merge_options o = options(f, true);
    struct root_run run;
    bool stop = true;
    o.stop = &stop;
    assert_int_equal(run_merge(&o, &r, 1, &run, NULL, NULL, NULL), -ERR_CANCELLED);
    run_reader_unref(r);
    free(model);
}

static void too_many_volumes(void *arg) {
    struct fixture *f = arg;
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
        struct fixture *f = *state;                                                                \
        loop_call(f->loop, fn, f);                                                                 \
    }
FIBER_TEST(test_write_and_read, write_and_read)
FIBER_TEST(test_merge, merge_many)
FIBER_TEST(test_several_parts, several_parts)
FIBER_TEST(test_joining, joining)
FIBER_TEST(test_damage, damage)
FIBER_TEST(test_cancel, cancel)
FIBER_TEST(test_fault_sweep, fault_sweep)
FIBER_TEST(test_levels, levels)
FIBER_TEST(test_covered, covered)
FIBER_TEST(test_damaged_shares, damaged_shares)
FIBER_TEST(test_evacuated, evacuated)
FIBER_TEST(test_stopped, stopped)
FIBER_TEST(test_too_many_volumes, too_many_volumes)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write_and_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_merge, setup, teardown),
        cmocka_unit_test_setup_teardown(test_several_parts, setup, teardown),
        cmocka_unit_test_setup_teardown(test_joining, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fault_sweep, setup, teardown),
        cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_covered, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged_shares, setup, teardown),
        cmocka_unit_test_setup_teardown(test_evacuated, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many_volumes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
