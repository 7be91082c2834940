/* The verbs of the control socket (docs/control.md), on the volume that the socket is of. All are
 * fibers; `status` and `stats` do not wait. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "portalbd/blockdev/validate.h"
#include "portalbd/daemon/served.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/objstore/stats.h"

enum {
    SNAPSHOTS_MAX = 100,          /* of one answer: it must fit a line */
    METRICS_PAGE_MAX = 24 * 1024, /* bytes of text, of one answer; a metric is never cut */
    METRIC_NAME_MAX = 128,        /* bytes */
};

static const char *const health_names[] = {[VOLUME_HEALTH_OK] = "ok",
                                           [VOLUME_HEALTH_WAITING] = "waiting",
                                           [VOLUME_HEALTH_FULL] = "full",
                                           [VOLUME_HEALTH_ERROR] = "error",
                                           [VOLUME_HEALTH_FENCED] = "fenced"};

static void set_u64(json_t *j, const char *name, uint64_t value) {
    json_object_set_new(j, name, json_integer((json_int_t)value));
}

static void set_text(json_t *j, const char *name, const char *value) {
    json_t *text = json_string(value);
    json_object_set_new(j, name, text ? text : json_string("?"));
}

/* What the volume itself cannot know: why it waits. */
static void set_why(json_t *j, const struct served *s, const struct volume_status *st) {
    const struct retry_state *store = objstore_open_retry_state(s->config.pool->store);
    char why[ERR_TEXT_MAX + 80] = "";
    if (st->health == VOLUME_HEALTH_WAITING)
        snprintf(why, sizeof why, "nothing could be stored for %llu s: %s",
                 (unsigned long long)(st->oldest_unflushed_us / 1000000),
                 store->trouble_since_us ? store->last.text : "the store does not answer");
    else if (st->health != VOLUME_HEALTH_OK)
        snprintf(why, sizeof why, "%s", st->why.text);
    set_text(j, "why", why);
}

static json_t *journal_status(const struct served *s, const struct volume_status *st) {
    json_t *j = json_object();
    set_text(j, "kind", served_journal_kind(s));
    set_u64(j, "size_bytes", st->journal_size);
    set_u64(j, "used_bytes", st->journal_used);
    set_u64(j, "replayed_writes", st->replayed_writes);
    json_object_set_new(j, "starved", json_boolean(st->journal_starved));
    return j;
}

static int verb_status(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    (void)args;
    (void)e;
    struct volume_status st;
    char unsaved[200];
    volume_status(s->volume, &st);
    served_describe_unsaved(s, unsaved, sizeof unsaved);
    json_t *j = *ret = json_object();
    set_text(j, "volume", s->target.id);
    set_text(j, "name", s->target.name);
    set_text(j, "version", PORTALBD_VERSION);
    set_u64(j, "pid", (uint64_t)getpid());
    set_text(j, "health", health_names[st.health]);
    set_why(j, s, &st);
    json_object_set_new(j, "closing", json_boolean(s->closing));
    json_object_set_new(j, "read_only", json_boolean(s->dev->read_only));
    set_u64(j, "size_bytes", st.size_bytes);
    set_u64(j, "block_size", st.block_size);
    set_u64(j, "epoch", st.epoch);
    set_u64(j, "manifest", st.manifest_number);
    set_u64(j, "next_seq", st.next_seq);
    set_u64(j, "frontier", st.frontier);
    set_u64(j, "last_write", st.last_write);
    set_u64(j, "durable_write", st.durable_write);
    set_u64(j, "unflushed_bytes", st.unflushed_bytes);
    set_u64(j, "oldest_unflushed_us", st.oldest_unflushed_us);
    json_object_set_new(j, "journal", journal_status(s, &st));
    set_text(j, "unsaved", unsaved);
    json_object_set_new(j, "resumed", json_boolean(s->config.resume));
    set_u64(j, "segments_in_flight", st.segments_in_flight);
    set_u64(j, "memtable_extents", st.memtable_extents);
    set_u64(j, "runs", st.run_count);
    set_u64(j, "map_fill_percent", st.map_fill_percent);
    return 0;
}

static void set_requests(json_t *j, const struct metrics_results *results,
                         const struct metrics_histogram *latency) {
    uint64_t total = metrics_histogram_count(latency);
    set_u64(j, "requests", total);
    set_u64(j, "errors", total - MIN(total, metrics_results_get(results, 0)));
    set_u64(j, "p50_us", metrics_histogram_quantile(latency, 0.5));
    set_u64(j, "p99_us", metrics_histogram_quantile(latency, 0.99));
}

static json_t *device_stats(struct served *s) {
    const struct bd_stats *stats = bd_stats_of(s->dev);
    json_t *device = json_object();
    for (unsigned op = 0; op < BD_OPS; op++) {
        json_t *j = json_object();
        set_requests(j, &stats->ops[op].results, &stats->ops[op].latency);
        set_u64(j, "bytes", metrics_counter_get(&stats->ops[op].bytes));
        json_object_set_new(device, bd_op_name((enum bd_op)op), j);
    }
    return device;
}

static json_t *store_stats(struct served *s) {
    static const char *const names[OBJ_STATS_VERBS] = {
        [OBJ_GET] = "get", [OBJ_PUT] = "put", [OBJ_LIST] = "list", [OBJ_DELETE] = "delete"};
    const struct objstore_stats *stats = objstore_open_stats(s->config.pool->store);
    json_t *store = json_object();
    for (unsigned verb = 0; verb < OBJ_STATS_VERBS; verb++) {
        json_t *j = json_object();
        set_requests(j, &stats->verbs[verb].results, &stats->verbs[verb].latency);
        set_u64(j, "sent_bytes", metrics_counter_get(&stats->verbs[verb].sent));
        set_u64(j, "received_bytes", metrics_counter_get(&stats->verbs[verb].received));
        json_object_set_new(store, names[verb], j);
    }
    return store;
}

static int verb_stats(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    (void)args;
    (void)e;
    struct volume_status st;
    volume_status(s->volume, &st);
    json_t *cache = json_object(), *engine = json_object(), *gc = json_object();
    if (st.disk_cache_size > 0) {
        json_t *disk = json_object();
        set_u64(disk, "hits", st.disk_cache_hits);
        set_u64(disk, "misses", st.disk_cache_misses);
        set_u64(disk, "bytes", st.disk_cache_bytes);
        json_object_set_new(disk, "failed", json_boolean(st.disk_cache_off));
        json_object_set_new(cache, "disk", disk);
    }
    set_u64(cache, "read_ahead_bytes", st.read_ahead_bytes);
    set_u64(cache, "hits", st.cache_hits);
    set_u64(cache, "misses", st.cache_misses);
    set_u64(cache, "bytes", st.cache_bytes);
    set_u64(engine, "bytes_written", st.bytes_written);
    set_u64(engine, "bytes_read", st.bytes_read);
    set_u64(engine, "bytes_stored", st.bytes_stored);
    set_u64(engine, "write_waits_paced", st.write_waits_paced);
    set_u64(engine, "write_waits_full", st.write_waits_full);
    set_u64(engine, "drain_bytes_per_second", st.drain_rate);
    set_u64(engine, "flushes", st.flushes);
    set_u64(engine, "flush_cuts", st.flush_cuts);
    set_u64(engine, "checkpoints", st.checkpoints);
    set_u64(engine, "merges", st.merges);
    set_u64(gc, "scrubs", st.gc_scrubs);
    set_u64(gc, "rounds", st.gc_rounds);
    set_u64(gc, "objects", st.gc_objects);
    set_u64(gc, "objects_bytes", st.gc_bytes);
    set_u64(gc, "garbage", st.gc_garbage);
    set_u64(gc, "garbage_bytes", st.gc_garbage_bytes);
    set_u64(gc, "held", st.gc_held);
    set_u64(gc, "held_bytes", st.gc_held_bytes);
    set_u64(gc, "objects_deleted", st.gc_objects_deleted);
    set_u64(gc, "bytes_deleted", st.gc_bytes_deleted);
    set_u64(gc, "objects_rewritten", st.gc_victims);
    set_u64(gc, "bytes_moved", st.gc_bytes_moved);
    set_u64(gc, "debt_bytes", st.gc_debt_bytes);
    set_u64(gc, "debt_wait_us", st.gc_debt_wait_us);
    *ret = json_object();
    json_object_set_new(*ret, "device", device_stats(s));
    json_object_set_new(*ret, "store", store_stats(s));
    json_object_set_new(*ret, "cache", cache);
    json_object_set_new(*ret, "engine", engine);
    json_object_set_new(*ret, "gc", gc);
    return 0;
}

static int check_writable(struct served *s, struct err *e) {
    if (s->target.is_snapshot)
        return err_set(e, -ERR_READ_ONLY, "%s is a snapshot: it never changes", s->target.id);
    if (s->closing)
        return err_set(e, -ERR_SHUTDOWN, "volume %s is being closed", s->target.id);
    return 0;
}

static int verb_flush(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    (void)args;
    struct volume_status st;
    int rc = check_writable(s, e);
    if (rc < 0 || (rc = volume_flush(s->volume, e)) < 0)
        return rc;
    volume_status(s->volume, &st);
    *ret = json_object();
    set_u64(*ret, "durable_write", st.durable_write);
    return 0;
}

static int verb_grow(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    uint64_t size;
    int rc = control_arg_u64(args, "size_bytes", &size, e);
    if (rc < 0 || (rc = check_writable(s, e)) < 0)
        return rc;
    if (size == 0 || size > VOLUME_SIZE_MAX)
        return err_set(e, -ERR_INVALID, "a size is 1 to %llu bytes",
                       (unsigned long long)VOLUME_SIZE_MAX);
    rc = volume_grow(s->volume, ALIGN_UP(size, (uint64_t)VOLUME_BLOCK_SIZE), e);
    if (rc < 0)
        return rc;
    s->config.hooks->grown(s->config.arg);
    *ret = json_object();
    set_u64(*ret, "size_bytes", bd_size_bytes(s->dev));
    return 0;
}

static int verb_gc(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    (void)args;
    struct volume_status before, after;
    volume_status(s->volume, &before);
    int rc = check_writable(s, e);
    if (rc < 0 || (rc = volume_collect(s->volume, e)) < 0)
        return rc;
    volume_status(s->volume, &after);
    *ret = json_object();
    set_u64(*ret, "objects_deleted", after.gc_objects_deleted - before.gc_objects_deleted);
    set_u64(*ret, "deleted_bytes", after.gc_bytes_deleted - before.gc_bytes_deleted);
    set_u64(*ret, "moved_bytes", after.gc_bytes_moved - before.gc_bytes_moved);
    set_u64(*ret, "objects_held", after.gc_held);
    set_u64(*ret, "held_bytes", after.gc_held_bytes);
    return 0;
}

/* --- snapshots --- */

static json_t *encode_snapshot(const struct snapshot_info *i) {
    json_t *j = json_object();
    set_text(j, "id", i->id);
    set_text(j, "name", i->record.name);
    set_text(j, "volume", i->source_id);
    set_text(j, "volume_name", i->record.source_name);
    set_u64(j, "size_bytes", i->record.size_bytes);
    set_u64(j, "created_ms", i->record.created_ms);
    return j;
}

static int verb_snapshot_create(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    const char *name;
    struct snapshot_info info;
    int rc = control_arg_string(args, "name", &name, e);
    if (rc < 0 || (rc = check_writable(s, e)) < 0 || (rc = volume_flush(s->volume, e)) < 0)
        return rc;
    rc = catalog_snapshot_create(&s->config.pool->catalog, name, s->target.id, &info, e);
    if (rc < 0)
        return rc;
    *ret = encode_snapshot(&info);
    snapshot_info_release(&info);
    return 0;
}

/* By "name" or by "id". */
static int find_snapshot(struct served *s, const json_t *args, struct snapshot_info *ret,
                         struct err *e) {
    struct catalog *c = &s->config.pool->catalog;
    const char *text;
    int rc;
    if (json_object_get(args, "id"))
        rc = (rc = control_arg_string(args, "id", &text, e)) < 0
                 ? rc
                 : catalog_snapshot_get(c, text, ret, e);
    else
        rc = (rc = control_arg_string(args, "name", &text, e)) < 0
                 ? rc
                 : catalog_snapshot_find(c, text, ret, e);
    return rc;
}

static int verb_snapshot_get(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    struct snapshot_info info;
    int rc = find_snapshot(s, args, &info, e);
    if (rc < 0)
        return rc;
    *ret = encode_snapshot(&info);
    snapshot_info_release(&info);
    return 0;
}

static int verb_snapshot_delete(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    struct snapshot_info info;
    int rc = find_snapshot(s, args, &info, e);
    if (rc == 0) {
        rc = catalog_snapshot_delete(&s->config.pool->catalog, info.id, e);
        snapshot_info_release(&info);
    }
    if (rc < 0 && rc != -ERR_NOT_FOUND)
        return rc;
    *ret = json_object();
    return 0;
}

static int verb_snapshot_list(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    const char *token = NULL;
    uint64_t max = SNAPSHOTS_MAX;
    int rc = json_object_get(args, "token") ? control_arg_string(args, "token", &token, e) : 0;
    if (rc == 0 && json_object_get(args, "max"))
        rc = control_arg_u64(args, "max", &max, e);
    if (rc == 0 && (max < 1 || max > SNAPSHOTS_MAX))
        rc = err_set(e, -ERR_INVALID, "the argument \"max\" is 1 to %d", SNAPSHOTS_MAX);
    struct snapshot_list list;
    if (rc == 0)
        rc = catalog_snapshot_list(&s->config.pool->catalog, s->target.id, token, max, &list, NULL,
                                   e);
    if (rc < 0)
        return rc;
    json_t *items = json_array();
    for (size_t i = 0; i < list.count; i++)
        json_array_append_new(items, encode_snapshot(&list.items[i]));
    *ret = json_object();
    json_object_set_new(*ret, "snapshots", items);
    set_text(*ret, "next_token", list.next_token);
    snapshot_list_release(&list);
    return 0;
}

/* The end of the metric that begins here: where the next one's HELP line does. */
static size_t family_end(struct view text) {
    static const char mark[] = "\n# HELP ";
    const uint8_t *next = text.len ? memmem(text.data, text.len, mark, sizeof mark - 1) : NULL;
    return next ? (size_t)(next - text.data) + 1 : text.len;
}

/* "# HELP name ..." */
static bool family_name(struct view text, char name[METRIC_NAME_MAX]) {
    static const size_t skip = sizeof "# HELP " - 1;
    const uint8_t *space = text.len > skip ? memchr(text.data + skip, ' ', text.len - skip) : NULL;
    size_t len = space ? (size_t)(space - text.data) - skip : 0;
    if (len == 0 || len >= METRIC_NAME_MAX)
        return false;
    memcpy(name, text.data + skip, len);
    name[len] = '\0';
    return true;
}

/* The text of /metrics, in pages of whole metrics by name: what comes after the metric "after".
 * "next" is what to ask for next, "" at the end. */
static int verb_metrics(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    const char *after = "";
    int rc = json_object_get(args, "after") ? control_arg_string(args, "after", &after, e) : 0;
    if (rc < 0)
        return rc;
    CLEANUP_BUF struct buf all = {0};
    CLEANUP_BUF struct buf page = {0};
    served_sample(s);
    if (s->config.metrics)
        metrics_render(s->config.metrics, &all);
    char name[METRIC_NAME_MAX], last[METRIC_NAME_MAX] = "";
    struct view rest = buf_view(&all);
    while (rest.len) {
        size_t end = family_end(rest);
        if (family_name(rest, name) && strcmp(name, after) > 0) {
            if (page.len && page.len + end > METRICS_PAGE_MAX)
                break;
            buf_append(&page, rest.data, end);
            memcpy(last, name, sizeof last);
        }
        rest = view_part(rest, end, rest.len - end);
    }
    *ret = json_object();
    set_text(*ret, "text", buf_cstr(&page));
    set_text(*ret, "next", rest.len ? last : "");
    return 0;
}

static int verb_shutdown(struct served *s, const json_t *args, json_t **ret, struct err *e) {
    (void)args;
    (void)e;
    *ret = json_object();
    s->config.hooks->shutdown(s->config.arg);
    return 0;
}

int served_control(void *arg, const char *verb, const json_t *args, json_t **ret_result,
                   int *ret_fd, struct err *e) {
    struct served *s = arg;
    static const struct {
        const char *name;
        int (*fn)(struct served *s, const json_t *args, json_t **ret, struct err *e);
    } verbs[] = {
        {"status", verb_status},
        {"stats", verb_stats},
        {"flush", verb_flush},
        {"grow", verb_grow},
        {"gc", verb_gc},
        {"snapshot.create", verb_snapshot_create},
        {"snapshot.list", verb_snapshot_list},
        {"snapshot.get", verb_snapshot_get},
        {"snapshot.delete", verb_snapshot_delete},
        {"metrics", verb_metrics},
        {"shutdown", verb_shutdown},
    };
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        if (strcmp(verb, verbs[i].name) == 0)
            return verbs[i].fn(s, args, ret_result, e);
    }
    if (strcmp(verb, "device") == 0)
        return s->config.hooks->device(s->config.arg, ret_result, ret_fd, e);
    if (strcmp(verb, "handover") == 0)
        return s->config.hooks->handover(s->config.arg, ret_result, ret_fd, e);
    return err_set(e, -ERR_UNSUPPORTED, "there is no verb '%s'", verb);
}
