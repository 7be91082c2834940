/* The fault sweep: the whole life of a volume, in which the Nth request to the store goes wrong,
 * for N = 1, 2, ... until the story comes through untouched.
 *
 *   refused     request N is answered with an error; nothing happened
 *   lost        request N is carried out, its answer is an error
 *   killed      from N on the store answers with errors; then the process is killed. Its journal
 *               stays
 *   node dies   N is carried out, neither it nor any later one is answered; then process and
 *               journal are gone
 *   damaged     the Nth answer with bytes in it has one bit that is wrong
 *   cut short   the Nth answer with bytes in it lacks its second half
 *
 * What is damaged is read again, or an error: then the process gives up, as if it was killed. Never
 * is it taken for what was stored.
 *
 * After a kill another process goes on with the step that was under way, as sidecars and kubelet
 * do. Content is compared at every open with what was acknowledged (P1, P2, with a journal P3),
 * fsck looks at the pool after every kill and at the end, and when everything is deleted only what
 * is never deleted may be left.
 *
 * Takes as many N as there is time for; with PORTALBD_SWEEP=all every one, with PORTALBD_SWEEP=N
 * only that one. */
#include "tests/support/test.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "common/log.h"
#include "portalbd/catalog/background.h"
#include "portalbd/catalog/fsck.h"
#include "portalbd/volume/volume.h"
#include "tests/support/pool_fixture.h"
#include "tests/support/ram_journal.h"
#include "tests/support/sector_model.h"

enum { SECONDS_EACH = 8, REQUESTS_MAX = 20000, JOURNAL_SIZE = 4 * 1024 * 1024 };
enum { MIB_SECTORS = 1024 * 1024 / SECTOR_SIZE };
#define SLICE_US (UINT64_C(20) * 1000 * 1000)

struct vol {
    char name[16];
    char id[ID_MAX];
    struct volume_key key;
    struct sector_model model;
};

struct snap {
    char id[ID_MAX];
    struct volume_key source;
    struct random_id pin;
    struct sector_model model; /* what its content may be: once it was looked at, what it is */
};

struct story {
    struct pool_fixture f;
    struct ram_journal journal;
    bool owned; /* the journal is the one that the open volume's manifest names */
    struct vol vol, clone;
    struct snap early, live;
    struct volume *v; /* the open one */
    uint32_t random;
    uint64_t checkpoints, merges, moves, rounds, deleted; /* by all daemons */
    size_t step;                                          /* that is under way */
    struct fiber *fiber;
    bool killed, ended;
    bool damage;      /* an answer was damaged, or will be, and nobody has noticed so far */
    uint64_t seen;    /* errors that say so */
    const char *what; /* for messages */
    uint64_t n;
};

/* --- outcomes --- */

/* What was damaged once is whole when somebody looks again. */
static bool is_damage(struct story *st) {
    bool yes = st->damage && objstore_fault_hits(st->f.faults) > 0;
    st->damage = st->damage && !yes;
    st->seen += yes;
    return yes;
}

/* False: we were killed, or give up. Any other error is a finding. */
static bool fine(struct story *st, int rc, const struct err *e) {
    if (rc == 0)
        return true;
    if (!st->killed && !is_damage(st))
        fail_msg("%s %" PRIu64 ", step %zu: %s: %s", st->what, st->n, st->step, err_code_name(rc),
                 e->text);
    return false;
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void drop(struct story *st) {
    struct fiber_done freed;
    if (!st->v)
        return;
    struct volume_status s;
    volume_status(st->v, &s);
    st->checkpoints += s.checkpoints;
    st->merges += s.merges;
    st->moves += s.gc_moves;
    st->rounds += s.gc_rounds;
    st->deleted += s.gc_objects_deleted;
    fiber_done_init(&freed);
    volume_free(st->v, on_freed, &freed);
    st->v = NULL;
    fiber_done_wait_always(st->f.env, &freed);
}

/* --- requests of a client --- */

struct call {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct call, req)->done);
}

/* In a process that is killed the volume goes, and the request with it. */
static bool io(struct story *st, enum bd_op op, uint64_t sector, uint64_t count, uint8_t *data) {
    struct err e = {0};
    struct call c = {
        .req = {
            .op = op, .off = sector * SECTOR_SIZE, .len = count * SECTOR_SIZE, .done = on_done}};
    if (op == BD_READ)
        c.req.read_buf = data;
    else
        c.req.write_data = data;
    fiber_done_init(&c.done);
    if (!bd_submit(volume_blockdev(st->v), &c.req)) {
        if (fiber_done_wait(st->f.env, &c.done) < 0)
            drop(st);
        fiber_done_wait_always(st->f.env, &c.done);
    }
    return fine(st, c.req.rc, &e);
}

static uint32_t draw(struct story *st, uint32_t below) {
    st->random = st->random * 1664525 + 1013904223;
    return (st->random >> 8) % below;
}

static bool flush(struct story *st, struct vol *vol) {
    size_t count = vol->model.count;
    if (!io(st, BD_FLUSH, 0, 0, NULL))
        return false;
    vol->model.flushed = count;
    return true;
}

static bool write_one(struct story *st, struct vol *vol, unsigned i) {
    static uint8_t data[32 * SECTOR_SIZE];
    enum bd_op op = i % 9 == 8 ? BD_TRIM : i % 13 == 12 ? BD_WRITE_ZEROES : BD_WRITE;
    uint32_t sectors = (uint32_t)(bd_size_bytes(volume_blockdev(st->v)) / SECTOR_SIZE);
    uint32_t count = 1 + draw(st, op == BD_WRITE ? 32 : 200);
    uint32_t sector = draw(st, sectors - count);
    const struct sector_op *o = sector_model_add(&vol->model, sector, count, op == BD_WRITE);
    sector_model_fill(data, o);
    if (!io(st, op, sector, count, op == BD_WRITE ? data : NULL))
        return false;
    vol->model.acked = vol->model.count;
    return true;
}

static bool read_some(struct story *st, const struct vol *vol) {
    static uint8_t data[64 * SECTOR_SIZE];
    uint32_t sectors = (uint32_t)(bd_size_bytes(volume_blockdev(st->v)) / SECTOR_SIZE);
    uint32_t sector = draw(st, sectors - 64);
    if (!io(st, BD_READ, sector, 64, data))
        return false;
    sector_model_check(&vol->model, sector, 64, data);
    return true;
}

static bool write_some(struct story *st, struct vol *vol, unsigned writes) {
    for (unsigned i = 0; i < writes; i++) {
        if (!write_one(st, vol, i))
            return false;
        if (i % 5 == 4 && !flush(st, vol))
            return false;
        if (i % 5 == 4 && fiber_sleep_us(st->f.env, 10000) < 0) /* GC has its turn */
            return false;
        if (i % 7 == 6 && !read_some(st, vol))
            return false;
    }
    return true;
}

/* All of the open volume, which must be a prefix of what was written, at least up to `from`. */
static bool read_all(struct story *st, struct sector_model *model, size_t from) {
    static uint8_t data[SECTOR_MODEL_SECTORS * SECTOR_SIZE];
    uint64_t sectors = bd_size_bytes(volume_blockdev(st->v)) / SECTOR_SIZE;
    assert_true(sectors <= SECTOR_MODEL_SECTORS);
    memset(data, 0, sizeof data);
    for (uint64_t at = 0; at < sectors; at += 128)
        if (!io(st, BD_READ, at, MIN(sectors - at, (uint64_t)128), data + at * SECTOR_SIZE))
            return false;
    if (!sector_model_settle(model, from, data))
        fail_msg("%s %" PRIu64 ", step %zu: not a prefix of what was written", st->what, st->n,
                 st->step);
    return true;
}

/* --- a daemon's life --- */

static void on_owned(void *arg) {
    struct story *st = arg;
    st->owned = true;
}

static struct volume_config config_of(struct story *st, const struct volume_key *key) {
    return (struct volume_config){.env = st->f.env,
                                  .store = st->f.store,
                                  .key = *key,
                                  .cache_size = 64 * 1024,
                                  .segment_size = 16 * 1024,
                                  .checkpoint_segments = 5,
                                  .runs_max = 3,
                                  .map_part_size = 8 * 1024,
                                  .gc_delay_us = 1000,
                                  .gc_move_bytes = 16 * 1024};
}

static bool attach(struct story *st, struct vol *vol) {
    struct err e = {0};
    struct volume_info i;
    if (!fine(st, catalog_volume_publish(&st->f.catalog, vol->id, "node-a", false, false, &i, &e),
              &e))
        return false;
    uint32_t epoch = (uint32_t)i.record.publish_epoch;
    volume_info_release(&i);
    struct volume_config config = config_of(st, &vol->key);
    config.publish_epoch = epoch;
    config.journal = &st->journal.memory;
    config.resume = st->owned;
    config.on_owned = on_owned;
    config.arg = st;
    return fine(st, volume_open(&config, &st->v, &e), &e) &&
           read_all(st, &vol->model, vol->model.acked);
}

static bool detach(struct story *st, struct vol *vol) {
    struct err e = {0};
    bool closed = fine(st, volume_close(st->v, &e), &e);
    drop(st);
    if (!closed)
        return false;
    vol->model.flushed = vol->model.count;
    st->owned = false;
    ram_journal_reset(&st->journal);
    return fine(st, catalog_volume_unpublish(&st->f.catalog, vol->id, "node-a", &e), &e);
}

/* --- the steps; each may be begun again --- */

static bool create(struct story *st, struct vol *vol, const char *name, const char *source) {
    struct err e = {0};
    struct volume_info i;
    struct volume_create req = {.name = name, .size_bytes = 1024 * 1024, .source = source};
    if (source)
        req.size_bytes = 0;
    if (!fine(st, catalog_volume_create(&st->f.catalog, &req, &i, &e), &e))
        return false;
    memcpy(vol->id, i.id, ID_MAX);
    vol->key = i.record.key;
    volume_info_release(&i);
    return true;
}

static bool make_pool(struct story *st) {
    struct err e = {0};
    struct pool_record pool;
    struct pool_create options = {.cluster_id = "here"};
    if (!fine(st, catalog_pool_create(&st->f.catalog, &options, &pool, &e), &e))
        return false;
    pool_record_release(&pool);
    return fine(st, catalog_node_register(&st->f.catalog, "node-a", "1", &e), &e);
}

static bool make_volume(struct story *st) {
    return create(st, &st->vol, "volume", NULL);
}

static bool cut(struct story *st, struct snap *s, const char *name) {
    struct err e = {0};
    struct snapshot_info i;
    size_t flushed = st->vol.model.flushed;
    if (s->model.count == 0) /* the first attempt */
        s->model.flushed = flushed;
    s->model.count = 1;
    if (!fine(st, catalog_snapshot_create(&st->f.catalog, name, st->vol.id, &i, &e), &e))
        return false;
    flushed = s->model.flushed;
    s->model = st->vol.model;
    s->model.flushed = flushed;
    memcpy(s->id, i.id, ID_MAX);
    s->source = i.record.source;
    s->pin = i.record.pin;
    snapshot_info_release(&i);
    return true;
}

static bool first_writes(struct story *st) {
    struct err e = {0};
    struct volume_info i;
    bool needs_node = false;
    if (!attach(st, &st->vol) || !write_some(st, &st->vol, 40) ||
        !fine(st, volume_checkpoint(st->v, &e), &e))
        return false;
    if (!fine(st,
              catalog_volume_expand(&st->f.catalog, st->vol.id, 2 * 1024 * 1024, 0, &i, &needs_node,
                                    &e),
              &e))
        return false;
    volume_info_release(&i);
    return (!needs_node || fine(st, volume_grow(st->v, 2 * 1024 * 1024, &e), &e)) &&
           write_some(st, &st->vol, 20) && detach(st, &st->vol);
}

static bool early_snapshot(struct story *st) {
    return cut(st, &st->early, "volume@early");
}

/* Overwrites until objects are worth moving, and a snapshot in the middle. */
static bool more_writes(struct story *st) {
    struct err e = {0};
    return attach(st, &st->vol) && write_some(st, &st->vol, 50) &&
           cut(st, &st->live, "volume@live") && write_some(st, &st->vol, 50) &&
           fine(st, volume_collect(st->v, &e), &e) && detach(st, &st->vol);
}

static bool look_at(struct story *st, struct snap *s) {
    struct err e = {0};
    struct volume_config config = config_of(st, &s->source);
    if (!fine(st, volume_open_pin(&config, &s->pin, &st->v, &e), &e) ||
        !read_all(st, &s->model, s->model.flushed))
        return false;
    s->model.flushed = s->model.count;
    drop(st);
    return true;
}

static bool look_at_snapshots(struct story *st) {
    return look_at(st, &st->early) && look_at(st, &st->live);
}

static bool make_clone(struct story *st) {
    if (!create(st, &st->clone, "clone", st->early.id))
        return false;
    st->clone.model = st->early.model;
    st->clone.model.last_stamp += 1000000; /* nobody else's */
    return true;
}

static bool clone_writes(struct story *st) {
    return attach(st, &st->clone) && write_some(st, &st->clone, 30) && detach(st, &st->clone);
}

static bool restore(struct story *st) {
    struct err e = {0};
    struct volume_info i;
    bool needs_node;
    if (!fine(st, catalog_snapshot_restore(&st->f.catalog, st->early.id, st->vol.id, &i, &e), &e))
        return false;
    volume_info_release(&i);
    uint32_t last_stamp = st->vol.model.last_stamp;
    st->vol.model = st->early.model;
    st->vol.model.last_stamp = last_stamp;
    if (!fine(st,
              catalog_volume_expand(&st->f.catalog, st->vol.id, 3 * 1024 * 1024, 0, &i, &needs_node,
                                    &e),
              &e))
        return false;
    volume_info_release(&i);
    assert_false(needs_node);
    return true;
}

static bool last_writes(struct story *st) {
    return attach(st, &st->vol) && write_some(st, &st->vol, 30) && detach(st, &st->vol);
}

static bool delete_early(struct story *st) {
    struct err e = {0};
    return fine(st, catalog_snapshot_delete(&st->f.catalog, st->early.id, &e), &e);
}

static bool housekeeping(struct story *st) {
    struct err e = {0};
    struct background b;
    struct background_result r = {0};
    background_init(&b, &st->f.catalog);
    int rc = 0;
    for (int i = 0; i < 3 && rc == 0; i++) {
        rc = background_pass(&b, &r, &e);
        if (rc == 0)
            rc = fiber_sleep_us(st->f.env, SWEEP_INTERVAL_US);
    }
    background_release(&b);
    if (!fine(st, rc, &e))
        return false;
    if (r.failures > 0 && !st->killed && !is_damage(st))
        fail_msg("%s %" PRIu64 ": %s", st->what, st->n, r.first_failure.text);
    assert_true(st->killed || r.pins_suspected == 0);
    return true;
}

static bool maintain(struct story *st) {
    struct err e = {0};
    struct volume_maintained m;
    return fine(st, catalog_volume_maintain(&st->f.catalog, st->vol.id, &m, &e), &e) &&
           fine(st, catalog_volume_maintain(&st->f.catalog, st->clone.id, &m, &e), &e);
}

static void on_finding(void *arg, const struct fsck_finding *f) {
    const struct story *st = arg;
    static const char *const kinds[] = {"damage", "leak", "garbage"};
    if (st->damage && objstore_fault_hits(st->f.faults) > 0)
        return; /* what it ought to say */
    printf("%s %" PRIu64 ", step %zu: %s: %s: %s\n", st->what, st->n, st->step, kinds[f->kind],
           f->key, f->text);
}

static bool check_pool(struct story *st, bool at_rest) {
    struct err e = {0};
    struct fsck k = {
        .catalog = &st->f.catalog, .on_finding = at_rest ? on_finding : NULL, .arg = st};
    if (!fine(st, fsck_pool(&k, &e), &e))
        return false;
    if (k.result.damaged > 0 && is_damage(st))
        return false;
    if (k.result.damaged + k.result.leaked + k.result.unsettled > 0 && !at_rest)
        return check_pool(st, true); /* once more, to hear what it is */
    assert_int_equal(k.result.damaged, 0);
    assert_int_equal(k.result.leaked, 0);
    assert_int_equal(k.result.unsettled, 0);
    if (at_rest) {
        assert_int_equal(k.result.garbage, 0);
        assert_int_equal(k.result.pending, 0);
    }
    return true;
}

static bool check_at_rest(struct story *st) {
    return check_pool(st, true);
}

static bool delete_all(struct story *st) {
    struct err e = {0};
    struct catalog *c = &st->f.catalog;
    return fine(st, catalog_volume_delete(c, st->vol.id, false, &e), &e) &&
           fine(st, catalog_snapshot_delete(c, st->live.id, &e), &e) &&
           fine(st, catalog_volume_delete(c, st->clone.id, false, &e), &e);
}

static bool check_empty(struct story *st) {
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(st->f.memory, i, &key, &body); i++) {
        bool data = strstr(key, "/log/") && body.len != SEGMENT_FENCE_SIZE;
        if (data || strstr(key, "/moved/") || strstr(key, "/map/") || strstr(key, ".claim"))
            fail_msg("%s %" PRIu64 ": '%s' is left", st->what, st->n, key);
    }
    return true;
}

static bool look_at_live(struct story *st) {
    return look_at(st, &st->live);
}

static bool (*const steps[])(struct story *st) = {
    make_pool,         make_volume,  first_writes,  early_snapshot, more_writes,
    look_at_snapshots, make_clone,   clone_writes,  restore,        last_writes,
    delete_early,      housekeeping, maintain,      look_at_live,   check_at_rest,
    delete_all,        housekeeping, check_at_rest, check_empty};

static void tell(void *arg) {
    struct story *st = arg;
    while (st->step < ARRAY_LEN(steps) && steps[st->step](st))
        st->step++;
    drop(st);
    st->ended = true;
}

/* --- trouble --- */

enum trouble { REFUSED, LOST, KILLED, NODE_DIES, DAMAGED, CUT_SHORT };
static const char *const names[] = {"refused",   "lost",    "killed",
                                    "node dies", "damaged", "cut short"};

static void add_rules(struct story *st, enum trouble how) {
    struct fault_rule once = {.kind = how == REFUSED ? FAULT_FAIL : FAULT_LOSE, .nth = st->n};
    struct fault_rule unanswered = {.kind = FAULT_HANG_ANSWER, .nth = st->n};
    struct fault_rule spoilt = {
        .kind = how == DAMAGED ? FAULT_FLIP : FAULT_TRUNCATE, .verbs = 1u << OBJ_GET, .nth = st->n};
    struct fault_rule others = {.kind = FAULT_FLIP, .verbs = ~(1u << OBJ_GET)}; /* only counts */
    struct fault_rule gone = {.kind = how == KILLED ? FAULT_FAIL : FAULT_HANG, .after = st->n - 1};
    if (how == REFUSED || how == LOST)
        objstore_fault_add(st->f.faults, &once);
    if (how == NODE_DIES)
        objstore_fault_add(st->f.faults, &unanswered);
    if (how == KILLED || how == NODE_DIES)
        objstore_fault_add(st->f.faults, &gone);
    st->damage = how >= DAMAGED;
    if (st->damage)
        objstore_fault_add(st->f.faults, st->n < REQUESTS_MAX ? &spoilt : &others);
}

static void kill_all(struct story *st, enum trouble how) {
    st->killed = true;
    ram_journal_freeze(&st->journal);
    fiber_cancel(st->fiber);
    virtual_env_run(&st->f.venv);
    assert_true(st->ended);
    objstore_fault_clear(st->f.faults);
    ram_journal_thaw(&st->journal);
    st->killed = st->ended = false;
    if (how != NODE_DIES)
        return;
    ram_journal_reset(&st->journal);
    st->owned = false;
    st->vol.model.acked = st->vol.model.flushed;
    st->clone.model.acked = st->clone.model.flushed;
}

static void after_a_kill(void *arg) {
    struct story *st = arg;
    struct view body;
    if (memory_store_find(st->f.memory, "portalbd.json", &body)) /* there is a pool by now */
        (void)check_pool(st, false);
}

/* Somebody noticed the damage. */
static bool has_given_up(const struct story *st) {
    return st->ended && st->seen > 0 && st->step < ARRAY_LEN(steps);
}

/* How many requests of the story the trouble may come to. */
static uint64_t count_requests(struct story *st, enum trouble how) {
    printf("%" PRIu64 " checkpoints, %" PRIu64 " merges, %" PRIu64 " moves, %" PRIu64
           " GC rounds that deleted %" PRIu64 "\n",
           st->checkpoints, st->merges, st->moves, st->rounds, st->deleted);
    assert_true(st->checkpoints > 10 && st->merges > 10 && st->moves > 2);
    assert_true(st->rounds > 10 && st->deleted > 50);
    uint64_t others = how >= DAMAGED ? objstore_fault_hits(st->f.faults) : 0;
    return pool_fixture_requests(&st->f) - others;
}

/* One story. False: the trouble did not come, it was over before request n. *ret_requests: that it
 * took, when n is beyond all. *noticed counts damage that made somebody give up. */
static bool tell_with(enum trouble how, uint64_t n, uint64_t *ret_requests, uint64_t *noticed) {
    static struct story stories[1];
    struct story *st = stories;
    *st = (struct story){.n = n, .what = names[how], .random = 1};
    pool_fixture_init(&st->f, 1);
    ram_journal_init(&st->journal, JOURNAL_SIZE);
    add_rules(st, how);
    st->fiber = fiber_start(st->f.env, tell, st);
    bool hit = false;
    while (!st->ended) {
        virtual_env_run_until(&st->f.venv, st->f.venv.now_us + SLICE_US);
        bool now = objstore_fault_hits(st->f.faults) > 0 && !hit;
        hit |= now;
        if (has_given_up(st))
            st->ended = false;
        else if (!st->ended && now && (how == KILLED || how == NODE_DIES))
            kill_all(st, how);
        else
            continue;
        pool_fixture_run(&st->f, after_a_kill, st);
        st->fiber = fiber_start(st->f.env, tell, st);
    }
    assert_int_equal(st->step, ARRAY_LEN(steps));
    *noticed += st->seen;
    if (ret_requests)
        *ret_requests = count_requests(st, how);
    ram_journal_release(&st->journal);
    pool_fixture_release(&st->f);
    return hit && n < REQUESTS_MAX;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t gcd(uint64_t a, uint64_t b) {
    return b == 0 ? a : gcd(b, a % b);
}

/* The numbers 1 .. requests in an order that leaves no large gap wherever it is cut off. */
static void sweep(enum trouble how) {
    const char *wish = getenv("PORTALBD_SWEEP");
    bool all = wish && strcmp(wish, "all") == 0;
    uint64_t only = wish ? strtoull(wish, NULL, 10) : 0, requests, told = 0, noticed = 0;
    if (only > 0) {
        if (!tell_with(how, only, NULL, &noticed))
            printf("%s: there are fewer than %" PRIu64 " such requests\n", names[how], only);
        return;
    }
    assert_false(tell_with(how, REQUESTS_MAX, &requests, &noticed));
    uint64_t first = all ? 0 : (uint64_t)time(NULL) % requests; /* each time from elsewhere */
    uint64_t stride = requests * 618 / 1000;
    while (gcd(stride, requests) != 1)
        stride++;
    double end = now_s() + SECONDS_EACH;
    for (; told < requests && (all || now_s() < end); told++)
        assert_true(tell_with(how, 1 + (first + told * stride) % requests, NULL, &noticed));
    printf("%s: %" PRIu64 " of %" PRIu64 " requests, from %" PRIu64 " on, in steps of %" PRIu64
           "\n",
           names[how], told, requests, first + 1, stride);
    if (how >= DAMAGED)
        printf("somebody gave up in %" PRIu64 "\n", noticed);
    assert_true((noticed > 0) == (how >= DAMAGED));
}

static void test_refused(void **state) {
    (void)state;
    sweep(REFUSED);
}
static void test_lost(void **state) {
    (void)state;
    sweep(LOST);
}
static void test_killed(void **state) {
    (void)state;
    sweep(KILLED);
}
static void test_node_dies(void **state) {
    (void)state;
    sweep(NODE_DIES);
}

static void test_damaged(void **state) {
    (void)state;
    sweep(DAMAGED);
}
static void test_cut_short(void **state) {
    (void)state;
    sweep(CUT_SHORT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refused), cmocka_unit_test(test_lost),
        cmocka_unit_test(test_killed),  cmocka_unit_test(test_node_dies),
        cmocka_unit_test(test_damaged), cmocka_unit_test(test_cut_short),
    };
    log_set_level(LOG_LEVEL_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
