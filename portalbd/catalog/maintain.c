/* Maintenance of a volume that nobody has: opened like a daemon would, collected, closed.
 *
 * Invariants:
 *   I1  Only a volume whose record says ready and names no node is opened, with the record's own
 *       publish epoch: whoever is published next has a higher one and fences us, at any step.
 *   I2  Only a closed manifest is built upon. One that is not closed though no node has the volume
 *       is what another maintenance left, or is at: fenced off first, the record says so.
 *   I3  What we leave is closed at the record's publish epoch, or the next one of I2 sees to it.
 *   I4  Of two at the same time the later one fences the earlier one, which waits then as long as
 *       the other gets on: each fencing leaves a fence for ever, and two that answered in kind
 *       would both end with nothing.
 *   I5  A clone that lets go of its source makes garbage there: the source is collected behind it,
 *       and so on, so that none is left when the call returns. */
#include "portalbd/catalog/catalog_internal.h"
#include "portalbd/volume/destroy.h"
#include "portalbd/volume/volume.h"

enum {
    JOURNAL_SIZE = 4 * 1024 * 1024, /* nothing is written to it */
    CACHE_SIZE = 4 * 1024 * 1024,
    PAUSE_MIN_US = 20 * 1000,
    PAUSE_MAX_US = 20 * 1000 * 1000,
};

/* One volume's. */
struct maintenance {
    unsigned lost;     /* attempts in which another one was faster */
    uint64_t manifest; /* the newest one's number when we looked last, and it was not closed */
    uint64_t pause_us; /* at most; grows with each loss */
    uint64_t begun_us; /* this attempt */
    struct volume_key source; /* in which it held a pin when we came; "": none */
    struct volume_key freed;  /* ... and does not any more */
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
                                   .cache_size = CACHE_SIZE,
                                   .yields = true};
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

/* The volume is not closed. -ERR_STALE: we have lost it to somebody who may still be at it, and has
 * put a manifest since we looked last (I4). Costs 1, nothing before a first loss. */
static int leave_to_others(struct catalog *c, const struct volume_record *r, struct maintenance *p,
                           struct err *e) {
    uint64_t n;
    if (p->lost == 0)
        return 0;
    int rc = manifest_newest_number(c->store, &r->key, &n, e);
    if (rc < 0)
        return rc;
    bool moved = n != p->manifest;
    p->manifest = n;
    return moved ? -ERR_STALE : 0;
}

/* The volume in which v holds a pin, "" when there is none. Costs 2. */
static int source_of(struct catalog *c, const struct volume_key *v, struct volume_key *ret,
                     struct err *e) {
    struct manifest m;
    int rc = manifest_newest(c->store, v, &m, e);
    if (rc < 0)
        return rc;
    *ret = m.held_pin_count > 0 ? m.held_pins[0].volume : (struct volume_key){0};
    manifest_release(&m);
    return 0;
}

/* open_and_collect, and what that frees in others. */
static int collect_clone(struct catalog *c, const struct volume_record *r, struct maintenance *p,
                         struct volume_maintained *ret, struct err *e) {
    struct volume_key now = {0};
    bool is_clone = r->source_kind != SOURCE_NONE;
    int rc = is_clone && p->source.text[0] == '\0' ? source_of(c, &r->key, &p->source, e) : 0;
    if (rc == 0)
        rc = open_and_collect(c, r, ret, e);
    if (rc < 0 || p->source.text[0] == '\0')
        return rc;
    rc = source_of(c, &r->key, &now, e);
    if (rc == 0 && !volume_keys_equal(&now, &p->source))
        p->freed = p->source;
    return rc;
}

/* -ERR_STALE: start over. */
static int maintain_once(struct catalog *c, const char *id, struct maintenance *p,
                         struct volume_maintained *ret, struct err *e) {
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
    if (rc == 0 && !closed)
        rc = leave_to_others(c, &r, p, e);
    if (rc == 0 && !closed) /* I2 */
        rc = catalog_fence_abandoned(c, &r, e);
    if (rc == 0)
        rc = collect_clone(c, &r, p, ret, e);
    return rc == -ERR_FENCED ? -ERR_STALE : rc; /* published, restored, deleted: look again */
}

/* Twice as long each time, beginning with what an attempt takes on this store, and at random. */
static int wait_a_while(struct catalog *c, struct maintenance *p, struct err *e) {
    uint64_t took = env_now_us(c->env) - p->begun_us;
    p->lost++;
    p->pause_us =
        MIN(MAX(2 * p->pause_us, MAX(took, (uint64_t)PAUSE_MIN_US)), (uint64_t)PAUSE_MAX_US);
    uint64_t pause = p->pause_us / 2 + env_random_u64(c->env) % (p->pause_us / 2);
    return fiber_sleep_us(c->env, pause) < 0 ? err_set(e, -ERR_CANCELLED, "cancelled") : 0;
}

/* *ret_freed: I5; "": nothing. */
static int maintain(struct catalog *c, const char *id, struct volume_maintained *ret,
                    struct volume_key *ret_freed, struct err *e) {
    struct maintenance p = {0};
    for (int attempt = 0; attempt < CATALOG_ATTEMPTS_MAX; attempt++) {
        p.begun_us = env_now_us(c->env);
        int rc = maintain_once(c, id, &p, ret, e);
        *ret_freed = p.freed;
        if (rc != -ERR_STALE)
            return rc;
        rc = wait_a_while(c, &p, e);
        if (rc < 0)
            return rc;
    }
    return catalog_busy(e, "volume", id);
}

/* Of a volume that is deleted: what its shell holds. One that is deleted in part is the background
 * job's. */
static int collect_shell(struct catalog *c, const struct volume_key *v, uint64_t *deleted,
                         struct volume_key *ret_freed, struct err *e) {
    struct volume_collected done;
    int rc = volume_collect_deleted(c->env, c->store, v, &done, e);
    if (rc < 0)
        return rc == -ERR_NOT_FOUND ? 0 : rc;
    *deleted += done.objects_deleted;
    return done.waiting ? 0 : source_of(c, v, ret_freed, e);
}

int catalog_volume_maintain(struct catalog *c, const char *id, struct volume_maintained *ret,
                            struct err *e) {
    struct volume_maintained all = {0};
    struct volume_key next;
    int rc = maintain(c, id, &all, &next, e);
    for (int depth = 0; rc == 0 && next.text[0] != '\0' && depth < CATALOG_DEPTH_MAX; depth++) {
        struct volume_key source = next;
        struct volume_maintained m = {0};
        char source_id[ID_MAX];
        id_format(source_id, &source, c->pool);
        rc = maintain(c, source_id, &m, &next, e);
        if (rc == -ERR_NOT_FOUND)
            rc = collect_shell(c, &source, &m.objects_deleted, &next, e);
        if (rc == -ERR_IN_USE || rc == -ERR_BUSY) /* who has it sees to it */
            rc = 0;
        all.objects_deleted += m.objects_deleted;
        all.bytes_deleted += m.bytes_deleted;
        all.bytes_moved += m.bytes_moved;
    }
    if (rc == 0)
        *ret = all;
    return rc;
}
