/* portalctl: the pool as a whole: made, checked, deleted.
 *
 * A prefix may hold other people's objects, also under the names of our folders. pool delete takes
 * only keys that nobody but us makes, and only where a pool's record says that there is a pool.
 * That record goes last: a deletion that was cut off can be repeated. Records go after volumes:
 * what is left then has no id that could be given out anew. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/daemon/portalctl_internal.h"

int ctl_pool_create_or_check(struct ctl *c, struct err *e) {
    struct pool_create options_ = {.cluster_id = c->config.cluster_id,
                                   .allow_other_cluster = c->config.any_cluster};
    struct pool_record record;
    int rc = ctl_need_pool(c, e);
    if (rc == 0)
        rc = c->command == POOL_CREATE ? catalog_pool_create(c->catalog, &options_, &record, e)
                                       : catalog_pool_check(c->catalog, &options_, &record, e);
    if (rc < 0)
        return rc;
    char uuid[RANDOM_ID_HEX];
    random_id_to_hex(&record.uuid, uuid);
    c->result = json_pack("{s:s,s:s,s:s,s:b,s:I}", "pool", c->pool.name, "uuid", uuid, "cluster_id",
                          record.cluster_id, "conditional_put", record.conditional_put,
                          "created_ms", (json_int_t)record.created_ms);
    pool_record_release(&record);
    return 0;
}

/* --- delete: whose is it? --- */

enum { KEY_PARTS = 3 }; /* that are looked at */

static bool is_volume_folder(const char *name) {
    char id[KEY_MAX + sizeof ".x"];
    struct parsed_id parsed;
    snprintf(id, sizeof id, "%s.x", name);
    return id_parse(&parsed, id, NULL) == 0 && parsed.kind == ID_VOLUME;
}

/* Below a volume's folder all is ours, also what a newer version put there. A node's folder has
 * nearly any name, so its records must look like ours. */
static bool is_ours(const char *key) {
    char copy[KEY_MAX], *parts[KEY_PARTS] = {0}, *rest = copy;
    struct random_id id;
    uint64_t number;
    if (strlen(key) >= sizeof copy)
        return false;
    memcpy(copy, key, strlen(key) + 1);
    size_t count = 0;
    while (count < KEY_PARTS && (parts[count] = strsep(&rest, "/")))
        count++;
    if (strcmp(parts[0], "probe") == 0)
        return count == 2 && random_id_from_hex(&id, parts[1], NULL) == 0;
    if (count < KEY_PARTS)
        return false;
    if (strcmp(parts[0], "volumes") == 0)
        return is_volume_folder(parts[1]);
    if (rest || key_parse_numbered(parts[2], &number) < 0)
        return false;
    if (strcmp(parts[0], "records") == 0 || strcmp(parts[0], "snapshots") == 0)
        return random_id_from_hex(&id, parts[1], NULL) == 0; /* as long as a name's hash */
    return strcmp(parts[0], "nodes") == 0;
}

/* --- delete: does anybody use it? --- */

static int check_volume_unused(struct ctl *c, const struct volume_info *v, struct err *e) {
    const struct volume_record *r = &v->record;
    if (r->node[0])
        return err_set(e, -ERR_IN_USE,
                       "volume '%s' of pool '%s' is published to node '%s': detach it there, or "
                       "stop what serves it",
                       r->name, c->pool.name, r->node);
    if (ctl_daemon_is_live(c, v->id))
        return err_set(e, -ERR_IN_USE,
                       "volume '%s' of pool '%s' is served on this node: stop portalbd serve, or "
                       "detach it",
                       r->name, c->pool.name);
    return 0;
}

static int check_unused(struct ctl *c, struct err *e) {
    struct volume_list page = {0};
    struct err damage = {0};
    int rc;
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        volume_list_release(&page);
        rc = catalog_volume_list(c->catalog, token, 0, &page, &damage, e);
        for (size_t i = 0; rc == 0 && i < page.count; i++)
            rc = check_volume_unused(c, &page.items[i], e);
    } while (rc == 0 && page.next_token[0]);
    volume_list_release(&page);
    if (rc < 0 || damage.code == 0)
        return rc;
    err_copy(e, &damage);
    return err_wrap(e, "a node may have a volume whose record cannot be read (--force deletes the "
                       "pool all the same)");
}

/* --- delete --- */

struct tally {
    uint64_t deleted, foreign;
};

static int delete_ours_of(struct ctl *c, const struct obj_list *list, struct tally *t,
                          struct err *e) {
    const char *keys[OBJ_LIST_MAX];
    char pool_key[KEY_MAX];
    size_t count = 0;
    key_pool(pool_key);
    for (size_t i = 0; i < list->count; i++) {
        const char *key = list->entries[i].key;
        if (is_ours(key))
            keys[count++] = key;
        else if (strcmp(key, pool_key) != 0)
            t->foreign++;
    }
    int rc = count ? objstore_delete(c->pool.store, keys, count, e) : 0;
    t->deleted += rc == 0 ? count : 0;
    return rc;
}

/* Counts what stays, anew. */
static int delete_below(struct ctl *c, const char *prefix, struct tally *t, struct err *e) {
    struct obj_list list = {0};
    char *after = NULL;
    int rc;
    t->foreign = 0;
    do {
        obj_list_release(&list);
        rc = objstore_list(c->pool.store, prefix, after, OBJ_LIST_MAX, &list, e);
        free(after);
        after = rc == 0 && list.count ? xstrdup(list.entries[list.count - 1].key) : NULL;
        if (rc == 0)
            rc = delete_ours_of(c, &list, t, e);
    } while (rc == 0 && list.more);
    obj_list_release(&list);
    free(after);
    return rc;
}

/* The last round sees all that there is: probes, what came meanwhile, and what is not ours. */
int ctl_pool_delete(struct ctl *c, struct err *e) {
    static const char *const rounds[] = {"volumes/", "snapshots/", "records/", "nodes/", ""};
    char pool_key[KEY_MAX];
    struct tally t = {0};
    int rc = ctl_need_pool(c, e);
    if (rc == 0 && !c->config.force)
        rc = check_unused(c, e);
    if (rc == 0)
        rc = ctl_confirm(c, e, "every volume and snapshot of the pool is lost");
    for (size_t i = 0; rc == 0 && i < ARRAY_LEN(rounds); i++)
        rc = delete_below(c, rounds[i], &t, e);
    key_pool(pool_key);
    if (rc == 0)
        rc = objstore_delete_one(c->pool.store, pool_key, e);
    if (rc == 0)
        c->result = json_pack("{s:I,s:I}", "objects_deleted", (json_int_t)t.deleted + 1,
                              "foreign_objects", (json_int_t)t.foreign);
    return rc;
}
