/* portalctl: volumes and snapshots, on the store. */
#include <string.h>

#include "common/mem.h"
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

/* --- names --- */

/* Behind '@' a name is a snapshot's, and what looks like an id is one: nothing would find a volume
 * of such a name. (The catalog takes any: others than portalctl name by id.) */
static int check_new_volume(const char *name, struct err *e) {
    if (strchr(name, '@'))
        return err_set(e, -ERR_INVALID, "'%s' cannot be a volume's name: volume@name is a snapshot",
                       name);
    if (ctl_is_id(name, ID_VOLUME) || ctl_is_id(name, ID_SNAPSHOT))
        return err_set(e, -ERR_INVALID, "'%s' cannot be a volume's name: it has the form of an id",
                       name);
    return 0;
}

/* "<volume>@<name>", where name may be that already. *ret is owned by the caller. */
static int snapshot_name(const char *volume, const char *name, char **ret, struct err *e) {
    size_t len = strlen(volume);
    const char *own = name;
    if (strncmp(name, volume, len) == 0 && name[len] == '@')
        own = name + len + 1;
    if (!own[0])
        return err_set(e, -ERR_INVALID, "a snapshot needs a name");
    if (strchr(own, '@'))
        return err_set(e, -ERR_INVALID,
                       "a snapshot of volume '%.128s' cannot be called '%.128s': "
                       "say NAME or VOLUME@NAME",
                       volume, name);
    if (len + 2 > ENTITY_NAME_MAX)
        return err_set(e, -ERR_INVALID,
                       "the name of volume '%s' is too long for snapshots: "
                       "VOLUME@NAME has at most %d bytes",
                       volume, ENTITY_NAME_MAX);
    if (len + 1 + strlen(own) > ENTITY_NAME_MAX)
        return err_set(e, -ERR_INVALID,
                       "a snapshot's whole name, '%.128s@%.128s', has at most %d bytes", volume,
                       own, ENTITY_NAME_MAX);
    *ret = xasprintf("%s@%s", volume, own);
    return 0;
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

/* A volume, or a snapshot. */
static int find_source(struct ctl *c, const char *name, char ret_id[ID_MAX], uint64_t *ret_size,
                       struct err *e) {
    bool is_snapshot = ctl_is_id(name, ID_SNAPSHOT) || strchr(name, '@');
    struct snapshot_info snapshot;
    struct volume_info volume;
    int rc = is_snapshot ? ctl_find_snapshot(c, name, &snapshot, e)
                         : ctl_find_volume(c, name, &volume, e);
    if (rc < 0)
        return rc;
    memcpy(ret_id, is_snapshot ? snapshot.id : volume.id, ID_MAX);
    *ret_size = is_snapshot ? snapshot.record.size_bytes : volume.size_bytes;
    if (is_snapshot)
        snapshot_info_release(&snapshot);
    else
        volume_info_release(&volume);
    return 0;
}

static int check_clone_size(struct ctl *c, const char *source, uint64_t source_size,
                            struct err *e) {
    uint64_t size = c->config.size;
    if (size == 0 || size >= source_size ||
        ALIGN_UP(size, (uint64_t)VOLUME_BLOCK_SIZE) >= source_size)
        return 0;
    return err_set(e, -ERR_INVALID,
                   "'%s' has %llu bytes, and a clone is not smaller: leave --size out, or say more",
                   source, (unsigned long long)source_size);
}

/* A source that is not found may be one of a volume that exists by now: the catalog knows. */
static int check_source_size(struct ctl *c, const char *source, struct err *e) {
    char id[ID_MAX];
    uint64_t size;
    if (!c->config.size || !(ctl_is_id(source, ID_VOLUME) || ctl_is_id(source, ID_SNAPSHOT)))
        return 0;
    int rc = find_source(c, source, id, &size, e);
    if (rc == -ERR_NOT_FOUND)
        return 0;
    return rc < 0 ? rc : check_clone_size(c, source, size, e);
}

int ctl_volume_create(struct ctl *c, struct err *e) {
    const char *name = c->argv[0], *source = c->config.source;
    if (!c->config.size && !source)
        return err_set(e, -ERR_INVALID, "volume create: a --size of more than 0 is wanted");
    int rc = check_new_volume(name, e);
    if (rc == 0)
        rc = ctl_need_pool(c, e);
    if (rc == 0 && source)
        rc = check_source_size(c, source, e);
    if (rc < 0)
        return rc;
    return create(
        c, &(struct volume_create){.name = name, .size_bytes = c->config.size, .source = source},
        e);
}

/* A volume that is open here is flushed first. */
int ctl_volume_clone(struct ctl *c, struct err *e) {
    char source[ID_MAX];
    uint64_t source_size;
    json_t *flushed = NULL;
    int rc = check_new_volume(c->argv[1], e);
    if (rc == 0)
        rc = find_source(c, c->argv[0], source, &source_size, e);
    if (rc == 0)
        rc = check_clone_size(c, c->argv[0], source_size, e);
    if (rc < 0)
        return rc;
    if (ctl_is_id(source, ID_VOLUME)) {
        rc = ctl_ask(c, source, "flush", NULL, &flushed, e);
        json_decref(flushed);
    }
    if (rc < 0 && rc != -ERR_NOT_FOUND)
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
    if (ctl_run_dir_is_ours(c) && ctl_agent_is_live(c))
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
    if (!c->config.force && ctl_daemon_is_live(c, info.id))
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
    CLEANUP_FREE char *name = NULL;
    int rc = ctl_find_volume(c, c->argv[0], &volume, e);
    if (rc < 0)
        return rc;
    rc = snapshot_name(volume.record.name, c->argv[1], &name, e);
    if (rc == 0)
        rc = ctl_ask(c, volume.id, "snapshot.create", json_pack("{s:s}", "name", name), &c->result,
                     e);
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
    else if (ctl_daemon_is_live(c, s->source_id))
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
