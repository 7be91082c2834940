/* portalctl gc: space that nothing needs any more.
 *
 *   a volume that a daemon of this node has    its daemon is asked
 *   one that another node has                  its daemon does it anyway: left alone
 *   one that nobody has                        opened, collected, closed, here
 *   deleted ones, pins, old records            a pass of the background job
 */
#include "portalbd/catalog/background.h"
#include "portalbd/daemon/portalctl_internal.h"

struct gc_total {
    struct volume_maintained m;
    uint64_t collected, in_use;
};

static uint64_t member(const json_t *o, const char *name) {
    return (uint64_t)json_integer_value(json_object_get(o, name));
}

static int ask_daemon(struct ctl *c, const char *id, struct volume_maintained *ret, struct err *e) {
    json_t *answer = NULL;
    int rc = ctl_ask(c, id, "gc", NULL, &answer, e);
    if (rc == 0)
        *ret = (struct volume_maintained){.objects_deleted = member(answer, "objects_deleted"),
                                          .bytes_deleted = member(answer, "deleted_bytes"),
                                          .bytes_moved = member(answer, "moved_bytes"),
                                          .objects_held = member(answer, "objects_held"),
                                          .bytes_held = member(answer, "held_bytes")};
    json_decref(answer);
    return rc == -ERR_FENCED ? err_wrap(e, "another node took the volume meanwhile") : rc;
}

static int collect(struct ctl *c, const char *id, struct gc_total *t, struct err *e) {
    struct volume_maintained m = {0};
    int rc = ctl_daemon_is_live(c, id) ? ask_daemon(c, id, &m, e)
                                       : catalog_volume_maintain(c->catalog, id, &m, e);
    if (rc < 0)
        return rc;
    t->collected++;
    t->m.objects_deleted += m.objects_deleted;
    t->m.bytes_deleted += m.bytes_deleted;
    t->m.bytes_moved += m.bytes_moved;
    t->m.objects_held += m.objects_held;
    t->m.bytes_held += m.bytes_held;
    return 0;
}

/* All that are there; one that fails does not keep the others from it. */
static int collect_all(struct ctl *c, struct gc_total *t, struct err *ret_first, struct err *e) {
    struct volume_list page = {0};
    do {
        char token[CATALOG_TOKEN_MAX];
        memcpy(token, page.next_token, sizeof token);
        volume_list_release(&page);
        int rc = catalog_volume_list(c->catalog, token, 0, &page, ret_first, e);
        if (rc < 0)
            return rc;
        for (size_t i = 0; i < page.count; i++) {
            struct err why = {0};
            rc = collect(c, page.items[i].id, t, &why);
            if (rc == -ERR_IN_USE)
                t->in_use++;
            else if (rc < 0 && rc != -ERR_NOT_FOUND && !ret_first->code)
                *ret_first = why;
            if (rc == -ERR_CANCELLED) {
                volume_list_release(&page);
                return err_copy(e, &why);
            }
        }
    } while (page.next_token[0]);
    volume_list_release(&page);
    return 0;
}

static json_t *encode_total(const struct gc_total *t) {
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "volumes_collected", (json_int_t)t->collected,
                     "volumes_in_use", (json_int_t)t->in_use, "objects_deleted",
                     (json_int_t)t->m.objects_deleted, "deleted_bytes",
                     (json_int_t)t->m.bytes_deleted, "moved_bytes", (json_int_t)t->m.bytes_moved,
                     "objects_held", (json_int_t)t->m.objects_held, "held_bytes",
                     (json_int_t)t->m.bytes_held);
}

/* Deleted volumes, pins, records. A deleted clone gives up the pin that it held in its source: what
 * that frees, when the source is deleted too, the next pass finds. */
static int housekeeping(struct ctl *c, struct gc_total *t, struct err *ret_first, struct err *e) {
    struct background job;
    struct background_result r = {0};
    uint64_t finished = 0, swept = 0, pruned = 0;
    background_init(&job, c->catalog);
    int rc = 0;
    for (int pass = 0; pass < CATALOG_DEPTH_MAX; pass++) {
        rc = background_pass(&job, &r, e);
        if (rc < 0)
            break;
        t->m.objects_deleted += r.objects_deleted;
        finished += r.volumes_finished;
        swept += r.pins_swept;
        pruned += r.records_pruned;
        if (r.objects_deleted == 0 || r.volumes_waiting == 0)
            break;
    }
    background_release(&job);
    if (rc < 0)
        return rc;
    json_decref(c->result);
    c->result = json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "volumes", (json_int_t)r.volumes,
                          "volumes_finished", (json_int_t)finished, "volumes_waiting",
                          (json_int_t)r.volumes_waiting, "pins_swept", (json_int_t)swept,
                          "pins_suspected", (json_int_t)r.pins_suspected, "records_pruned",
                          (json_int_t)pruned, "failures", (json_int_t)r.failures);
    if (r.failures && !ret_first->code)
        *ret_first = r.first_failure;
    return 0;
}

int ctl_gc(struct ctl *c, struct err *e) {
    struct gc_total t = {0};
    struct err first = {0};
    struct volume_info info = {0};
    int rc;
    if (c->argv[0]) {
        rc = ctl_find_volume(c, c->argv[0], &info, e);
        if (rc == 0)
            rc = collect(c, info.id, &t, e);
        volume_info_release(&info);
        if (rc == 0)
            c->result = encode_total(&t);
        return rc;
    }
    rc = ctl_need_pool(c, e);
    if (rc == 0)
        rc = housekeeping(c, &t, &first, e); /* first: deleted clones hold pins in live volumes */
    if (rc == 0)
        rc = collect_all(c, &t, &first, e);
    if (rc < 0)
        return rc;
    json_t *total = encode_total(&t);
    json_object_update(total, c->result);
    json_decref(c->result);
    c->result = total;
    return first.code ? err_copy(e, &first) : 0;
}
