/* Runs on a store, against a plain array of sectors. */
#include "tests/support/run_rig.h"

#include <stdlib.h>

uint64_t run_rig_below(struct run_rig *f, uint64_t below) {
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
    struct run_gate *g = container_of(store, struct run_gate, base);
    if (++g->requests != g->fail_at) {
        objstore_submit(g->inner, req);
        return;
    }
    req->rc = err_set(&req->err, -ERR_DENIED, "'%s': denied", req->key);
    req->event.fn = answer_failed;
    env_post(store->env, &req->event);
}

static void gate_cancel(struct objstore *store, struct obj_request *req) {
    objstore_cancel(container_of(store, struct run_gate, base)->inner, req);
}

static const struct objstore_ops gate_ops = {.submit = gate_submit, .cancel = gate_cancel};

static void open_store(void *arg) {
    struct run_rig *f = arg;
    f->gate = (struct run_gate){.base = {.ops = &gate_ops, .env = f->env},
                                .inner = objstore_memory_open(f->env, f->memory)};
    f->store = &f->gate.base;
    f->pages = page_cache_new(f->env, f->store, 8 * RUN_PAGE_SIZE);
}

static void close_store(void *arg) {
    struct run_rig *f = arg;
    page_cache_free(f->pages);
    objstore_close(f->gate.inner);
}

int run_rig_setup(void **state) {
    static struct run_rig f;
    f = (struct run_rig){.loop = loop_new(1), .memory = memory_store_new(), .rng = 0x1234567};
    f.env = loop_env(f.loop);
    for (int i = 0; i < RUN_RIG_VOLUMES; i++)
        id_format_key(&f.keys[i], ID_VOLUME, "0123456789abcdef0123456789abcdef", 1 + (uint64_t)i);
    loop_thread_start(f.loop, "test");
    loop_call(f.loop, open_store, &f);
    *state = &f;
    return 0;
}

int run_rig_teardown(void **state) {
    struct run_rig *f = *state;
    loop_call(f->loop, close_store, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    memory_store_free(f->memory);
    return 0;
}

static struct run_place place_of(const struct map_entry *m, uint8_t owner, uint64_t sector) {
    struct run_place p = {.kind = m->kind, .mapped = true};
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

static bool place_equal(const struct run_place *a, const struct run_place *b) {
    return a->mapped == b->mapped && a->kind == b->kind && a->owner == b->owner &&
           a->in_frame == b->in_frame && a->len == b->len && a->off == b->off && a->seq == b->seq;
}

uint8_t run_rig_owner(const struct run_rig *f, const struct volume_key *key) {
    for (uint8_t i = 0; i < RUN_RIG_VOLUMES; i++)
        if (volume_key_equal(&f->keys[i], key))
            return i;
    fail();
    return 0;
}

struct run_reader *run_rig_open(struct run_rig *f, const struct root_run *run) {
    struct run_reader *r = NULL;
    struct err e = {0};
    int rc = run_reader_open(f->env, f->store, f->pages, run, f->keys, RUN_RIG_VOLUMES, &r, &e);
    if (rc < 0)
        fail_msg("%s", e.text);
    return r;
}

struct run_reader *run_rig_random_part(struct run_rig *f, struct run_place *model, uint64_t from,
                                       uint64_t to, uint8_t owners) {
    struct run_writer *w = run_writer_new(f->env, f->store, &f->keys[0],
                                          (struct run_shape){.part_size = RUN_RIG_PART_SIZE});
    uint64_t sector = from + run_rig_below(f, 100);
    while (sector < to) {
        uint16_t lens[EXTENT_FRAMES_MAX];
        struct map_entry m = {
            .sector = sector,
            .kind = (uint8_t)(run_rig_below(f, 3) ? EXTENT_DATA : 1 + run_rig_below(f, 2))};
        uint64_t longest = run_rig_below(f, 200) ? 64 : EXTENT_SECTORS_MAX - FRAME_SECTORS_MAX;
        uint64_t left = to - sector;
        m.count = 1 + run_rig_below(f, MIN(longest, left));
        uint8_t owner = (uint8_t)run_rig_below(f, owners);
        if (m.kind == EXTENT_DATA) {
            m.skip = (uint8_t)(run_rig_below(f, 2) ? 0 : run_rig_below(f, FRAME_SECTORS_MAX));
            m.len_count = (uint16_t)extent_frames(m.skip + m.count);
            m.off = (uint32_t)(SEGMENT_HEADER_SIZE + run_rig_below(f, 1 << 20));
            m.ref = (struct obj_ref){.kind = OBJ_LOG, .seq = 1 + run_rig_below(f, RUN_RIG_OBJECTS)};
            m.lens = lens;
            for (size_t i = 0; i < m.len_count; i++)
                lens[i] = (uint16_t)(FRAME_HEADER_SIZE + 1 + run_rig_below(f, 16000));
        }
        assert_int_equal(
            run_writer_add(w, &m, m.kind == EXTENT_DATA ? &f->keys[owner] : NULL, NULL), 0);
        for (uint64_t s = sector; s < sector + m.count; s++)
            model[s] = place_of(&m, owner, s);
        sector += m.count + (run_rig_below(f, 3) ? 0 : run_rig_below(f, 40));
    }
    struct root_run run;
    assert_int_equal(run_writer_finish(w, &run, NULL), 0);
    run_writer_free(w);
    return run_rig_open(f, &run);
}

struct run_reader *run_rig_random(struct run_rig *f, struct run_place *model) {
    struct run_reader *r = run_rig_random_part(f, model, 0, RUN_RIG_SECTORS, RUN_RIG_VOLUMES);
    assert_true(run_reader_index(r)->entry_count > 50);
    assert_true(run_reader_index(r)->part_count >= 2);
    return r;
}

static void check_place(const struct run_rig *f, const struct run_reader *r,
                        const struct map_entry *m, const struct run_place *model, uint64_t sector) {
    uint8_t owner = 0;
    if (m->kind == EXTENT_DATA)
        owner = run_rig_owner(f, &run_reader_index(r)->volumes[m->ref.volume]);
    struct run_place p = place_of(m, owner, sector);
    assert_true(place_equal(&p, &model[sector]));
}

void run_rig_check_whole(struct run_rig *f, struct run_reader *r, const struct run_place *model,
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
    for (; at < RUN_RIG_SECTORS; at++)
        assert_false(model[at].mapped);
    assert_true(entries == run_reader_index(r)->entry_count);
    run_iter_release(&it);
}

void run_rig_check_lookups(struct run_rig *f, struct run_reader *r, const struct run_place *model) {
    struct run_iter it;
    run_iter_init(&it, r, 1);
    for (int i = 0; i < 2000; i++) {
        uint64_t sector = run_rig_below(f, RUN_RIG_SECTORS);
        assert_int_equal(run_iter_seek(&it, sector, NULL), 0);
        int rc = run_iter_next(&it, NULL);
        assert_true(rc >= 0);
        if (rc == 1 && it.entry.sector <= sector) {
            assert_true(it.entry.sector + it.entry.count > sector);
            check_place(f, r, &it.entry, model, sector);
            continue;
        }
        uint64_t next = rc == 1 ? it.entry.sector : RUN_RIG_SECTORS;
        for (uint64_t s = sector; s < next; s++)
            assert_false(model[s].mapped);
    }
    run_iter_release(&it);
}

void run_rig_check_usage(struct run_rig *f, struct run_reader *r) {
    const struct run_index *x = run_reader_index(r);
    uint64_t wanted[RUN_RIG_VOLUMES][RUN_RIG_OBJECTS + 1] = {{0}};
    struct run_iter it;
    run_iter_init(&it, r, 4);
    while (run_iter_next(&it, NULL) == 1)
        if (it.entry.kind == EXTENT_DATA)
            wanted[run_rig_owner(f, &x->volumes[it.entry.ref.volume])][it.entry.ref.seq] +=
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
        uint64_t *want = &wanted[run_rig_owner(f, &x->volumes[u->ref.volume])][u->ref.seq];
        assert_true(*want == u->bytes);
        *want = 0;
    }
    for (size_t i = 0; i < RUN_RIG_VOLUMES; i++)
        for (size_t j = 0; j <= RUN_RIG_OBJECTS; j++)
            assert_true(wanted[i][j] == 0);
    free(shared);
}

struct run_merge_options run_rig_options(struct run_rig *f, bool bottom) {
    return (struct run_merge_options){.env = f->env,
                                      .store = f->store,
                                      .own = f->keys[0],
                                      .shape = {.part_size = RUN_RIG_PART_SIZE},
                                      .bottom = bottom};
}

struct run_reader *run_rig_random_bottom(struct run_rig *f, struct run_place *model) {
    struct run_reader *r = run_rig_random(f, model);
    struct run_merge_options o = run_rig_options(f, true);
    struct root_run run;
    assert_int_equal(run_merge(&o, &r, 1, &run, NULL, NULL, NULL), 0);
    run_reader_unref(r);
    for (size_t i = 0; i < RUN_RIG_SECTORS; i++)
        if (model[i].kind == EXTENT_HOLE)
            model[i] = (struct run_place){0};
    return run_rig_open(f, &run);
}
