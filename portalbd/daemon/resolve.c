/* Names of exports, looked up in the catalog. */
#include "portalbd/daemon/resolve.h"

#include <string.h>

enum { PATIENCE_US = 1000 * 1000 }; /* for a store that is in trouble, and between two looks */

static void set_target(struct served_target *t, const char *id, const char *name) {
    memcpy(t->id, id, ID_MAX);
    size_t len = strnlen(name, ENTITY_NAME_MAX);
    memcpy(t->name, name, len);
    t->name[len] = '\0';
}

static int find_snapshot(struct daemon *d, const char *name, bool is_id, struct resolved *ret,
                         struct err *e) {
    struct catalog *c = &d->pool.catalog;
    struct snapshot_info info;
    int rc =
        is_id ? catalog_snapshot_get(c, name, &info, e) : catalog_snapshot_find(c, name, &info, e);
    if (rc < 0)
        return rc;
    *ret = (struct resolved){.target = {.key = info.record.source,
                                        .is_snapshot = true,
                                        .pin = info.record.pin,
                                        .read_only = true}};
    set_target(&ret->target, info.id, info.record.name);
    snapshot_info_release(&info);
    return 0;
}

static int find_volume(struct daemon *d, const char *name, bool is_id, struct resolved *ret,
                       struct err *e) {
    struct catalog *c = &d->pool.catalog;
    struct volume_info info;
    int rc = is_id ? catalog_volume_get(c, name, &info, e) : catalog_volume_find(c, name, &info, e);
    if (rc < 0)
        return rc;
    *ret = (struct resolved){.was_ours = strcmp(info.record.node, d->config.node_id) == 0};
    set_target(&ret->target, info.id, info.record.name);
    volume_info_release(&info);
    return 0;
}

int resolve(struct daemon *d, const char *name, struct resolved *ret, struct err *e) {
    struct parsed_id parsed;
    bool is_id = id_parse(&parsed, name, NULL) == 0;
    if (is_id ? parsed.kind == ID_SNAPSHOT : strchr(name, '@') != NULL)
        return find_snapshot(d, name, is_id, ret, e);
    return find_volume(d, name, is_id, ret, e);
}

struct search {
    struct daemon *daemon;
    const char *name;
    struct resolved found;
    int rc;
    struct err err;
    bool ended;
    struct waitq end;
};

static void search_fiber(void *arg) {
    struct search *s = arg;
    s->rc = resolve(s->daemon, s->name, &s->found, &s->err);
    s->ended = true;
    waitq_wake_all(&s->end);
}

int resolve_unless(struct daemon *d, const char *name, bool (*may_do_without)(void *arg), void *arg,
                   struct resolved *ret, struct err *e) {
    struct search s = {.daemon = d, .name = name};
    waitq_init(&s.end);
    struct fiber *fiber = fiber_start(d->env, search_fiber, &s);
    bool does_without = false;
    int rc = 0;
    while (!s.ended && !does_without && rc != -ERR_CANCELLED) {
        rc = waitq_wait_for(d->env, &s.end, PATIENCE_US);
        does_without = !s.ended && d->trouble && may_do_without(arg);
    }
    if (!s.ended)
        fiber_cancel(fiber);
    while (!s.ended)
        waitq_wait_always(d->env, &s.end);
    if (s.rc == 0)
        *ret = s.found;
    else if (does_without)
        return err_set(e, -ERR_TRANSIENT, "the store does not answer");
    else
        return err_copy(e, &s.err);
    return 0;
}
