/* Restore in place: what the volume holds afterwards, who is refused, and a restorer that dies at
 * every request, finished by whoever comes next. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_test.h"

enum { STEPS_MAX = 60 };
static const uint64_t GIB = UINT64_C(1) << 30;

POOL_TEST_SETUP(5)

/* "v" of 1 GiB: 3 segments are in snapshot "early", 7 and 2 GiB in "late", 9 in the volume, which
 * is closed and published to nobody. */
struct story {
    char volume[ID_MAX], early[ID_MAX], late[ID_MAX];
    struct volume_key key;
};

static uint64_t publish(struct pool_fixture *f, const char *id) {
    struct err e;
    struct volume_info v;
    ok(catalog_volume_publish(&f->catalog, id, "node-a", false, false, &v, &e), &e);
    uint64_t epoch = v.record.publish_epoch;
    volume_info_release(&v);
    return epoch;
}

static void write_and_close(struct pool_fixture *f, const struct story *s, size_t segments) {
    struct err e;
    uint64_t epoch = publish(f, s->volume);
    pool_fixture_write(f, &s->key, (uint32_t)epoch, segments, true);
    ok(catalog_volume_unpublish(&f->catalog, s->volume, "node-a", &e), &e);
}

static void cut(struct pool_fixture *f, const struct story *s, const char *name, char ret[ID_MAX]) {
    struct err e;
    struct snapshot_info i;
    ok(catalog_snapshot_create(&f->catalog, name, s->volume, &i, &e), &e);
    memcpy(ret, i.id, ID_MAX);
    snapshot_info_release(&i);
}

static void tell(struct pool_fixture *f, struct story *s) {
    struct err e;
    struct volume_info v;
    bool needs_node;
    ok(catalog_node_register(&f->catalog, "node-a", "1", &e), &e);
    ok(catalog_volume_create(&f->catalog, &(struct volume_create){.name = "v", .size_bytes = GIB},
                             &v, &e),
       &e);
    memcpy(s->volume, v.id, ID_MAX);
    s->key = v.record.key;
    volume_info_release(&v);
    write_and_close(f, s, 3);
    cut(f, s, "early", s->early);
    ok(catalog_volume_expand(&f->catalog, s->volume, 2 * GIB, 0, &v, &needs_node, &e), &e);
    volume_info_release(&v);
    write_and_close(f, s, 4);
    cut(f, s, "late", s->late);
    write_and_close(f, s, 2);
}

static size_t segments_of(const struct root *r) {
    uint64_t count = 0;
    for (size_t i = 0; i < r->tail_count; i++) {
        assert_true(r->tail[i].first + r->tail[i].count <= r->next_seq);
        count += r->tail[i].count;
    }
    return (size_t)count;
}

/* Segments in the newest manifest, which is closed at the publish epoch of a record that says ready
 * and no node. */
static size_t at_rest(struct pool_fixture *f, const struct story *s) {
    struct err e;
    struct volume_record r;
    struct manifest m;
    ok(volume_record_by_id(&f->catalog, s->volume, &r, &e), &e);
    assert_int_equal(r.state, VOLUME_READY);
    assert_string_equal(r.node, "");
    assert_string_equal(r.restore_snapshot, "");
    ok(manifest_newest(f->store, &s->key, &m, &e), &e);
    assert_true(m.closed);
    assert_int_equal(epoch_publish(m.epoch), r.publish_epoch);
    assert_int_equal(m.size_bytes, 2 * GIB);
    size_t count = segments_of(&m.root);
    manifest_release(&m);
    volume_record_release(&r);
    return count;
}

static int restore(struct pool_fixture *f, const char *snapshot, const char *volume,
                   struct err *e) {
    struct volume_info v;
    int rc = catalog_snapshot_restore(&f->catalog, snapshot, volume, &v, e);
    if (rc == 0) {
        assert_string_equal(v.id, volume);
        assert_int_equal(v.size_bytes, 2 * GIB);
        assert_true(v.closed);
        assert_int_equal(v.record.state, VOLUME_READY);
        volume_info_release(&v);
    }
    return rc;
}

static void there_and_back(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    struct err e;
    tell(f, &s);
    assert_int_equal(at_rest(f, &s), 9);
    size_t log = pool_fixture_count(f, "/log/");

    uint64_t before = pool_fixture_requests(f);
    ok(restore(f, s.early, s.volume, &e), &e);
    assert_int_equal(pool_fixture_requests(f) - before, 18);
    assert_int_equal(at_rest(f, &s), 3);
    assert_int_equal(pool_fixture_count(f, "/log/"), log + 1); /* a fence, no data */

    ok(restore(f, s.late, s.volume, &e), &e); /* it has stayed */
    assert_int_equal(at_rest(f, &s), 7);
    ok(restore(f, s.early, s.volume, &e), &e);
    ok(restore(f, s.early, s.volume, &e), &e); /* again: the same */
    assert_int_equal(at_rest(f, &s), 3);

    /* Life goes on behind it, in numbers of its own; nothing of the old tail comes back. */
    write_and_close(f, &s, 5);
    assert_int_equal(at_rest(f, &s), 8);
    char now[ID_MAX];
    cut(f, &s, "now", now);
    ok(restore(f, s.late, s.volume, &e), &e);
    ok(restore(f, now, s.volume, &e), &e);
    assert_int_equal(at_rest(f, &s), 8);
}

static void test_there_and_back(void **state) {
    pool_fixture_run(*state, there_and_back, *state);
}

static void condemn_everything(struct pool_fixture *f, const struct volume_key *v) {
    struct err e;
    struct manifest m;
    ok(manifest_newest(f->store, v, &m, &e), &e);
    m.number++;
    free(m.condemned);
    m.condemned = NEW(struct condemned_range);
    m.condemned[0] = (struct condemned_range){.kind = OBJ_LOG, .first = 1, .count = 1000};
    m.condemned_count = 1;
    catalog_new_id(&f->catalog, &m.nonce);
    ok(manifest_put(f->store, v, &m, &e), &e);
    manifest_release(&m);
}

/* What the last writer condemned and the snapshot held is needed again. */
static void condemned(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    struct err e;
    struct manifest m;
    tell(f, &s);
    condemn_everything(f, &s.key);
    ok(restore(f, s.early, s.volume, &e), &e);
    ok(manifest_newest(f->store, &s.key, &m, &e), &e);
    assert_int_equal(m.condemned_count, 0);
    manifest_release(&m);
}

static void test_condemned(void **state) {
    pool_fixture_run(*state, condemned, *state);
}

static void refused(void *arg) {
    struct pool_fixture *f = arg;
    struct catalog *c = &f->catalog;
    struct story s;
    struct err e;
    struct volume_info w;
    tell(f, &s);
    ok(catalog_volume_create(c, &(struct volume_create){.name = "w", .source = s.early}, &w, &e),
       &e);
    uint64_t before = memory_store_count(f->memory);
    assert_int_equal(restore(f, s.early, w.id, &e), -ERR_INVALID);
    assert_non_null(strstr(e.text, "clone"));
    assert_int_equal(restore(f, "snap-x", s.volume, &e), -ERR_NOT_FOUND);
    assert_int_equal(restore(f, s.volume, s.volume, &e), -ERR_NOT_FOUND);
    assert_int_equal(restore(f, s.early, "x", &e), -ERR_NOT_FOUND);
    assert_int_equal(memory_store_count(f->memory), before);

    publish(f, s.volume);
    before = memory_store_count(f->memory);
    assert_int_equal(restore(f, s.early, s.volume, &e), -ERR_IN_USE);
    assert_non_null(strstr(e.text, "node-a"));
    assert_int_equal(memory_store_count(f->memory), before);
    ok(catalog_volume_unpublish(c, s.volume, "", &e), &e);

    ok(catalog_snapshot_delete(c, s.early, &e), &e);
    before = memory_store_count(f->memory);
    assert_int_equal(restore(f, s.early, s.volume, &e), -ERR_NOT_FOUND);
    assert_int_equal(memory_store_count(f->memory), before);
    assert_int_equal(at_rest(f, &s), 9);

    ok(catalog_volume_delete(c, s.volume, false, &e), &e);
    assert_int_equal(restore(f, s.late, s.volume, &e), -ERR_NOT_FOUND);
    volume_info_release(&w);
}

static void test_refused(void **state) {
    pool_fixture_run(*state, refused, *state);
}

/* --- deaths --- */

enum finisher {
    SAME_COMMAND,
    OTHER_SNAPSHOT,
    PUBLISH,
    UNPUBLISH,
    CLONE,
    SNAPSHOT,
    SNAPSHOT_ELSEWHERE,
    DELETE,
    FINISHERS
};

struct stage {
    struct pool_fixture f;
    struct story story;
    enum finisher who;
    bool snapshot_goes;
    int rc;
    struct err err;
    bool ended;
};

static void set_up(void *arg) {
    struct stage *st = arg;
    tell(&st->f, &st->story);
}

static void run_restore(void *arg) {
    struct stage *st = arg;
    st->ended = false;
    st->rc = restore(&st->f, st->story.early, st->story.volume, &st->err);
    st->ended = true;
}

/* Asked by another controller, so that this one's knows no more than before. */
static enum volume_state state_of(struct stage *st) {
    struct catalog other;
    struct err e;
    struct volume_record r;
    catalog_init(&other, st->f.env, st->f.store, "pool");
    ok(volume_record_by_id(&other, st->story.volume, &r, &e), &e);
    enum volume_state state = r.state;
    volume_record_release(&r);
    return state;
}

/* Segments in a clone of the volume, which is made now. */
static int make_clone(struct pool_fixture *f, const struct story *s, size_t *ret_segments) {
    struct err e;
    struct volume_info v;
    struct manifest m;
    struct volume_create req = {.name = "clone", .source = s->volume};
    int rc = catalog_volume_create(&f->catalog, &req, &v, &e);
    if (rc < 0)
        return rc;
    ok(manifest_newest(f->store, &v.record.key, &m, &e), &e);
    *ret_segments = segments_of(&m.root);
    manifest_release(&m);
    volume_info_release(&v);
    return 0;
}

/* ... in a snapshot. */
static int make_snapshot(struct catalog *c, const struct story *s, size_t *ret_segments) {
    struct err e;
    struct snapshot_info i;
    struct pin_root p;
    int rc = catalog_snapshot_create(c, "new", s->volume, &i, &e);
    if (rc < 0)
        return rc;
    ok(pin_root_get(c->store, &i.record.source, &i.record.pin, &p, &e), &e);
    *ret_segments = segments_of(&p.root);
    pin_root_release(&p);
    snapshot_info_release(&i);
    return 0;
}

/* Who gave up half way has said what comes of it. */
static void told(void *arg) {
    struct stage *st = arg;
    if (state_of(st) == VOLUME_RESTORING && !(st->ended && st->rc == 0))
        assert_non_null(strstr(st->err.text, "next finishes it"));
}

static void finish(void *arg) {
    struct stage *st = arg;
    struct catalog *c = &st->f.catalog, elsewhere;
    catalog_init(&elsewhere, st->f.env, st->f.store, "pool");
    const struct story *s = &st->story;
    struct err e;
    bool begun = state_of(st) == VOLUME_RESTORING;
    bool through = st->ended && st->rc == 0;
    size_t all = 9, some = 3, found;
    if (st->snapshot_goes)
        ok(catalog_snapshot_delete(c, s->early, &e), &e);
    switch (st->who) {
    case SAME_COMMAND: {
        int rc = restore(&st->f, s->early, s->volume, &e);
        found = at_rest(&st->f, s);
        if (rc == 0)
            assert_int_equal(found, some);
        else
            assert_true(rc == -ERR_NOT_FOUND && st->snapshot_goes);
        break;
    }
    case OTHER_SNAPSHOT:
        ok(restore(&st->f, s->late, s->volume, &e), &e);
        assert_int_equal(at_rest(&st->f, s), 7);
        return;
    case PUBLISH:
        publish(&st->f, s->volume);
        assert_int_equal(state_of(st), VOLUME_READY);
        struct manifest m;
        ok(manifest_newest(st->f.store, &s->key, &m, &e), &e);
        found = segments_of(&m.root);
        manifest_release(&m);
        break;
    case UNPUBLISH:
        ok(catalog_volume_unpublish(c, s->volume, "", &e), &e);
        found = at_rest(&st->f, s);
        break;
    case CLONE:
        assert_int_equal(make_clone(&st->f, s, &found), 0);
        assert_int_equal(state_of(st), VOLUME_READY);
        break;
    case SNAPSHOT:
    case SNAPSHOT_ELSEWHERE:
        assert_int_equal(make_snapshot(st->who == SNAPSHOT ? c : &elsewhere, s, &found), 0);
        assert_int_equal(state_of(st), VOLUME_READY);
        break;
    default:
        ok(catalog_volume_delete(c, s->volume, false, &e), &e);
        return;
    }
    if (through || (begun && !st->snapshot_goes))
        assert_int_equal(found, some);
    else
        assert_true(found == all || found == some); /* never a mix */
}

/* Did the restore come through before request n? */
static bool die_at(uint64_t n, enum fault_kind how, enum finisher who, bool snapshot_goes) {
    static struct stage st;
    st = (struct stage){.who = who, .snapshot_goes = snapshot_goes};
    pool_fixture_init(&st.f, n);
    pool_fixture_run(&st.f, set_up, &st);
    struct fault_rule rule = {.kind = how, .nth = n, .times = 1};
    objstore_fault_add(st.f.faults, &rule);
    fiber_start(st.f.env, run_restore, &st);
    virtual_env_run(&st.f.venv);
    bool through = st.ended;
    if (!through) {
        fiber_cancel_all(st.f.env);
        virtual_env_run(&st.f.venv);
        assert_int_equal(st.rc, -ERR_CANCELLED);
    }
    objstore_fault_clear(st.f.faults);
    pool_fixture_run(&st.f, told, &st);
    pool_fixture_run(&st.f, finish, &st);
    pool_fixture_release(&st.f);
    return through;
}

static void test_deaths(void **state) {
    (void)state;
    for (int who = 0; who < FINISHERS; who++) {
        for (int goes = 0; goes < 2; goes++) {
            uint64_t n = 1;
            for (bool through = false; !through; n++) {
                assert_true(n < STEPS_MAX);
                (void)die_at(n, FAULT_HANG, (enum finisher)who, goes);
                through = die_at(n, FAULT_HANG_ANSWER, (enum finisher)who, goes);
            }
            assert_int_equal(n, 18 + 2);
        }
    }
}

/* --- a snapshot that cannot be read --- */

static void unreadable(void *arg) {
    struct pool_fixture *f = arg;
    struct story s;
    struct err e;
    struct snapshot_info i;
    char key[KEY_MAX];
    tell(f, &s);
    ok(catalog_snapshot_get(&f->catalog, s.early, &i, &e), &e);
    key_pin_root(key, &s.key, &i.record.pin);
    memory_store_replace(f->memory, key, view_of_str("{}"));
    assert_int_equal(restore(f, s.early, s.volume, &e), -ERR_CORRUPT);
    assert_non_null(strstr(e.text, "pins/"));
    assert_int_equal(at_rest(f, &s), 9);
    write_and_close(f, &s, 1); /* and it is of use */
    assert_int_equal(at_rest(f, &s), 10);
    snapshot_info_release(&i);
}

static void test_unreadable(void **state) {
    pool_fixture_run(*state, unreadable, *state);
}

/* --- a snapshot that goes before the volume is ours --- */

static void set_up_slow(void *arg) {
    struct stage *st = arg;
    struct fault_rule rule = {.kind = FAULT_DELAY,
                              .verbs = 1u << OBJ_PUT,
                              .key_part = "/manifest/",
                              .times = 1,
                              .delay_us_min = 60 * 1000 * 1000,
                              .delay_us_max = 60 * 1000 * 1000};
    tell(&st->f, &st->story);
    objstore_fault_add(st->f.delays, &rule);
}

/* A collector may still be at work, and delete what the snapshot held. */
static void delete_meanwhile(void *arg) {
    struct stage *st = arg;
    struct err e;
    fiber_sleep_us(st->f.env, 1000 * 1000);
    assert_false(st->ended);
    ok(catalog_snapshot_delete(&st->f.catalog, st->story.early, &e), &e);
}

static void nothing_changed(void *arg) {
    struct stage *st = arg;
    assert_int_equal(st->rc, -ERR_NOT_FOUND);
    assert_int_equal(at_rest(&st->f, &st->story), 9);
}

static void test_root_behind_open(void **state) {
    (void)state;
    static struct stage st;
    st = (struct stage){0};
    pool_fixture_init(&st.f, 1);
    pool_fixture_run(&st.f, set_up_slow, &st);
    fiber_start(st.f.env, run_restore, &st);
    fiber_start(st.f.env, delete_meanwhile, &st);
    virtual_env_run(&st.f.venv);
    assert_true(st.ended);
    pool_fixture_run(&st.f, nothing_changed, &st);
    pool_fixture_release(&st.f);
}

/* --- several at once --- */

struct crowd {
    struct pool_fixture f;
    struct story story;
    int rc[5];
    size_t cloned, cut; /* segments */
};

static void crowd_set_up(void *arg) {
    struct crowd *c = arg;
    tell(&c->f, &c->story);
}
static void crowd_restore(struct crowd *c, const char *snapshot, int *ret_rc) {
    struct err e;
    struct volume_info v;
    *ret_rc = catalog_snapshot_restore(&c->f.catalog, snapshot, c->story.volume, &v, &e);
    if (*ret_rc == 0)
        volume_info_release(&v);
}
static void crowd_early(void *arg) {
    struct crowd *c = arg;
    crowd_restore(c, c->story.early, &c->rc[0]);
}
static void crowd_late(void *arg) {
    struct crowd *c = arg;
    crowd_restore(c, c->story.late, &c->rc[1]);
}
static void crowd_publish(void *arg) {
    struct crowd *c = arg;
    struct err e;
    struct volume_info v;
    c->rc[2] =
        catalog_volume_publish(&c->f.catalog, c->story.volume, "node-a", false, false, &v, &e);
    if (c->rc[2] == 0)
        volume_info_release(&v);
}

static void crowd_clone(void *arg) {
    struct crowd *c = arg;
    c->rc[3] = make_clone(&c->f, &c->story, &c->cloned);
}
static void crowd_cut(void *arg) {
    struct crowd *c = arg;
    c->rc[4] = make_snapshot(&c->f.catalog, &c->story, &c->cut);
}

static bool is_whole(size_t segments) {
    return segments == 9 || segments == 3 || segments == 7;
}

static void crowd_end(void *arg) {
    struct crowd *c = arg;
    struct err e;
    for (int i = 0; i < 5; i++)
        assert_true(c->rc[i] == 0 || c->rc[i] == -ERR_IN_USE || c->rc[i] == -ERR_BUSY);
    ok(catalog_volume_unpublish(&c->f.catalog, c->story.volume, "", &e), &e);
    size_t found = at_rest(&c->f, &c->story);
    bool one = c->rc[0] == 0, other = c->rc[1] == 0;
    if (one || other)
        assert_true((one && found == 3) || (other && found == 7));
    else
        assert_true(is_whole(found));
    assert_true(c->rc[3] < 0 || is_whole(c->cloned));
    assert_true(c->rc[4] < 0 || is_whole(c->cut));
}

static void test_crowd(void **state) {
    (void)state;
    static struct crowd c;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        c = (struct crowd){0};
        pool_fixture_init(&c.f, seed);
        pool_fixture_run(&c.f, crowd_set_up, &c);
        pool_fixture_jitter(&c.f);
        fiber_start(c.f.env, crowd_early, &c);
        fiber_start(c.f.env, crowd_late, &c);
        fiber_start(c.f.env, crowd_publish, &c);
        fiber_start(c.f.env, crowd_clone, &c);
        fiber_start(c.f.env, crowd_cut, &c);
        virtual_env_run(&c.f.venv);
        pool_fixture_run(&c.f, crowd_end, &c);
        pool_fixture_release(&c.f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_there_and_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_condemned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unreadable, setup, teardown),
        cmocka_unit_test(test_root_behind_open),
        cmocka_unit_test(test_deaths),
        cmocka_unit_test(test_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
