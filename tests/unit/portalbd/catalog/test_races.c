/* Many controllers on one pool at once: seeded actors run catalog calls, writers and housekeeping
 * in random orders over a store that delays, for half an hour at times, and loses answers; some die
 * at a random moment. What each call answers is held against what must be true then and at the end.
 *
 *   A1  an id is created once and stays; (id, publish epoch) is given to one node only
 *   A2  a deleted id never comes back; one that nobody deleted is there at the end
 *   A3  a live snapshot has record, claim and root (I11); what live roots name is there (I12)
 *   A4  after the last call and the sweeper's rounds nothing is left that nobody needs
 *
 * PORTALBD_SEED=n runs that seed alone, PORTALBD_SEEDS=n as many. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/catalog/background.h"
#include "portalbd/catalog/catalog_internal.h"
#include "tests/support/pool_fixture.h"

enum { ACTORS = 5, OPS = 16, NAMES = 3, THINGS_MAX = 512, KEEPERS = 2, KEEPER_PASSES = 12 };

struct thing { /* an id that a create returned */
    char id[ID_MAX];
    char name[16];
    bool is_volume;
    bool delete_tried, delete_ok;
    uint64_t deleted_us; /* when the delete that succeeded returned */
};
struct grant {
    char id[ID_MAX];
    uint64_t epoch;
    char node[16];
};

struct world {
    struct pool_fixture f;
    uint64_t seed;
    struct thing things[THINGS_MAX];
    size_t thing_count;
    struct grant grants[THINGS_MAX];
    size_t grant_count;
    bool patient; /* calls come minutes apart, some requests take longer than the sweeper waits */
    void *actors; /* of this seed */
    size_t busy, cancelled, done;
};

static uint64_t pick(struct world *w, uint64_t n) {
    return env_random_u64(w->f.env) % n;
}

static void broken(struct world *w, const char *what, const char *id) {
    pool_fixture_print(&w->f);
    fprintf(stderr, "seed %llu: %s: %s\n", (unsigned long long)w->seed, what, id);
    abort();
}

static struct thing *thing_find(struct world *w, const char *id) {
    for (size_t i = 0; i < w->thing_count; i++)
        if (strcmp(w->things[i].id, id) == 0)
            return &w->things[i];
    return NULL;
}

/* since_us: when the call began; one that began before a deletion ended may be the older one. */
static void thing_created(struct world *w, const char *id, const char *name, bool is_volume,
                          uint64_t since_us) {
    struct thing *t = thing_find(w, id);
    if (t && (strcmp(t->name, name) != 0 || (t->delete_ok && t->deleted_us < since_us)))
        broken(w, "created a second time", id); /* A1, A2 */
    if (t)
        return;
    CHECK(w->thing_count < THINGS_MAX);
    t = &w->things[w->thing_count++];
    *t = (struct thing){.is_volume = is_volume};
    snprintf(t->id, sizeof t->id, "%s", id);
    snprintf(t->name, sizeof t->name, "%s", name);
}

/* A known id, or NULL. */
static struct thing *pick_thing(struct world *w, bool is_volume) {
    for (int i = 0; i < 8 && w->thing_count > 0; i++) {
        struct thing *t = &w->things[pick(w, w->thing_count)];
        if (t->is_volume == is_volume)
            return t;
    }
    return NULL;
}

/* What a call may answer besides the outcomes of its own. */
static bool expected(struct world *w, int rc, const struct err *e) {
    switch (rc) {
    case 0:
        w->done++;
        return true;
    case -ERR_BUSY:
        w->busy++;
        return true;
    case -ERR_CANCELLED:
        w->cancelled++;
        return true;
    case -ERR_NOT_FOUND:
    case -ERR_EXISTS:
    case -ERR_IN_USE:
    case -ERR_FENCED:
        return true;
    default:
        broken(w, "an answer nobody expects", e->text);
        return false;
    }
}

static void op_create(struct world *w) {
    char name[16];
    snprintf(name, sizeof name, "v%d", (int)pick(w, NAMES));
    struct thing *source = NULL;
    if (pick(w, 2) == 0)
        source = pick_thing(w, pick(w, 2) == 0);
    uint64_t since_us = env_now_us(w->f.env);
    struct volume_create req = {.name = name,
                                .size_bytes = source ? 0 : (1 + pick(w, 2)) << 20,
                                .source = source ? source->id : NULL};
    struct volume_info v;
    struct err e;
    char copy[ID_MAX];
    if (source) {
        memcpy(copy, source->id, sizeof copy);
        req.source = copy;
    }
    int rc = catalog_volume_create(&w->f.catalog, &req, &v, &e);
    if (expected(w, rc, &e) && rc == 0) {
        thing_created(w, v.id, name, true, since_us);
        volume_info_release(&v);
    }
}

static void op_snapshot(struct world *w) {
    struct thing *source = pick_thing(w, true);
    if (!source)
        return;
    char name[16], id[ID_MAX];
    snprintf(name, sizeof name, "s%d", (int)pick(w, NAMES));
    memcpy(id, source->id, sizeof id);
    struct snapshot_info s;
    struct err e;
    uint64_t since_us = env_now_us(w->f.env);
    int rc = catalog_snapshot_create(&w->f.catalog, name, id, &s, &e);
    if (expected(w, rc, &e) && rc == 0) {
        thing_created(w, s.id, name, false, since_us);
        snapshot_info_release(&s);
    }
}

static void op_delete(struct world *w, bool is_volume) {
    struct thing *t = pick_thing(w, is_volume);
    if (!t)
        return;
    size_t index = (size_t)(t - w->things);
    struct err e;
    bool force = pick(w, 3) == 0;
    t->delete_tried = true;
    int rc = is_volume ? catalog_volume_delete(&w->f.catalog, t->id, force, &e)
                       : catalog_snapshot_delete(&w->f.catalog, t->id, &e);
    if (expected(w, rc, &e) && rc == 0 && !w->things[index].delete_ok) {
        w->things[index].delete_ok = true;
        w->things[index].deleted_us = env_now_us(w->f.env);
    }
}

static void op_get(struct world *w) {
    struct thing *t = pick_thing(w, pick(w, 2) == 0);
    if (!t)
        return;
    bool was_deleted = t->delete_ok;
    struct volume_info v;
    struct snapshot_info s;
    struct err e;
    int rc = t->is_volume ? catalog_volume_get(&w->f.catalog, t->id, &v, &e)
                          : catalog_snapshot_get(&w->f.catalog, t->id, &s, &e);
    expected(w, rc, &e);
    if (rc == 0 && was_deleted)
        broken(w, "there although it was deleted", t->id); /* A2 */
    if (rc == -ERR_NOT_FOUND && !t->delete_tried)
        broken(w, "gone although nobody deleted it", t->id);
    if (rc == 0 && t->is_volume)
        volume_info_release(&v);
    else if (rc == 0)
        snapshot_info_release(&s);
}

static void granted(struct world *w, const char *id, uint64_t epoch, const char *node) {
    for (size_t i = 0; i < w->grant_count; i++) {
        struct grant *g = &w->grants[i];
        if (strcmp(g->id, id) == 0 && g->epoch == epoch) {
            if (strcmp(g->node, node) != 0)
                broken(w, "two nodes have one publish epoch", id); /* A1 */
            return;
        }
    }
    CHECK(w->grant_count < THINGS_MAX);
    struct grant *g = &w->grants[w->grant_count++];
    g->epoch = epoch;
    snprintf(g->id, sizeof g->id, "%s", id);
    snprintf(g->node, sizeof g->node, "%s", node);
}

/* A writer without an engine; whatever goes wrong, it stops. */
static void write_some(struct world *w, const struct volume_key *v, uint32_t epoch) {
    struct err e;
    struct takeover t;
    int rc = volume_takeover(w->f.env, w->f.store, v, epoch, NULL, false, &t, &e);
    if (!expected(w, rc, &e) || rc < 0)
        return;
    struct manifest *m = &t.manifest;
    rc = log_walk_to_root(&t.walk, &m->root, t.first_seq, &e);
    uint64_t count = 1 + pick(w, 3);
    for (uint64_t i = 0; rc == 0 && i < count; i++)
        rc = pool_fixture_put_segment(&w->f, v, m, t.first_seq + i, &e);
    if (rc == 0 && pick(w, 2) == 0) {
        m->root.tail = xrealloc(m->root.tail, (m->root.tail_count + 1) * sizeof *m->root.tail);
        m->root.tail[m->root.tail_count++] =
            (struct root_tail){.first = t.first_seq, .count = count};
        m->root.next_seq = t.first_seq + count;
        m->number++;
        m->closed = true;
        rc = manifest_put(w->f.store, v, m, &e);
    }
    expected(w, rc == -ERR_STALE ? -ERR_FENCED : rc, &e);
    takeover_release(&t);
}

static void op_publish(struct world *w) {
    struct thing *t = pick_thing(w, true);
    if (!t)
        return;
    char id[ID_MAX];
    memcpy(id, t->id, sizeof id);
    const char *node = pick(w, 2) == 0 ? "node-a" : "node-b";
    struct volume_info v;
    struct err e;
    int rc = catalog_volume_publish(&w->f.catalog, id, node, false, pick(w, 5) == 0, &v, &e);
    if (!expected(w, rc, &e) || rc < 0)
        return;
    granted(w, id, v.record.publish_epoch, node);
    if (pick(w, 2) == 0)
        write_some(w, &v.record.key, (uint32_t)v.record.publish_epoch);
    volume_info_release(&v);
}

static void op_unpublish(struct world *w) {
    struct thing *t = pick_thing(w, true);
    if (!t)
        return;
    struct err e;
    char id[ID_MAX];
    memcpy(id, t->id, sizeof id);
    const char *nodes[] = {"node-a", "node-b", NULL};
    expected(w, catalog_volume_unpublish(&w->f.catalog, id, nodes[pick(w, 3)], &e), &e);
}

static void op_expand(struct world *w) {
    struct thing *t = pick_thing(w, true);
    if (!t)
        return;
    struct err e;
    struct volume_info v;
    bool needs_node;
    char id[ID_MAX];
    memcpy(id, t->id, sizeof id);
    uint64_t size = (1 + pick(w, 64)) << 20;
    int rc = catalog_volume_expand(&w->f.catalog, id, size, 0, &v, &needs_node, &e);
    if (!expected(w, rc, &e) || rc < 0)
        return;
    if (v.record.size_bytes < size || (!needs_node && v.size_bytes < size))
        broken(w, "not as large as it says", id);
    volume_info_release(&v);
}

struct actor {
    struct world *w;
    struct fiber *fiber;
    bool ended;
};

static void actor_run(void *arg) {
    struct actor *a = arg;
    for (int i = 0; i < OPS && !fiber_cancelled(a->w->f.env); i++) {
        if (a->w->patient)
            fiber_sleep_us(a->w->f.env, pick(a->w, SWEEP_INTERVAL_US));
        switch (pick(a->w, 16)) {
        case 0:
        case 1:
        case 2:
        case 3:
            op_create(a->w);
            break;
        case 4:
        case 5:
        case 6:
            op_snapshot(a->w);
            break;
        case 7:
        case 8:
            op_delete(a->w, true);
            break;
        case 9:
            op_delete(a->w, false);
            break;
        case 10:
        case 11:
            op_get(a->w);
            break;
        case 12:
        case 13:
            op_publish(a->w);
            break;
        case 14:
            op_unpublish(a->w);
            break;
        default:
            op_expand(a->w);
        }
    }
    a->ended = true;
}

/* Housekeeping, several at once, with more than the sweeper's interval between passes. */
static void keeper_run(void *arg) {
    struct actor *a = arg;
    struct world *w = a->w;
    struct background b;
    background_init(&b, &w->f.catalog);
    for (int i = 0; i < KEEPER_PASSES; i++) {
        struct background_result r;
        struct err e;
        int rc = background_pass(&b, &r, &e);
        expected(w, rc, &e);
        if (rc == 0 && r.failures > 0)
            expected(w, r.first_failure.code, &r.first_failure);
        if (fiber_sleep_us(w->f.env, SWEEP_INTERVAL_US + pick(w, SWEEP_INTERVAL_US)) < 0)
            break;
    }
    background_release(&b);
    a->ended = true;
}

static void killer_run(void *arg) {
    struct actor *a = arg;
    fiber_sleep_us(a->w->f.env, pick(a->w, a->w->patient ? 10 * SWEEP_INTERVAL_US : 400 * 1000));
    if (!a->ended)
        fiber_cancel(a->fiber);
}

/* --- what must be true at the end --- */

static void check_root(struct world *w, const struct root *r, const char *whose) {
    for (size_t i = 0; i < r->tail_count; i++)
        for (uint64_t j = 0; j < r->tail[i].count; j++) {
            char key[KEY_MAX];
            struct view body;
            key_log(key, &r->volumes[r->tail[i].volume], r->tail[i].first + j);
            if (!memory_store_find(w->f.memory, key, &body))
                broken(w, "a live root names a deleted object", whose); /* A3 */
        }
}

static void check_snapshot(struct world *w, const struct snapshot_info *s) {
    char key[KEY_MAX];
    struct view body;
    struct pin_root p;
    struct err e;
    key_pin_claim(key, &s->record.source, &s->record.pin);
    if (!memory_store_find(w->f.memory, key, &body))
        broken(w, "a live snapshot has no claim", s->id); /* A3 */
    key_pin_root(key, &s->record.source, &s->record.pin);
    if (!memory_store_find(w->f.memory, key, &body) || pin_root_decode(&p, body, &e) < 0)
        broken(w, "a live snapshot has no root", s->id);
    if (p.expired)
        broken(w, "a live snapshot has expired", s->id);
    check_root(w, &p.root, s->id);
    pin_root_release(&p);
}

static void check_things(struct world *w) {
    struct err e;
    for (size_t i = 0; i < w->thing_count; i++) {
        struct thing *t = &w->things[i];
        struct volume_info v;
        struct snapshot_info s;
        int rc = t->is_volume ? catalog_volume_get(&w->f.catalog, t->id, &v, &e)
                              : catalog_snapshot_get(&w->f.catalog, t->id, &s, &e);
        if (rc == 0 && t->delete_ok)
            broken(w, "there although it was deleted", t->id); /* A2 */
        if (rc < 0 && (rc != -ERR_NOT_FOUND || !t->delete_tried))
            broken(w, "gone although nobody deleted it", t->id);
        if (rc < 0)
            continue;
        if (t->is_volume) {
            struct manifest m;
            CHECK(manifest_newest(w->f.store, &v.record.key, &m, &e) == 0);
            check_root(w, &m.root, t->id);
            manifest_release(&m);
            volume_info_release(&v);
        } else {
            check_snapshot(w, &s);
            snapshot_info_release(&s);
        }
    }
}

/* Of deleted volumes that nobody needs only fences and two manifests are left, of pins only what
 * live records and manifests name. */
static void check_nothing_leaks(struct world *w) {
    struct err e;
    size_t live = 0;
    struct snapshot_list snapshots;
    struct volume_list volumes;
    CHECK(catalog_snapshot_list(&w->f.catalog, NULL, NULL, 0, &snapshots, NULL, &e) == 0);
    CHECK(catalog_volume_list(&w->f.catalog, NULL, 0, &volumes, NULL, &e) == 0);
    for (size_t i = 0; i < snapshots.count; i++)
        check_snapshot(w, &snapshots.items[i]);
    live = snapshots.count;
    for (size_t i = 0; i < volumes.count; i++)
        live += volumes.items[i].record.source_kind != SOURCE_NONE;
    if (live == 0 && volumes.count == 0) {
        if (pool_fixture_count(&w->f, ".claim") > 0)
            broken(w, "a claim is left", "");
        const char *key;
        struct view body;
        for (size_t i = 0; memory_store_at(w->f.memory, i, &key, &body); i++)
            if (strstr(key, "/log/") && body.len != SEGMENT_FENCE_SIZE)
                broken(w, "a segment is left", key); /* A4 */
    } else if (pool_fixture_count(&w->f, ".claim") < live) {
        broken(w, "a live pin has no claim", "");
    }
    snapshot_list_release(&snapshots);
    volume_list_release(&volumes);
}

static void delete_everything(struct world *w) {
    struct err e;
    struct snapshot_list snapshots;
    struct volume_list volumes;
    CHECK(catalog_snapshot_list(&w->f.catalog, NULL, NULL, 0, &snapshots, NULL, &e) == 0);
    CHECK(catalog_volume_list(&w->f.catalog, NULL, 0, &volumes, NULL, &e) == 0);
    for (size_t i = 0; i < snapshots.count; i++)
        CHECK(catalog_snapshot_delete(&w->f.catalog, snapshots.items[i].id, &e) == 0);
    for (size_t i = 0; i < volumes.count; i++)
        CHECK(catalog_volume_delete(&w->f.catalog, volumes.items[i].id, true, &e) == 0);
    snapshot_list_release(&snapshots);
    volume_list_release(&volumes);
}

static void sweep_up(struct world *w, int passes) {
    struct background b;
    background_init(&b, &w->f.catalog);
    for (int i = 0; i < passes; i++) {
        struct background_result r;
        struct err e;
        CHECK(background_pass(&b, &r, &e) == 0);
        if (r.failures > 0)
            broken(w, "housekeeping fails", r.first_failure.text);
        fiber_sleep_us(w->f.env, SWEEP_INTERVAL_US);
    }
    background_release(&b);
}

static void finish(void *arg) {
    struct world *w = arg;
    check_things(w);
    sweep_up(w, 4);
    check_things(w);
    check_nothing_leaks(w);
    delete_everything(w);
    sweep_up(w, 10);
    check_nothing_leaks(w);
}

static void start(void *arg) {
    struct world *w = arg;
    struct err e;
    CHECK(catalog_node_register(&w->f.catalog, "node-a", "1", &e) == 0);
    CHECK(catalog_node_register(&w->f.catalog, "node-b", "1", &e) == 0);
}

static void run_seed(uint64_t seed, bool patient) {
    struct world *w = NEW(struct world);
    w->seed = seed;
    w->patient = patient;
    pool_fixture_init(&w->f, seed);
    pool_fixture_run(&w->f, start, w);
    if (patient) {
        struct fault_rule nap = {.kind = FAULT_DELAY,
                                 .chance = 30000,
                                 .delay_us_min = SWEEP_INTERVAL_US / 10,
                                 .delay_us_max = 4 * SWEEP_INTERVAL_US};
        objstore_fault_add(w->f.delays, &nap);
    }
    pool_fixture_jitter(&w->f);
    struct actor actors[ACTORS + KEEPERS] = {0};
    for (size_t i = 0; i < ARRAY_LEN(actors); i++) {
        actors[i].w = w;
        actors[i].fiber = fiber_start(w->f.env, i < ACTORS ? actor_run : keeper_run, &actors[i]);
        if (i % 2 == 1)
            fiber_start(w->f.env, killer_run, &actors[i]);
    }
    virtual_env_run(&w->f.venv);
    CHECK(list_empty(&w->f.env->fibers));
    objstore_fault_clear(w->f.delays);
    objstore_fault_clear(w->f.faults);
    objstore_fault_clear(w->f.answers);
    pool_fixture_run(&w->f, finish, w);
    pool_fixture_release(&w->f);
    free(w);
}

/* --- holes (trace 13) --- */

enum { STEALERS = 4, STEALS = 60 };

/* Takes one volume from the others again and again, a record each time; pruning leaves holes
 * behind, into which slow PUTs fall. */
static void stealer_run(void *arg) {
    struct actor *a = arg;
    struct world *w = a->w;
    for (int i = 0; i < STEALS; i++) {
        char node[2][16] = {"node-a", "node-b"};
        struct volume_info v;
        struct err e;
        int rc = catalog_volume_publish(&w->f.catalog, w->things[0].id, node[pick(w, 2)], false,
                                        true, &v, &e);
        if (!expected(w, rc, &e) || rc < 0)
            continue;
        char who[16]; /* each call is a node of its own here: no epoch may come twice */
        snprintf(who, sizeof who, "%u/%d", (unsigned)(a - (struct actor *)w->actors), i);
        granted(w, v.id, v.record.publish_epoch, who);
        volume_info_release(&v);
    }
    a->ended = true;
}

static void pruner_run(void *arg) {
    struct actor *a = arg;
    struct world *w = a->w;
    for (int i = 0; i < 400; i++) {
        size_t deleted;
        struct err e;
        expected(w, numbered_prune(w->f.store, "records/", &deleted, &e), &e);
        fiber_sleep_us(w->f.env, 5000);
    }
}

static void start_stealing(void *arg) {
    struct world *w = arg;
    struct err e;
    struct volume_info v;
    start(w);
    struct volume_create req = {.name = "v", .size_bytes = 4096};
    CHECK(catalog_volume_create(&w->f.catalog, &req, &v, &e) == 0);
    thing_created(w, v.id, "v", true, 0);
    volume_info_release(&v);
}

static void run_holes(uint64_t seed) {
    struct world *w = NEW(struct world);
    w->seed = seed;
    pool_fixture_init(&w->f, seed);
    pool_fixture_run(&w->f, start_stealing, w);
    struct fault_rule nap = {.kind = FAULT_DELAY,
                             .verbs = 1u << OBJ_PUT,
                             .chance = 30000,
                             .delay_us_min = 100000,
                             .delay_us_max = 2000000};
    objstore_fault_add(w->f.delays, &nap);
    pool_fixture_jitter(&w->f);
    struct actor actors[STEALERS + 1] = {0};
    w->actors = actors;
    for (size_t i = 0; i < ARRAY_LEN(actors); i++) {
        actors[i].w = w;
        fiber_start(w->f.env, i < STEALERS ? stealer_run : pruner_run, &actors[i]);
    }
    virtual_env_run(&w->f.venv);
    pool_fixture_release(&w->f);
    free(w);
}

static void test_holes(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++)
        run_holes(seed);
}

static void test_races(void **state) {
    (void)state;
    const char *one = getenv("PORTALBD_SEED"), *many = getenv("PORTALBD_SEEDS");
    uint64_t first = one ? strtoull(one, NULL, 0) : 1;
    uint64_t count = one ? 1 : many ? strtoull(many, NULL, 0) : 300;
    for (uint64_t seed = first; seed < first + count; seed++)
        run_seed(seed, seed % 2 == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_races), cmocka_unit_test(test_holes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
