/* Which node has a volume, and with which publish epoch (design §2.3, §2.5; model pubepoch).
 *
 *   ready, no node --publish: epoch+1--> ready, node --unpublish, closed at the epoch--> ready, no
 * node
 *                                             |
 *                                     unpublish: epoch+1
 *                                             v
 *                                         fencing --complete open with that epoch--> ready, no node
 *
 * Invariants:
 *   I1  An epoch is in the record before anybody opens with it (trace 16).
 *   I2  Each epoch is given out once: to one node, or to one fencing, which whoever meets it may
 *       finish.
 *   I3  A node is published only from "ready", or taken over (steal): a higher epoch either way. */
#include <stdlib.h>

#include "portalbd/catalog/catalog_internal.h"

int catalog_is_closed(struct catalog *c, const struct volume_record *r, bool *ret, struct err *e) {
    struct manifest m;
    int rc = manifest_newest(c->store, &r->key, &m, e);
    if (rc == -ERR_NOT_FOUND) {
        *ret = true;
        return 0;
    }
    if (rc < 0)
        return rc;
    *ret = m.deleted || (m.closed && epoch_publish(m.epoch) == r->publish_epoch);
    manifest_release(&m);
    return 0;
}

int catalog_finish_fencing(struct catalog *c, struct volume_record *r, struct err *e) {
    CHECK(r->state == VOLUME_FENCING);
    bool closed;
    int rc = catalog_is_closed(c, r, &closed, e);
    if (rc == 0 && !closed)
        rc = volume_fence(c->env, c->store, &r->key, (uint32_t)r->publish_epoch, NULL, e);
    if (rc == -ERR_FENCED) /* somebody else finishes it, or the record is an old one by now */
        return -ERR_STALE;
    if (rc < 0 && rc != -ERR_NOT_FOUND)
        return rc;
    r->state = VOLUME_READY;
    r->read_only = false;
    catalog_set_text(&r->node, "");
    return volume_record_advance(c, r, e);
}

int catalog_settle(struct catalog *c, struct volume_record *r, struct err *e) {
    if (r->state != VOLUME_FENCING && r->state != VOLUME_RESTORING)
        return 0;
    int rc = r->state == VOLUME_FENCING ? catalog_finish_fencing(c, r, e)
                                        : catalog_finish_restore(c, r, e);
    return rc < 0 ? rc : -ERR_STALE;
}

int catalog_fence_abandoned(struct catalog *c, struct volume_record *r, struct err *e) {
    CHECK(r->node[0] == '\0');
    int rc = catalog_settle(c, r, e);
    if (rc < 0)
        return rc;
    r->state = VOLUME_FENCING;
    rc = volume_record_next_epoch(r, e);
    if (rc == 0)
        rc = volume_record_advance(c, r, e);
    return rc == 0 ? catalog_finish_fencing(c, r, e) : rc;
}

static int check_node(struct catalog *c, const char *node, struct err *e) {
    struct node_record n;
    int rc = catalog_node_get(c, node, &n, e);
    if (rc == 0)
        node_record_release(&n);
    return rc;
}

/* -ERR_STALE: raced, start over. */
static int publish_once(struct catalog *c, const char *id, const char *node, bool read_only,
                        bool steal, struct volume_info *ret, struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    int rc = volume_record_by_id(c, id, &r, e);
    if (rc == 0)
        rc = catalog_settle(c, &r, e);
    if (rc < 0)
        return rc;
    if (!steal && r.node[0] != '\0') {
        if (strcmp(r.node, node) != 0)
            return err_set(e, -ERR_IN_USE, "volume '%s' is published to node '%s'", r.name, r.node);
        if (r.read_only != read_only)
            return err_set(e, -ERR_EXISTS, "volume '%s' is published to node '%s' %s", r.name,
                           r.node, r.read_only ? "read-only" : "writable");
        return volume_info_read(c, &r, ret, e);
    }
    rc = check_node(c, node, e);
    if (rc < 0)
        return rc;
    struct volume_info info;
    rc = volume_info_read(c, &r, &info, e);
    if (rc < 0)
        return rc;
    catalog_set_text(&info.record.node, node);
    info.record.read_only = read_only;
    rc = volume_record_next_epoch(&info.record, e);
    if (rc == 0)
        rc = volume_record_advance(c, &info.record, e);
    if (rc == 0)
        *ret = info;
    else
        volume_info_release(&info);
    return rc;
}

static int busy(struct err *e, const char *id) {
    return err_set(e, -ERR_BUSY, "volume '%.80s': others change it at the same time, try again",
                   id);
}

int catalog_volume_publish(struct catalog *c, const char *id, const char *node, bool read_only,
                           bool steal, struct volume_info *ret, struct err *e) {
    if (!node || node[0] == '\0' || strlen(node) > CATALOG_NODE_ID_MAX)
        return err_set(e, -ERR_INVALID, "a node id of 1 to %d bytes is wanted",
                       CATALOG_NODE_ID_MAX);
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        int rc = publish_once(c, id, node, read_only, steal, ret, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return busy(e, id);
}

/* -ERR_STALE: start over. */
static int unpublish_once(struct catalog *c, const char *id, const char *node, struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    int rc = volume_record_by_id(c, id, &r, e);
    if (rc == -ERR_NOT_FOUND)
        return 0;
    if (rc == 0)
        rc = catalog_settle(c, &r, e);
    if (rc < 0)
        return rc;
    if (r.node[0] == '\0' || (node && node[0] != '\0' && strcmp(r.node, node) != 0))
        return 0;
    bool closed;
    rc = catalog_is_closed(c, &r, &closed, e);
    if (rc < 0)
        return rc;
    if (closed) {
        catalog_set_text(&r.node, "");
        r.read_only = false;
        return volume_record_advance(c, &r, e);
    }
    r.state = VOLUME_FENCING; /* I1: the record first */
    rc = volume_record_next_epoch(&r, e);
    if (rc == 0)
        rc = volume_record_advance(c, &r, e);
    return rc < 0 ? rc : catalog_finish_fencing(c, &r, e);
}

int catalog_volume_unpublish(struct catalog *c, const char *id, const char *node, struct err *e) {
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        int rc = unpublish_once(c, id, node, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return busy(e, id);
}
