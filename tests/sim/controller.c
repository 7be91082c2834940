/* A controller: works on the catalog, several tasks at a time. It may be killed in the middle of
 * any of them; somebody then tries again, or nobody does.
 *
 * What a task did is told to the run's volumes and snapshots when it ends. A task whose controller
 * was killed leaves them in doubt: UNBORN (perhaps created) or DYING (perhaps deleted). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/catalog/fsck.h"
#include "tests/sim/sim.h"

static const char *const task_names[TASK_KINDS] = {
    "prepare",       "create",          "publish", "unpublish", "expand", "delete", "snapshot",
    "find snapshot", "delete snapshot", "restore", "maintain",  "fsck",   "list",   "background",
};

static void node_name(char *to, size_t size, unsigned node) {
    snprintf(to, size, "node-%u", node);
}

/* An error that this task may end with. */
static bool is_expected(const struct task *t, int rc) {
    bool source_gone = t->vol && (t->vol->state != LIVE ||
                                  (t->vol->from_snap && t->vol->from_snap->state != LIVE) ||
                                  (t->vol->from_volume && t->vol->from_volume->state != LIVE));
    bool snap_source_gone = t->snap && (t->snap->source->state != LIVE ||
                                        (t->kind == TASK_RESTORE && t->snap->state != LIVE));
    if (t->controller->dead || rc == -ERR_BUSY || rc == -ERR_STALE)
        return true;
    if (rc == -ERR_NOT_FOUND)
        return source_gone || snap_source_gone;
    if (rc == -ERR_IN_USE)
        return t->kind == TASK_PUBLISH || t->kind == TASK_DELETE || t->kind == TASK_RESTORE ||
               t->kind == TASK_MAINTAIN;
    return false;
}

static void judge(const struct task *t, int rc, const struct err *e) {
    struct sim *s = t->controller->sim;
    const char *what = t->snap ? t->snap->name : t->vol ? t->vol->name : "";
    sim_trace(&s->world, t->controller->proc.name, "%s %s: %s", task_names[t->kind], what,
              rc < 0 ? e->text : "done");
    if (rc < 0 && !is_expected(t, rc))
        sim_fail(s, "%s of %s by %s ended with %s: %s", task_names[t->kind], what,
                 t->controller->proc.name, err_code_name(rc), e->text);
}

/* --- volumes --- */

static void volume_is_there(struct sim *s, struct sim_volume *vol, const struct volume_info *info) {
    if (vol->state != UNBORN) {
        if (vol->state == LIVE && strcmp(vol->id, info->id) != 0)
            sim_fail(s, "volume %s was created twice: %s and %s", vol->name, vol->id, info->id);
        return;
    }
    vol->state = LIVE;
    memcpy(vol->id, info->id, sizeof vol->id);
    vol->key = info->record.key;
    struct image *origin = vol->from_snap ? vol->from_snap->image : vol->origin;
    vol->model = model_volume_new(&s->checker, vol->name, origin, info->size_bytes);
    if (origin) {
        s->totals.clones++;
        if (vol->from_volume)
            vol->from_volume->clones++;
        else
            vol->from_snap->source->clones++;
    }
}

static int run_create(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct sim_volume *vol = t->vol;
    const char *source = vol->from_snap     ? vol->from_snap->id
                         : vol->from_volume ? vol->from_volume->id
                                            : NULL;
    struct volume_create req = {.name = vol->name, .size_bytes = vol->size_bytes, .source = source};
    if (vol->from_volume && !vol->origin)
        vol->origin = model_image_begin(vol->from_volume->model, vol->name);
    struct volume_info info;
    int rc = catalog_volume_create(&c->catalog, &req, &info, e);
    if (vol->origin)
        model_image_end(vol->origin);
    if (rc == 0 && !c->dead)
        volume_is_there(c->sim, vol, &info);
    if (rc == 0)
        volume_info_release(&info);
    return rc;
}

/* A publish epoch is given out to one node, ever. */
static void check_epoch(struct sim *s, struct sim_volume *vol, uint64_t epoch, unsigned node) {
    if (epoch == 0 || epoch >= EPOCHS_MAX)
        return;
    unsigned before = vol->node_of[epoch];
    if (before > 0 && before != node + 1)
        sim_fail(s, "%s: publish epoch %" PRIu64 " was given to node-%u, and then to node-%u",
                 vol->name, epoch, before - 1, node);
    vol->node_of[epoch] = (uint8_t)(node + 1);
}

static int run_publish(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    char node[16];
    node_name(node, sizeof node, t->node);
    unsigned tasks = t->vol->tasks_begun;
    bool alone = t->vol->busy == 1;
    struct volume_info info;
    int rc = catalog_volume_publish(&c->catalog, t->vol->id, node, false, t->steal, &info, e);
    if (rc < 0)
        return rc;
    uint64_t epoch = info.record.publish_epoch;
    volume_info_release(&info);
    if (c->dead)
        return 0;
    check_epoch(c->sim, t->vol, epoch, t->node);
    t->vol->published = true;
    t->vol->unpublish_doubtful = !alone || tasks != t->vol->tasks_begun;
    t->vol->publish_epoch = MAX(t->vol->publish_epoch, epoch);
    if (t->start && t->vol->state == LIVE)
        daemon_start(c->sim, t->vol, epoch);
    return 0;
}

static bool is_opening(struct sim *s, const struct sim_volume *vol) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->vol == vol && daemon_is_writer(d) && d->state == DAEMON_OPENING)
            return true;
    }
    return false;
}

/* When nobody else opened or published meanwhile, nobody may be able to write now. */
static void check_unpublished(struct sim *s, const struct sim_volume *vol) {
    struct manifest m;
    if (!audit_newest_manifest(s, &vol->key, &m))
        return;
    /* A controller that died while it fenced or collected left it open: the next one closes it. */
    if (!m.closed && !m.deleted && vol->manifest_by != 'c')
        sim_fail(s, "%s was unpublished, but its newest manifest %" PRIu64 " is not closed",
                 vol->name, m.number);
    manifest_release(&m);
}

static int run_unpublish(struct task *t, struct err *e) {
    struct sim *s = t->controller->sim;
    struct sim_volume *vol = t->vol;
    char node[16];
    node_name(node, sizeof node, t->node);
    unsigned opens = vol->opens_begun, tasks = vol->tasks_begun;
    bool alone =
        vol->published && vol->busy == 1 && !is_opening(s, vol) && !vol->unpublish_doubtful;
    vol->unpublish_doubtful = true;
    int rc = catalog_volume_unpublish(&t->controller->catalog, vol->id,
                                      t->node < NODES ? node : NULL, e);
    if (rc < 0 || t->controller->dead || t->node < NODES)
        return rc;
    vol->published = vol->unpublish_doubtful = false;
    if (alone && opens == vol->opens_begun && tasks == vol->tasks_begun && vol->state == LIVE)
        check_unpublished(s, vol);
    return 0;
}

static int run_expand(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct model_volume *m = t->vol->model;
    m->size_wanted = MAX(m->size_wanted, t->size_bytes);
    struct volume_info info;
    bool needs_node;
    int rc =
        catalog_volume_expand(&c->catalog, t->vol->id, t->size_bytes, 0, &info, &needs_node, e);
    if (rc < 0)
        return rc;
    if (!c->dead && !needs_node)
        m->size_acked = MAX(m->size_acked, t->size_bytes);
    volume_info_release(&info);
    c->sim->totals.grows++;
    return 0;
}

static bool has_writer(struct sim *s, const struct sim_volume *vol) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->vol == vol && daemon_is_writer(d) && d->state == DAEMON_SERVING)
            return true;
    }
    return false;
}

static int run_delete(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct sim_volume *vol = t->vol;
    enum existence before = vol->state;
    vol->state = DYING;
    int rc = catalog_volume_delete(&c->catalog, vol->id, t->steal, e);
    if (c->dead || vol->state == DEAD)
        return rc;
    if (rc == -ERR_IN_USE && before == LIVE && vol->busy == 1)
        vol->state = LIVE;
    if (rc < 0)
        return rc;
    vol->state = DEAD;
    model_deleted(vol->model);
    c->sim->totals.deletes++;
    if (vol->snaps > 0)
        scenarios_note(c->sim, S11_DELETE_WITH_SNAPSHOTS);
    if (vol->clones > 0)
        scenarios_note(c->sim, S11_DELETE_WITH_CLONES);
    if (has_writer(c->sim, vol))
        scenarios_note(c->sim, S11_ZOMBIE_AFTER_DELETE);
    return 0;
}

/* --- snapshots --- */

static void note_beside(struct sim *s, const struct sim_volume *vol) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->vol != vol || !daemon_is_writer(d))
            continue;
        if (d->state == DAEMON_OPENING)
            scenarios_note(s, S9_SNAPSHOT_DURING_OPEN);
        if (d->checkpointing)
            scenarios_note(s, S9_SNAPSHOT_DURING_CHECKPOINT);
    }
}

static void snapshot_is_there(struct sim *s, struct snap *snap, const struct snapshot_info *info) {
    if (snap->state != UNBORN)
        return;
    snap->state = LIVE;
    memcpy(snap->id, info->id, sizeof snap->id);
    snap->volume = info->record.source;
    snap->pin = info->record.pin;
    snap->source->snaps++;
    s->totals.snapshots++;
}

static int run_snapshot(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct snap *snap = t->snap;
    if (!snap->image)
        snap->image = model_image_begin(snap->source->model, snap->name);
    note_beside(c->sim, snap->source);
    struct snapshot_info info;
    int rc = catalog_snapshot_create(&c->catalog, snap->name, snap->source->id, &info, e);
    if (!c->dead)
        note_beside(c->sim, snap->source);
    if (snap->state == UNBORN)
        model_image_end(snap->image);
    if (snap->source->restoring > 0)
        scenarios_note(c->sim, S9_SNAPSHOT_DURING_RESTORE);
    if (rc == 0 && !c->dead)
        snapshot_is_there(c->sim, snap, &info);
    if (rc == 0)
        snapshot_info_release(&info);
    return rc;
}

/* Is a snapshot there after all, whose makers died and whose source is gone? */
static int run_find_snapshot(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct snapshot_info info;
    int rc = catalog_snapshot_find(&c->catalog, t->snap->name, &info, e);
    if (rc == -ERR_NOT_FOUND && !c->dead)
        t->snap->state = DEAD;
    if (rc < 0)
        return rc == -ERR_NOT_FOUND ? 0 : rc;
    if (!c->dead)
        snapshot_is_there(c->sim, t->snap, &info);
    snapshot_info_release(&info);
    return 0;
}

static int run_delete_snapshot(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    t->snap->state = DYING;
    int rc = catalog_snapshot_delete(&c->catalog, t->snap->id, e);
    if (rc == 0 && !c->dead && t->snap->state != DEAD) {
        t->snap->state = DEAD;
        t->snap->source->snaps--;
    }
    return rc;
}

/* Takes the volume from its node first, when it is told to. */
static int run_restore(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct sim *s = c->sim;
    struct sim_volume *vol = t->vol;
    struct volume_info info;
    if (t->steal) {
        int rc = catalog_volume_unpublish(&c->catalog, vol->id, NULL, e);
        vol->published = false; /* also when it is dead: it may have come to its end */
        if (rc < 0 || c->dead)
            return rc;
    }
    restores_begin(s, vol, t->snap);
    int rc = catalog_snapshot_restore(&c->catalog, t->snap->id, vol->id, &info, e);
    if (rc < 0)
        return rc;
    volume_info_release(&info);
    if (!c->dead)
        vol->published = false;
    return 0;
}

/* --- lists --- */

enum { LISTED_MAX = 1000 };

/* What a list has to show (LIVE from before the call to its end), and what it may not (DEAD
 * before). */
struct listing {
    const char *ids[LISTED_MAX];
    enum existence before[LISTED_MAX];
    bool seen[LISTED_MAX];
    size_t count;
};

static void listing_add(struct listing *l, const char *id, enum existence state) {
    if (id[0] == '\0' || l->count == LISTED_MAX)
        return;
    l->ids[l->count] = id;
    l->before[l->count++] = state;
}

static void listing_mark(struct listing *l, const char *id) {
    for (size_t i = 0; i < l->count; i++)
        if (strcmp(l->ids[i], id) == 0)
            l->seen[i] = true;
}

static void listing_judge(const struct listing *l, size_t i, enum existence after, struct sim *s) {
    if (l->before[i] == LIVE && after == LIVE && !l->seen[i])
        sim_fail(s, "a list does not show %s", l->ids[i]);
    if (l->before[i] == DEAD && l->seen[i])
        sim_fail(s, "a list shows %s, which was deleted", l->ids[i]);
}

static int list_volumes(struct controller *c, struct listing *l, struct err *e) {
    struct volume_list page = {0};
    char token[CATALOG_TOKEN_MAX] = "";
    size_t max = sim_between(&c->sim->world, 1, 8);
    do {
        int rc = catalog_volume_list(&c->catalog, token, max, &page, NULL, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++)
            listing_mark(l, page.items[i].id);
        memcpy(token, page.next_token, sizeof token);
        volume_list_release(&page);
    } while (token[0]);
    return 0;
}

static int list_snapshots(struct controller *c, struct listing *l, struct err *e) {
    struct snapshot_list page = {0};
    char token[CATALOG_TOKEN_MAX] = "";
    size_t max = sim_between(&c->sim->world, 1, 8);
    do {
        int rc = catalog_snapshot_list(&c->catalog, NULL, token, max, &page, NULL, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++)
            listing_mark(l, page.items[i].id);
        memcpy(token, page.next_token, sizeof token);
        snapshot_list_release(&page);
    } while (token[0]);
    return 0;
}

static int run_list_volumes(struct controller *c, struct err *e) {
    struct sim *s = c->sim;
    CLEANUP_FREE struct listing *l = NEW(struct listing);
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        listing_add(l, v->id, v->state);
    }
    int rc = list_volumes(c, l, e);
    if (rc < 0 || c->dead)
        return rc;
    for (size_t i = 0; i < l->count; i++)
        list_for_each (&s->volumes, node) {
            struct sim_volume *v = list_entry(node, struct sim_volume, node);
            if (v->id == l->ids[i])
                listing_judge(l, i, v->state, s);
        }
    return 0;
}

static int run_list_snapshots(struct controller *c, struct err *e) {
    struct sim *s = c->sim;
    CLEANUP_FREE struct listing *l = NEW(struct listing);
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        listing_add(l, n->id, n->state);
    }
    int rc = list_snapshots(c, l, e);
    if (rc < 0 || c->dead)
        return rc;
    for (size_t i = 0; i < l->count; i++)
        list_for_each (&s->snaps, node) {
            struct snap *n = list_entry(node, struct snap, node);
            if (n->id == l->ids[i])
                listing_judge(l, i, n->state, s);
        }
    return 0;
}

static int run_list(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    c->sim->totals.lists++;
    return sim_chance(&c->sim->world, 500) ? run_list_volumes(c, e) : run_list_snapshots(c, e);
}

static int run_background(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct background_result result = {0};
    int rc = background_pass(&c->background, &result, e);
    c->sim->totals.pins_swept += result.pins_swept;
    if (rc == 0 && result.failures > 0)
        sim_trace(&c->sim->world, c->proc.name, "background left %zu volumes: %s", result.failures,
                  result.first_failure.text);
    return rc;
}

/* portalctl gc of a volume that nobody has. */
static int run_maintain(struct task *t, struct err *e) {
    struct volume_maintained result;
    int rc = catalog_volume_maintain(&t->controller->catalog, t->vol->id, &result, e);
    t->controller->sim->totals.maintained += rc == 0;
    return rc;
}

static void on_fsck_finding(void *arg, const struct fsck_finding *f) {
    const struct task *t = arg;
    struct sim *s = t->controller->sim;
    sim_trace(&s->world, t->controller->proc.name, "fsck: %s: %s", f->key, f->text);
    if (!t->controller->dead && (t->at_rest || f->kind == FSCK_DAMAGE))
        sim_fail(s, "fsck says of %s: %s", f->key, f->text);
}

static int run_fsck(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct fsck f = {.catalog = &c->catalog,
                     .quick = !t->at_rest || sim_chance(&c->sim->world, 500),
                     .on_finding = on_fsck_finding,
                     .arg = t};
    int rc = fsck_pool(&f, e);
    c->sim->totals.fscks += rc == 0;
    return rc;
}

/* The first task of a run: the pool and its nodes. */
static int run_prepare(struct task *t, struct err *e) {
    struct controller *c = t->controller;
    struct pool_create options = {0};
    struct pool_record pool;
    int rc = catalog_pool_create(&c->catalog, &options, &pool, e);
    if (rc < 0)
        return rc;
    pool_record_release(&pool);
    for (unsigned i = 0; rc == 0 && i < NODES; i++) {
        char node[16];
        node_name(node, sizeof node, i);
        rc = catalog_node_register(&c->catalog, node, "1", e);
    }
    return rc;
}

/* --- the process --- */

static int run(struct task *t, struct err *e) {
    switch (t->kind) {
    case TASK_PREPARE:
        return run_prepare(t, e);
    case TASK_CREATE:
        return run_create(t, e);
    case TASK_PUBLISH:
        return run_publish(t, e);
    case TASK_UNPUBLISH:
        return run_unpublish(t, e);
    case TASK_EXPAND:
        return run_expand(t, e);
    case TASK_DELETE:
        return run_delete(t, e);
    case TASK_SNAPSHOT:
        return run_snapshot(t, e);
    case TASK_FIND_SNAPSHOT:
        return run_find_snapshot(t, e);
    case TASK_DELETE_SNAPSHOT:
        return run_delete_snapshot(t, e);
    case TASK_RESTORE:
        return run_restore(t, e);
    case TASK_MAINTAIN:
        return run_maintain(t, e);
    case TASK_FSCK:
        return run_fsck(t, e);
    case TASK_LIST:
        return run_list(t, e);
    case TASK_BACKGROUND:
        return run_background(t, e);
    case TASK_KINDS:
        break;
    }
    return -ERR_INVALID;
}

static void task_main(void *arg) {
    struct task *t = arg;
    struct controller *c = t->controller;
    struct err e = {0};
    int rc = run(t, &e);
    judge(t, rc, &e);
    c->sim->totals.tasks++;
    c->sim->totals.tasks_killed += c->dead;
    if (t->vol)
        t->vol->busy--;
    if (t->kind == TASK_RESTORE)
        t->vol->restoring--;
    if (t->kind == TASK_SNAPSHOT)
        t->snap->makers--;
    c->tasks--;
    c->tasks_of[t->kind]--;
    free(t);
}

void controller_submit(struct controller *c, const struct task *t) {
    struct task *copy = NEW(struct task);
    *copy = *t;
    copy->controller = c;
    if (t->vol) {
        t->vol->busy++;
        t->vol->tasks_begun++;
    }
    if (t->kind == TASK_SNAPSHOT && ++t->snap->makers > 1)
        scenarios_note(c->sim, S7_TWO_MAKERS);
    if (t->kind == TASK_RESTORE)
        t->vol->restoring++;
    c->tasks++;
    c->tasks_of[t->kind]++;
    sim_trace(&c->sim->world, c->proc.name, "%s %s ...", task_names[t->kind],
              t->snap  ? t->snap->name
              : t->vol ? t->vol->name
                       : "");
    fiber_start(&c->proc.env, task_main, copy);
}

static void on_kill(struct sim_proc *p) {
    struct controller *c = p->owner;
    c->dead = true;
    sim_store_cut(c->below);
}

static bool is_gone(struct sim_proc *p) {
    return ((const struct controller *)p->owner)->tasks == 0;
}

struct controller *controller_start(struct sim *s) {
    struct controller *c = NEW(struct controller);
    c->sim = s;
    char name[SIM_NAME_MAX];
    name_format(name, sizeof name, "c", s->next_number++);
    sim_proc_init(&c->proc, &s->world, name);
    c->proc.owner = c;
    c->proc.on_kill = on_kill;
    c->proc.gone = is_gone;
    c->below = sim_store_open(s->bucket, &c->proc, name);
    c->store = store_stack(s, c->below);
    catalog_init(&c->catalog, &c->proc.env, c->store, SIM_POOL);
    background_init(&c->background, &c->catalog);
    list_push_back(&s->controllers, &c->node);
    s->totals.controllers++;
    return c;
}

void controller_kill(struct controller *c) {
    if (c->sim->ambushed == &c->proc)
        c->sim->ambushed = NULL;
    scenarios_at_kill(c->sim, &c->proc);
    sim_trace(&c->sim->world, c->proc.name, "KILLED");
    sim_proc_kill(&c->proc);
    background_release(&c->background);
    objstore_close(c->store);
    sim_proc_release(&c->proc);
    list_remove(&c->node);
    free(c);
}
