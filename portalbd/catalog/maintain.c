/* Maintenance of a volume that nobody has: opened like a daemon would, collected, closed.
 *
 * Invariants:
 *   I1  Only a volume whose record says ready and names no node is opened, with the record's own
 *       publish epoch: whoever is published next has a higher one and fences us, at any step.
 *   I2  Only a closed manifest is built upon. One that is not closed though no node has the volume
 *       is what another maintenance left, or is at: fenced off first, the record says so.
 *   I3  What we leave is closed at the record's publish epoch, or the next one of I2 sees to it. */
#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/volume.h"

enum {
    JOURNAL_SIZE = 4 * 1024 * 1024, /* nothing is written to it */
    CACHE_SIZE = 4 * 1024 * 1024,
};

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static int open_and_collect(struct catalog *c, const struct volume_record *r,
                            struct volume_maintained *ret, struct err *e) {
    struct volume_config config = {.env = c->env,
                                   .store = c->store,
                                   .key = r->key,
                                   .publish_epoch = (uint32_t)r->publish_epoch,
                                   .journal_size = JOURNAL_SIZE,
                                   .cache_size = CACHE_SIZE};
    struct volume *v;
    int rc = volume_open(&config, &v, e);
    if (rc < 0)
        return rc;
    rc = volume_collect(v, e);
    if (rc == 0)
        rc = volume_close(v, e);
    struct volume_status s;
    volume_status(v, &s);
    if (rc == 0)
        *ret = (struct volume_maintained){.objects_deleted = s.gc_objects_deleted,
                                          .bytes_deleted = s.gc_bytes_deleted,
                                          .bytes_moved = s.gc_bytes_moved,
                                          .objects_held = s.gc_held,
                                          .bytes_held = s.gc_held_bytes};
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(v, on_freed, &freed);
    fiber_done_wait_always(c->env, &freed);
    return rc;
}

/* -ERR_STALE: start over. */
static int maintain_once(struct catalog *c, const char *id, struct volume_maintained *ret,
                         struct err *e) {
    CLEANUP(volume_record_release) struct volume_record r = {0};
    bool closed;
    int rc = volume_record_by_id(c, id, &r, e);
    if (rc == 0)
        rc = catalog_settle(c, &r, e);
    if (rc < 0)
        return rc;
    if (r.node[0] != '\0') /* I1 */
        return err_set(e, -ERR_IN_USE,
                       "volume '%s' is published to node '%s', where its daemon sees to it", r.name,
                       r.node);
    rc = catalog_is_closed(c, &r, &closed, e);
    if (rc == 0 && !closed) /* I2 */
        rc = catalog_fence_abandoned(c, &r, e);
    if (rc == 0)
        rc = open_and_collect(c, &r, ret, e);
    return rc == -ERR_FENCED ? -ERR_STALE : rc; /* published, restored, deleted: look again */
}

int catalog_volume_maintain(struct catalog *c, const char *id, struct volume_maintained *ret,
                            struct err *e) {
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        int rc = maintain_once(c, id, ret, e);
        if (rc != -ERR_STALE)
            return rc;
    }
    return catalog_busy(e, "volume", id);
}
