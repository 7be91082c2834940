/* portalctl: volumes and snapshots, on the store. */
#include <string.h>

#include "common/mem.h"
#include "portalbd/control/client.h"
#include "portalbd/daemon/portalctl_internal.h"

/* --- things as JSON --- */

static const char *const state_names[] = {[VOLUME_READY] = "ready",
                                          [VOLUME_FENCING] = "fencing",
                                          [VOLUME_RESTORING] = "restoring",
                                          [VOLUME_DELETED] = "deleted"};

static json_t *encode_volume(const struct volume_info *i) {
    const struct volume_record *r = &i->record;
    return json_pack("{s:s,s:s,s:I,s:s,s:s,s:b,s:I,s:s,s:I}", "name", r->name, "id", i->id,
                     "size_bytes", (json_int_t)i->size_bytes, "state", state_names[r->state],
                     "node", r->node, "closed", i->closed, "publish_epoch",
                     (json_int_t)r->publish_epoch, "source", r->source, "created_ms",
                     (json_int_t)r->created_ms);
}

static json_t *encode_snapshot(const struct snapshot_info *i) {
    const struct snapshot_record *r = &i->record;
    return json_pack("{s:s,s:s,s:s,s:s,s:I,s:I}", "name", r->name, "id", i->id, "volume",
                     i->source_id, "volume_name", r->source_name, "size_bytes",
                     (json_int_t)r->size_bytes, "created_ms", (json_int_t)r->created_ms);
}

static char *snapshot_name(const char *volume, const char *name) {
    return strchr(name, '@') ? xstrdup(name) : xasprintf("%s@%s", volume, name);
}

/* --- volumes --- */

static int create(struct ctl *c, const struct volume_create *req, struct err *e) {
    struct volume_info info;
    int rc = catalog_volume_create(c->catalog, req, &info, e);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&info);
    volume_info_release(&info);
    return 0;
}

int ctl_volume_create(struct ctl *c, struct err *e) {
    int rc = ctl_need_pool(c, e);
    if (rc < 0)
        return rc;
    if (!c->config.size && !c->config.source)
        return err_set(e, -ERR_INVALID, "volume create: --size is missing");
    return create(c,
                  &(struct volume_create){
                      .name = c->argv[0], .size_bytes = c->config.size, .source = c->config.source},
                  e);
}

/* A volume, or a snapshot; a volume that is open here is flushed first. */
static int find_source(struct ctl *c, const char *name, char ret_id[ID_MAX], struct err *e) {
    struct snapshot_info snapshot;
    struct volume_info volume;
    json_t *flushed = NULL;
    int rc;
    if (ctl_is_id(name, ID_SNAPSHOT) || strchr(name, '@')) {
        rc = ctl_find_snapshot(c, name, &snapshot, e);
        if (rc < 0)
            return rc;
        memcpy(ret_id, snapshot.id, ID_MAX);
        snapshot_info_release(&snapshot);
        return 0;
    }
    rc = ctl_find_volume(c, name, &volume, e);
    if (rc < 0)
        return rc;
    memcpy(ret_id, volume.id, ID_MAX);
    volume_info_release(&volume);
    rc = ctl_ask(c, ret_id, "flush", NULL, &flushed, e);
    json_decref(flushed);
    return rc == -ERR_NOT_FOUND ? 0 : rc;
}

int ctl_volume_clone(struct ctl *c, struct err *e) {
    char source[ID_MAX];
    int rc = find_source(c, c->argv[0], source, e);
    if (rc < 0)
        return rc;
    return create(
        c,
        &(struct volume_create){.name = c->argv[1], .size_bytes = c->config.size, .source = source},
        e);
}

int ctl_volume_list(struct ctl *c, struct err *e) {
    struct volume_list page = {0};
    struct err damage = {0};
    int rc = ctl_need_pool(c, e);
    if (rc < 0)
        return rc;
    c->result = json_array();
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        volume_list_release(&page);
        rc = catalog_volume_list(c->catalog, token, 0, &page, &damage, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++)
            json_array_append_new(c->result, encode_volume(&page.items[i]));
    } while (page.next_token[0]);
    volume_list_release(&page);
    return err_copy(e, &damage);
}

int ctl_volume_show(struct ctl *c, struct err *e) {
    struct volume_info info;
    int rc = ctl_find_volume(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&info);
    volume_info_release(&info);
    return 0;
}

/* A device's agent grows it, too; other daemons have no device. */
static int ask_to_grow(struct ctl *c, const char *id, uint64_t size, json_t **ret, struct err *e) {
    int rc = -ERR_NOT_FOUND;
    if (ctl_agent_is_live(c))
        rc = ctl_agent_ask(c, "grow",
                           json_pack("{s:s,s:I}", "volume", id, "size_bytes", (json_int_t)size),
                           c->config.timeout_us, ret, e);
    if (rc == -ERR_NOT_FOUND)
        rc = ctl_ask(c, id, "grow", json_pack("{s:I}", "size_bytes", (json_int_t)size), ret, e);
    return rc;
}

int ctl_volume_grow(struct ctl *c, struct err *e) {
    struct volume_info info;
    uint64_t size;
    bool needs_node;
    int rc = option_parse_size(c->argv[1], &size, e);
    if (rc < 0 || (rc = ctl_find_volume(c, c->argv[0], &info, e)) < 0)
        return rc;
    char id[ID_MAX];
    memcpy(id, info.id, ID_MAX);
    uint64_t was = info.size_bytes;
    volume_info_release(&info);
    if (size < was)
        return err_set(e, -ERR_INVALID, "volume '%s' has %llu bytes, and volumes do not shrink",
                       c->argv[0], (unsigned long long)was);
    rc = catalog_volume_expand(c->catalog, id, size, 0, &info, &needs_node, e);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&info);
    volume_info_release(&info);
    if (!needs_node)
        return 0;
    json_t *answer = NULL;
    rc = ask_to_grow(c, id, size, &answer, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(e, -ERR_IN_USE,
                       "the new size is on record, but the volume is open elsewhere: it grows when "
                       "portalctl volume grow runs on that node, or when it is closed");
    if (rc < 0)
        return rc;
    json_object_set(c->result, "size_bytes", json_object_get(answer, "size_bytes"));
    json_decref(answer);
    return 0;
}

int ctl_volume_delete(struct ctl *c, struct err *e) {
    struct volume_info info;
    int rc = ctl_find_volume(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    if (!c->config.force && control_is_live(c->config.run_dir, info.id))
        rc = err_set(e, -ERR_IN_USE, "volume '%s' is served on this node; --force deletes it",
                     c->argv[0]);
    else
        rc = catalog_volume_delete(c->catalog, info.id, c->config.force, e);
    volume_info_release(&info);
    return rc;
}

/* --- snapshots --- */

int ctl_snapshot_create(struct ctl *c, struct err *e) {
    struct volume_info volume;
    struct snapshot_info info;
    if (!c->argv[1][0])
        return err_set(e, -ERR_INVALID, "a snapshot needs a name");
    int rc = ctl_find_volume(c, c->argv[0], &volume, e);
    if (rc < 0)
        return rc;
    CLEANUP_FREE char *name = snapshot_name(volume.record.name, c->argv[1]);
    rc = ctl_ask(c, volume.id, "snapshot.create", json_pack("{s:s}", "name", name), &c->result, e);
    if (rc == -ERR_NOT_FOUND) { /* no daemon here: the store is enough */
        rc = catalog_snapshot_create(c->catalog, name, volume.id, &info, e);
        if (rc == 0) {
            c->result = encode_snapshot(&info);
            snapshot_info_release(&info);
        }
    }
    volume_info_release(&volume);
    return rc;
}

int ctl_snapshot_list(struct ctl *c, struct err *e) {
    struct snapshot_list page = {0};
    struct err damage = {0};
    char volume[ID_MAX] = "";
    int rc = ctl_need_pool(c, e);
    if (rc == 0 && c->argv[0]) {
        struct volume_info info;
        rc = ctl_find_volume(c, c->argv[0], &info, e);
        if (rc == 0) {
            memcpy(volume, info.id, ID_MAX);
            volume_info_release(&info);
        }
    }
    if (rc < 0)
        return rc;
    c->result = json_array();
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        snapshot_list_release(&page);
        rc = catalog_snapshot_list(c->catalog, volume, token, 0, &page, &damage, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++)
            json_array_append_new(c->result, encode_snapshot(&page.items[i]));
    } while (page.next_token[0]);
    snapshot_list_release(&page);
    return err_copy(e, &damage);
}

int ctl_snapshot_show(struct ctl *c, struct err *e) {
    struct snapshot_info info;
    int rc = ctl_find_snapshot(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    c->result = encode_snapshot(&info);
    snapshot_info_release(&info);
    return 0;
}

int ctl_snapshot_delete(struct ctl *c, struct err *e) {
    struct snapshot_info info;
    int rc = ctl_find_snapshot(c, c->argv[0], &info, e);
    if (rc < 0)
        return rc;
    rc = catalog_snapshot_delete(c->catalog, info.id, e);
    snapshot_info_release(&info);
    return rc;
}

/* The volume that a snapshot was cut from; nobody may have it, and the user knows what goes. */
static int may_restore(struct ctl *c, const struct snapshot_info *s, struct err *e) {
    struct volume_info v;
    char when[32];
    int rc = catalog_volume_get(c->catalog, s->source_id, &v, e);
    if (rc == -ERR_NOT_FOUND)
        return err_set(
            e, rc,
            "volume '%s' of snapshot '%s' does not exist any more: portalctl volume clone "
            "%s NAME makes a new one",
            s->record.source_name, s->record.name, s->record.name);
    if (rc < 0)
        return rc;
    ctl_format_time(s->record.created_ms, when, sizeof when);
    if (v.record.node[0]) /* the catalog refuses, and says what to do */
        rc = 0;
    else if (control_is_live(c->config.run_dir, s->source_id))
        rc = err_set(e, -ERR_IN_USE,
                     "volume '%s' is served on this node: stop portalbd serve, or detach it",
                     v.record.name);
    else
        rc = ctl_confirm(c, e,
                         "volume '%s' goes back to '%s' of %s UTC; what was written since is lost, "
                         "but for other snapshots",
                         v.record.name, s->record.name, when);
    volume_info_release(&v);
    return rc;
}

int ctl_snapshot_restore(struct ctl *c, struct err *e) {
    struct snapshot_info s;
    struct volume_info v;
    int rc = ctl_find_snapshot(c, c->argv[0], &s, e);
    if (rc < 0)
        return rc;
    rc = may_restore(c, &s, e);
    if (rc == 0)
        rc = catalog_snapshot_restore(c->catalog, s.id, s.source_id, &v, e);
    snapshot_info_release(&s);
    if (rc < 0)
        return rc;
    c->result = encode_volume(&v);
    volume_info_release(&v);
    return 0;
}
