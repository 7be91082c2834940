/* The volumes of `serve`: opened when a client asks for the first time, open until the process
 * ends.
 *
 *   (none) --lookup--> OPENING --opened--> OPEN --end--> closed, dropped, freed
 *                         `--failed--> (none)
 *
 * "name" is a volume, "name@snapshot" the pool's snapshot of that name, read-only; ids of either
 * work too. Who asks for an export that another client opens waits for that. A volume that is out
 * of use (fenced) is dropped when its last client has gone, and opened again when asked for.
 * Snapshots that nobody uses are closed at once. */
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/daemon/daemon.h"

enum { ATTEMPTS_MAX = 16 }; /* of an export that others open and close meanwhile */

struct export {
    struct list_node node;
    char *name;            /* owned; as it was asked for */
    char id[ID_MAX];       /* of volume or snapshot, as soon as it is known; else "" */
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

/* A lookup or listing under way, in a fiber of its own. */
struct ask {
    struct list_node node;
    struct exports *exports;
    struct fiber *fiber;
    struct nbd_lookup *lookup;
    struct nbd_listing *listing;
};

/* --- from names to volumes --- */

static void set_name(struct served_target *t, const char *name) {
    size_t len = strnlen(name, ENTITY_NAME_MAX);
    memcpy(t->name, name, len);
    t->name[len] = '\0';
}

static int find_snapshot(struct daemon *d, const char *name, bool is_id, struct served_target *ret,
                         struct err *e) {
    struct catalog *c = &d->pool.catalog;
    struct snapshot_info info;
    int rc =
        is_id ? catalog_snapshot_get(c, name, &info, e) : catalog_snapshot_find(c, name, &info, e);
    if (rc < 0)
        return rc;
    *ret = (struct served_target){
        .key = info.record.source, .is_snapshot = true, .pin = info.record.pin, .read_only = true};
    memcpy(ret->id, info.id, sizeof ret->id);
    set_name(ret, info.record.name);
    snapshot_info_release(&info);
    return 0;
}

static int find_volume(struct daemon *d, const char *name, bool is_id, struct served_target *ret,
                       struct err *e) {
    struct catalog *c = &d->pool.catalog;
    struct volume_info info;
    int rc = is_id ? catalog_volume_get(c, name, &info, e) : catalog_volume_find(c, name, &info, e);
    if (rc < 0)
        return rc;
    char id[ID_MAX];
    memcpy(id, info.id, sizeof id);
    volume_info_release(&info);
    return daemon_publish(d, id, false, ret, e);
}

static int find_target(struct daemon *d, const char *name, struct served_target *ret,
                       struct err *e) {
    struct parsed_id parsed;
    bool is_id = id_parse(&parsed, name, NULL) == 0;
    if (is_id ? parsed.kind == ID_SNAPSHOT : strchr(name, '@') != NULL)
        return find_snapshot(d, name, is_id, ret, e);
    return find_volume(d, name, is_id, ret, e);
}

/* --- opening --- */

/* By the name it was opened with, its volume's, or its id. */
static struct export *find_export(struct exports *x, const char *name) {
    list_for_each (&x->items, n) {
        struct export *o = list_entry(n, struct export, node);
        if (o->failed || o->dropped)
            continue; /* only who waited for it still looks at it */
        if (strcmp(o->name, name) == 0 || strcmp(o->id, name) == 0 ||
            (o->served && strcmp(o->served->target.name, name) == 0))
            return o;
    }
    return NULL;
}

static void free_export(struct exports *x, struct export *o) {
    CHECK(!o->served && !o->waiting && !o->users);
    list_remove(&o->node);
    x->count--;
    free(o->name);
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

/* -ERR_STALE: ret_id is that of an export that is there already, under another name. */
static int open_target(struct exports *x, struct export *o, char ret_id[ID_MAX], struct err *e) {
    struct served_target target;
    int rc = find_target(x->daemon, o->name, &target, e);
    if (rc < 0)
        return rc;
    struct export *same = find_export(x, target.id);
    if (same && same != o) {
        memcpy(ret_id, target.id, ID_MAX);
        return err_set(e, -ERR_STALE, "it is open as '%s'", same->name);
    }
    memcpy(o->id, target.id, ID_MAX);
    o->published = !target.is_snapshot;
    return served_open(&x->daemon->served_config, &target, &o->served, e);
}

static int open_new(struct exports *x, const char *name, struct export **ret, char ret_id[ID_MAX],
                    struct err *e) {
    if (x->count >= EXPORTS_OPEN_MAX)
        return err_set(e, -ERR_OVERLOAD, "%d exports are open, which is the limit",
                       EXPORTS_OPEN_MAX);
    struct export *o = NEW(struct export);
    o->name = xstrdup(name);
    waitq_init(&o->opened);
    list_push_back(&x->items, &o->node);
    x->count++;
    int rc = open_target(x, o, ret_id, &o->failure);
    waitq_wake_all(&o->opened);
    if (rc == 0) {
        *ret = o;
        return 0;
    }
    o->failed = rc != -ERR_STALE;
    o->dropped = !o->failed;
    err_copy(e, &o->failure);
    if (!o->waiting)
        free_export(x, o);
    return rc;
}

/* Waits for who opens or closes it. -ERR_STALE: look again. */
static int await_export(struct exports *x, struct export *o, struct err *e) {
    int rc = 0;
    o->waiting++;
    while (rc == 0 && !o->failed && !o->dropped && (!o->served || o->dropping))
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

/* fiber. Opens it, or waits for who does. */
static int open_export(struct exports *x, const char *name, struct export **ret, struct err *e) {
    char id[ID_MAX], same[ID_MAX];
    for (unsigned i = 0; i < ATTEMPTS_MAX; i++) {
        struct export *o = find_export(x, name);
        int rc = 0;
        if (!o) {
            same[0] = '\0';
            rc = open_new(x, name, &o, same, e);
            if (same[0])
                name = memcpy(id, same, sizeof id);
        } else if (!o->served || o->dropping) {
            rc = await_export(x, o, e);
        }
        if (rc == -ERR_STALE)
            continue;
        if (rc == 0)
            *ret = o;
        return rc;
    }
    return err_set(e, -ERR_BUSY, "export '%s' comes and goes: connect again", name);
}

static bool is_allowed(const struct daemon *d, const char *name) {
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
    if (!is_allowed(d, name))
        return err_set(&l->err, -ERR_NOT_FOUND, "there is no export '%s' here", name);
    int rc = open_export(x, name, &o, &l->err);
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
    else
        a->listing->rc = list_exports(x, a->listing);
    list_remove(&a->node);
    if (a->lookup)
        a->lookup->done(a->lookup);
    else
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

static void op_close(struct nbd_exports *interface, void *handle) {
    struct exports *x = container_of(interface, struct exports, interface);
    struct export *o = handle;
    CHECK(o->users > 0);
    if (--o->users == 0)
        unused(x, o);
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
