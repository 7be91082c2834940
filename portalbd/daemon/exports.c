/* The volumes of `serve`: opened when a client asks for the first time, open until the process
 * ends.
 *
 *   (none) --lookup--> OPENING --opened--> OPEN --end--> closed, dropped, freed
 *                         `--failed--> (none)
 *
 * "name" is a volume, "name@snapshot" the pool's snapshot of that name, read-only; ids of either
 * work too. Who asks for an export that another client opens waits for that. The clients of a
 * volume that is out of use (fenced) are disconnected; when the last has gone it is dropped, and
 * opened again when asked for. Snapshots that nobody uses are closed at once. */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/daemon/resolve.h"

enum { ATTEMPTS_MAX = 16 }; /* of an export that others open and close meanwhile */

struct export {
    struct list_node node;
    char id[ID_MAX];       /* of volume or snapshot; of usable ones there is one of each */
    struct served *served; /* NULL while OPENING */
    bool published;        /* by us */
    bool dropping;         /* a fiber closes and frees it */
    unsigned users;
    struct err failure; /* of opening: for those who waited */
    unsigned waiting;   /* fibers that wait for the end of OPENING */
    bool failed;
    bool dropped;        /* those who waited open it anew */
    struct waitq opened; /* also for the end of `dropping` */
};

struct exports {
    struct nbd_exports interface;
    struct daemon *daemon;
    struct list_node items;
    size_t count;
    struct list_node asking; /* struct ask */
    struct waitq asked;
    bool closing;
};

/* A lookup or listing under way, in a fiber of its own; neither: the recovery. */
struct ask {
    struct list_node node;
    struct exports *exports;
    struct fiber *fiber;
    struct nbd_lookup *lookup;
    struct nbd_listing *listing;
};

/* --- opening --- */

/* Names come and go and mean another volume then: an export is known by its id alone. */
static struct export *find_export(struct exports *x, const char *id) {
    list_for_each (&x->items, n) {
        struct export *o = list_entry(n, struct export, node);
        if (o->failed || o->dropped)
            continue; /* only who waited for it still looks at it */
        if (strcmp(o->id, id) == 0)
            return o;
    }
    return NULL;
}

/* Is it a client's? */
static bool is_usable(const struct export *o) {
    return o->served && !o->dropping && !o->served->broken;
}

/* The one that was opened last of those that clients have by this very name (or id). */
static struct export *find_open(struct exports *x, const char *name) {
    struct export *found = NULL;
    list_for_each (&x->items, n) {
        struct export *o = list_entry(n, struct export, node);
        if (is_usable(o) && (strcmp(o->id, name) == 0 || strcmp(o->served->target.name, name) == 0))
            found = o;
    }
    return found;
}

static void free_export(struct exports *x, struct export *o) {
    CHECK(!o->served && !o->waiting && !o->users);
    list_remove(&o->node);
    x->count--;
    free(o);
}

static void close_and_free(struct exports *x, struct export *o) {
    daemon_close_volume(x->daemon, o->served, o->published);
    served_drop(o->served);
    served_free(o->served);
    o->served = NULL;
}

struct drop {
    struct exports *exports;
    struct export *export;
};

static void drop_fiber(void *arg) {
    struct drop *k = arg;
    struct exports *x = k->exports;
    close_and_free(x, k->export);
    k->export->dropped = true;
    waitq_wake_all(&k->export->opened);
    if (!k->export->waiting)
        free_export(x, k->export);
    free(k);
    waitq_wake_all(&x->asked);
}

/* Nobody uses it any more. */
static void unused(struct exports *x, struct export *o) {
    if (x->closing || o->dropping || !(o->served->broken || o->served->target.is_snapshot))
        return;
    o->dropping = true;
    struct drop *k = NEW(struct drop);
    *k = (struct drop){x, o};
    fiber_start(x->daemon->env, drop_fiber, k);
}

/* fiber. What was published for this very opening is nobody's afterwards; takes s. */
static void give_back(struct exports *x, struct served *s) {
    struct daemon *d = x->daemon;
    struct err e;
    if (s->volume)
        daemon_close_volume(d, s, true);
    else if (catalog_volume_unpublish(&d->pool.catalog, s->target.id, d->config.node_id, &e) < 0)
        log_warn("the volume stays published to this node", LOG_STR("volume", s->target.id),
                 LOG_ERR(&e));
}

/* The lock and the journal come before the record: a node that cannot have them takes nothing, and
 * no other daemon of this node is between our record and our end. */
static int open_target(struct exports *x, struct export *o, const struct resolved *r,
                       struct err *e) {
    struct daemon *d = x->daemon;
    struct served_target target = r->target;
    struct served *s;
    int rc = served_prepare(&d->served_config, &target, &s, e);
    if (rc < 0)
        return rc;
    if (!target.is_snapshot)
        rc = daemon_publish(d, o->id, false, &target, e);
    bool published = rc == 0 && !target.is_snapshot;
    if (rc == 0)
        rc = served_start(s, &target, e);
    if (rc < 0) {
        if (published && !r->was_ours)
            give_back(x, s);
        served_drop(s);
        served_free(s);
        return rc;
    }
    o->published = published;
    o->served = s;
    recovery_opened(d->recovery, o->id);
    return 0;
}

static int open_new(struct exports *x, const struct resolved *r, struct export **ret,
                    struct err *e) {
    if (x->count >= EXPORTS_OPEN_MAX)
        return err_set(e, -ERR_OVERLOAD, "%d exports are open, which is the limit",
                       EXPORTS_OPEN_MAX);
    struct export *o = NEW(struct export);
    memcpy(o->id, r->target.id, sizeof o->id);
    waitq_init(&o->opened);
    list_push_back(&x->items, &o->node);
    x->count++;
    int rc = open_target(x, o, r, &o->failure);
    waitq_wake_all(&o->opened);
    if (rc == 0) {
        *ret = o;
        return 0;
    }
    o->failed = true;
    err_copy(e, &o->failure);
    if (!o->waiting)
        free_export(x, o);
    return rc;
}

/* Waits for who opens or closes it. -ERR_STALE: look again. */
static int await_export(struct exports *x, struct export *o, struct err *e) {
    int rc = 0;
    o->waiting++;
    while (rc == 0 && !o->failed && !o->dropped && !is_usable(o))
        rc = waitq_wait(x->daemon->env, &o->opened);
    o->waiting--;
    if (rc < 0)
        rc = err_set(e, -ERR_SHUTDOWN, "the server is shutting down");
    else if (o->failed)
        rc = err_copy(e, &o->failure);
    else if (o->dropped)
        rc = err_set(e, -ERR_STALE, "it was closed meanwhile");
    if ((o->failed || o->dropped) && !o->waiting)
        free_export(x, o);
    return rc;
}

struct by_name {
    struct exports *exports;
    const char *name;
};

static bool is_open(void *arg) {
    const struct by_name *b = arg;
    return find_open(b->exports, b->name) != NULL;
}

/* fiber. What the name means is asked anew each time: a volume that was made in place of another
 * must never be taken for it. Only while the store does not answer a client gets what is open under
 * the name that it says: after a broken connection it would else have no disk until the store is
 * back, and those that are still connected have the same. A store that says NOT_FOUND is believed.
 */
static int find_or_open(struct exports *x, const char *name, struct export **ret, struct err *e) {
    struct by_name by_name = {x, name};
    for (unsigned i = 0; i < ATTEMPTS_MAX; i++) {
        struct resolved r;
        int rc = resolve_unless(x->daemon, name, is_open, &by_name, &r, e);
        struct export *o = rc == 0                ? find_export(x, r.target.id)
                           : rc == -ERR_TRANSIENT ? find_open(x, name)
                                                  : NULL;
        if (rc < 0 && !o)
            return rc;
        rc = 0;
        if (!o)
            rc = open_new(x, &r, &o, e);
        else if (!is_usable(o))
            rc = await_export(x, o, e);
        if (rc == -ERR_STALE)
            continue;
        if (rc == 0)
            *ret = o;
        return rc;
    }
    return err_set(e, -ERR_BUSY, "export '%s' comes and goes: connect again", name);
}

bool exports_allows(const struct daemon *d, const char *name) {
    for (size_t i = 0; i < d->volume_count; i++) {
        if (strcmp(d->volumes[i], name) == 0)
            return true;
    }
    return d->volume_count == 0;
}

static int lookup(struct exports *x, struct nbd_lookup *l) {
    struct daemon *d = x->daemon;
    struct export *o = NULL;
    const char *name = l->name;
    if (x->closing)
        return err_set(&l->err, -ERR_SHUTDOWN, "the server is shutting down");
    if (name[0] == '\0' && d->volume_count == 1)
        name = d->volumes[0];
    if (name[0] == '\0')
        return err_set(&l->err, -ERR_NOT_FOUND, "name a volume, or volume@snapshot");
    if (!exports_allows(d, name))
        return err_set(&l->err, -ERR_NOT_FOUND, "there is no export '%s' here", name);
    int rc = find_or_open(x, name, &o, &l->err);
    if (rc < 0) {
        static struct log_limit limit;
        log_warn_limited(&limit, "an export was not opened", LOG_STR("export", name),
                         LOG_ERR(&l->err));
        return rc;
    }
    o->users++;
    l->dev = o->served->dev;
    l->description = o->served->target.id;
    l->handle = o;
    return 0;
}

static void put_export(struct exports *x, struct export *o) {
    CHECK(o->users > 0);
    if (--o->users == 0)
        unused(x, o);
}

int exports_recover(struct exports *x, const struct resolved *found, struct err *e) {
    struct export *o = find_export(x, found->target.id);
    int rc = 0;
    if (!o)
        rc = open_new(x, found, &o, e);
    else if (!is_usable(o))
        rc = await_export(x, o, e);
    if (rc < 0)
        return rc;
    o->users++;
    rc = volume_flush(o->served->volume, e);
    put_export(x, o);
    return rc;
}

/* --- lists --- */

static int list_pool(struct exports *x, struct nbd_listing *l) {
    struct volume_list page = {0};
    struct err damage = {0};
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        volume_list_release(&page);
        int rc = catalog_volume_list(&x->daemon->pool.catalog, token, 0, &page, &damage, &l->err);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count && l->count < NBD_LIST_MAX; i++)
            nbd_listing_add(l, page.items[i].record.name, page.items[i].id);
    } while (page.next_token[0] && l->count < NBD_LIST_MAX);
    volume_list_release(&page);
    if (damage.code)
        log_warn("the list of exports is not whole", LOG_ERR(&damage));
    return 0;
}

static int list_exports(struct exports *x, struct nbd_listing *l) {
    struct daemon *d = x->daemon;
    if (d->volume_count == 0)
        return list_pool(x, l);
    for (size_t i = 0; i < MIN(d->volume_count, (size_t)NBD_LIST_MAX); i++)
        nbd_listing_add(l, d->volumes[i], NULL);
    return 0;
}

/* --- the server's interface --- */

static void ask_fiber(void *arg) {
    struct ask *a = arg;
    struct exports *x = a->exports;
    if (a->lookup)
        a->lookup->rc = lookup(x, a->lookup);
    else if (a->listing)
        a->listing->rc = list_exports(x, a->listing);
    else
        recovery_run(x->daemon->recovery);
    list_remove(&a->node);
    if (a->lookup)
        a->lookup->done(a->lookup);
    else if (a->listing)
        a->listing->done(a->listing);
    free(a);
    waitq_wake_all(&x->asked);
}

static void start_ask(struct exports *x, struct nbd_lookup *lookup, struct nbd_listing *listing) {
    struct ask *a = NEW(struct ask);
    *a = (struct ask){.exports = x, .lookup = lookup, .listing = listing};
    list_push_back(&x->asking, &a->node);
    a->fiber = fiber_start(x->daemon->env, ask_fiber, a);
}

static void op_open(struct nbd_exports *interface, struct nbd_lookup *l) {
    start_ask(container_of(interface, struct exports, interface), l, NULL);
}

static void op_list(struct nbd_exports *interface, struct nbd_listing *l) {
    start_ask(container_of(interface, struct exports, interface), NULL, l);
}

void exports_out_of_use(struct exports *x, const struct served *s) {
    list_for_each (&x->items, n) {
        struct export *o = list_entry(n, struct export, node);
        if (o->served != s)
            continue;
        if (x->daemon->nbd)
            nbd_server_end_clients(x->daemon->nbd, o);
        if (o->users == 0)
            unused(x, o);
    }
}

static void op_close(struct nbd_exports *interface, void *handle) {
    struct exports *x = container_of(interface, struct exports, interface);
    put_export(x, handle);
}

static const struct nbd_exports_ops exports_ops = {
    .open = op_open, .list = op_list, .close = op_close};

struct nbd_exports *exports_interface(struct exports *x) {
    return &x->interface;
}

/* --- life --- */

struct exports *exports_new(struct daemon *d) {
    struct exports *x = NEW(struct exports);
    x->interface.ops = &exports_ops;
    x->daemon = d;
    list_init(&x->items);
    list_init(&x->asking);
    waitq_init(&x->asked);
    if (d->recovery)
        start_ask(x, NULL, NULL);
    return x;
}

static bool is_dropping(const struct exports *x) {
    list_for_each ((struct list_node *)&x->items, n) {
        if (list_entry(n, struct export, node)->dropping)
            return true;
    }
    return false;
}

void exports_cancel_opening(struct exports *x) {
    x->closing = true;
    list_for_each (&x->asking, n)
        fiber_cancel(list_entry(n, struct ask, node)->fiber);
    while (!list_empty(&x->asking) || is_dropping(x)) {
        int rc = waitq_wait(x->daemon->env, &x->asked);
        CHECK(rc == 0); /* nobody cancels the fiber that ends the process */
    }
}

struct closing {
    struct exports *exports;
    struct export *export;
};

static void close_fiber(void *arg) {
    struct closing *k = arg;
    daemon_close_volume(k->exports->daemon, k->export->served, k->export->published);
}

void exports_close_all(struct exports *x) {
    struct closing *all = xcalloc(MAX(x->count, 1), sizeof *all);
    struct fiber_group group;
    size_t i = 0;
    fiber_group_init(&group, x->daemon->env);
    list_for_each (&x->items, n) {
        all[i] = (struct closing){x, list_entry(n, struct export, node)};
        fiber_group_start(&group, close_fiber, &all[i++]);
    }
    fiber_group_wait(&group);
    free(all);
}

void exports_drop_all(struct exports *x) {
    list_for_each (&x->items, n)
        served_drop(list_entry(n, struct export, node)->served);
}

void exports_free(struct exports *x) {
    list_for_each (&x->items, n) {
        struct export *o = list_entry(n, struct export, node);
        served_free(TAKE_PTR(o->served));
        free_export(x, o);
    }
    free(x);
}
