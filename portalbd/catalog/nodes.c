/* The registry of nodes: written by agents, read by the controller before it publishes. */
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"

static int check_node_id(const char *node_id, struct err *e) {
    if (!node_id || node_id[0] == '\0' || strlen(node_id) > CATALOG_NODE_ID_MAX)
        return err_set(e, -ERR_INVALID, "a node id of 1 to %d bytes is wanted",
                       CATALOG_NODE_ID_MAX);
    return 0;
}

static int decode(void *ret, const char *key, struct view body, struct err *e) {
    return node_record_decode_at(ret, key, body, e);
}

/* ret->number is 0 when there never was one. */
static int node_newest(struct catalog *c, const char *folder, struct node_record *ret,
                       struct err *e) {
    return catalog_newest(c, folder, decode, ret, sizeof *ret, e);
}

/* Puts what the newest record should say; nothing when it says so already. version NULL: deleted.
 */
static int node_write_once(struct catalog *c, const char *folder, const char *node_id,
                           const char *version, struct err *e) {
    CLEANUP(node_record_release) struct node_record r = {0};
    int rc = node_newest(c, folder, &r, e);
    if (rc < 0)
        return rc;
    bool there = r.number > 0 && !r.deleted;
    if (version ? there && strcmp(r.version, version) == 0 : !there)
        return 0;
    struct node_record next = {.number = r.number + 1,
                               .deleted = !version,
                               .node_id = xstrdup(node_id),
                               .version = xstrdup(version ? version : r.version),
                               .registered_ms = env_wall_ms(c->env)};
    catalog_new_id(c, &next.nonce);
    CLEANUP_BUF struct buf body = {0};
    rc = node_record_encode(&body, &next, e);
    if (rc == 0)
        rc = numbered_put(c->store, folder, next.number, buf_view(&body), e);
    node_record_release(&next);
    return rc;
}

static int node_write(struct catalog *c, const char *node_id, const char *version, struct err *e) {
    char folder[KEY_MAX];
    key_nodes_prefix(folder, node_id);
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        int rc = node_write_once(c, folder, node_id, version, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return err_set(e, -ERR_BUSY, "node '%s': others register it at the same time, try again",
                   node_id);
}

int catalog_node_register(struct catalog *c, const char *node_id, const char *version,
                          struct err *e) {
    int rc = check_node_id(node_id, e);
    return rc < 0 ? rc : node_write(c, node_id, version, e);
}

int catalog_node_delete(struct catalog *c, const char *node_id, struct err *e) {
    if (check_node_id(node_id, NULL) < 0)
        return 0;
    return node_write(c, node_id, NULL, e);
}

int catalog_node_get(struct catalog *c, const char *node_id, struct node_record *ret,
                     struct err *e) {
    char folder[KEY_MAX];
    struct node_record r = {0};
    int rc = 0;
    if (check_node_id(node_id, NULL) == 0) {
        key_nodes_prefix(folder, node_id);
        rc = node_newest(c, folder, &r, e);
    }
    if (rc < 0)
        return rc;
    if (r.number == 0 || r.deleted) {
        node_record_release(&r);
        return err_set(e, -ERR_NOT_FOUND, "node '%.128s' is not registered in pool '%s'",
                       node_id ? node_id : "", c->pool);
    }
    *ret = r;
    return 0;
}

void node_list_release(struct node_list *l) {
    for (size_t i = 0; i < l->count; i++)
        node_record_release(&l->items[i]);
    free(l->items);
    *l = (struct node_list){0};
}

static int list_append(struct catalog *c, struct node_list *l, const char *folder, struct err *e) {
    struct node_record r;
    int rc = node_newest(c, folder, &r, e);
    if (rc < 0)
        return rc;
    if (r.number == 0 || r.deleted) {
        node_record_release(&r);
        return 0;
    }
    if ((l->count & (l->count - 1)) == 0) /* at powers of two */
        l->items = xrealloc(l->items, MAX(2 * l->count, (size_t)16) * sizeof *l->items);
    l->items[l->count++] = r;
    return 0;
}

int catalog_node_list(struct catalog *c, struct node_list *ret, struct err *e) {
    struct node_list l = {0};
    struct numbered_walk walk;
    numbered_walk_init(&walk, c->store, "nodes/", NULL);
    char folder[KEY_MAX];
    uint64_t n;
    int rc;
    while ((rc = numbered_walk_next(&walk, folder, &n, e)) > 0) {
        rc = list_append(c, &l, folder, e);
        if (rc < 0)
            break;
    }
    numbered_walk_release(&walk);
    if (rc < 0)
        node_list_release(&l);
    else
        *ret = l;
    return rc < 0 ? rc : 0;
}
