/* One volume that this process serves.
 *
 * Life: served_open -> served_close (may be cancelled) -> served_drop -> served_free. The device of
 * front ends outlives the volume, so that a connection that is slow to go finds it until
 * served_free; what comes in between is refused at the gate (ESHUTDOWN). */
#include "portalbd/daemon/served.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "common/mutant.h"
#include "portalbd/daemon/lock_file.h"

enum { SAMPLE_US = 1000 * 1000 }; /* how old what /metrics shows may be */

/* What volume_status says, for scrapes on another thread. */
struct served_metrics {
    struct served *served;
    struct env_timer timer;
    struct metrics_gauge healthy, size, journal_used, journal_size, unflushed, oldest_unflushed_us,
        in_flight, frontier, memtable, runs, cache_bytes, objects_bytes, garbage_bytes, held_bytes;
    struct metrics_counter cache_hits, cache_misses, written, stored, flushes, flush_cuts,
        checkpoints, merges, gc_rounds, gc_objects_deleted, gc_bytes_deleted, gc_bytes_moved;
};

/* --- the lock --- */

static char *lock_path(const struct served_config *config, const char *id) {
    return xasprintf("%s/%s.lock", config->run_dir, id);
}

static void drop_lock(struct served *s) {
    CLEANUP_FREE char *path = lock_path(&s->config, s->target.id);
    unlink(path);
    close(s->lock_fd);
}

static int lock(struct served *s, struct err *e) {
    CLEANUP_FREE char *path = lock_path(&s->config, s->target.id);
    if (mkdir(s->config.run_dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "run folder %s", s->config.run_dir);
    return lock_file_take(path, &s->lock_fd, e);
}

/* --- metrics --- */

static void set_counter(struct metrics_counter *c, uint64_t value) {
    metrics_counter_add(c, value - metrics_counter_get(c));
}

void served_sample(struct served *s) {
    struct served_metrics *m = s->values;
    if (!s->volume)
        return;
    struct volume_status st;
    volume_status(s->volume, &st);
    metrics_gauge_set(&m->healthy, st.health == VOLUME_HEALTH_OK);
    metrics_gauge_set(&m->size, (int64_t)st.size_bytes);
    metrics_gauge_set(&m->journal_used, (int64_t)st.journal_used);
    metrics_gauge_set(&m->journal_size, (int64_t)st.journal_size);
    metrics_gauge_set(&m->unflushed, (int64_t)st.unflushed_bytes);
    metrics_gauge_set(&m->oldest_unflushed_us, (int64_t)st.oldest_unflushed_us);
    metrics_gauge_set(&m->in_flight, (int64_t)st.segments_in_flight);
    metrics_gauge_set(&m->frontier, (int64_t)st.frontier);
    metrics_gauge_set(&m->memtable, (int64_t)st.memtable_extents);
    metrics_gauge_set(&m->runs, (int64_t)st.run_count);
    metrics_gauge_set(&m->cache_bytes, (int64_t)st.cache_bytes);
    set_counter(&m->cache_hits, st.cache_hits);
    set_counter(&m->cache_misses, st.cache_misses);
    set_counter(&m->written, st.bytes_written);
    set_counter(&m->stored, st.bytes_stored);
    set_counter(&m->flushes, st.flushes);
    set_counter(&m->flush_cuts, st.flush_cuts);
    set_counter(&m->checkpoints, st.checkpoints);
    set_counter(&m->merges, st.merges);
    metrics_gauge_set(&m->objects_bytes, (int64_t)st.gc_bytes);
    metrics_gauge_set(&m->garbage_bytes, (int64_t)st.gc_garbage_bytes);
    metrics_gauge_set(&m->held_bytes, (int64_t)st.gc_held_bytes);
    set_counter(&m->gc_rounds, st.gc_rounds);
    set_counter(&m->gc_objects_deleted, st.gc_objects_deleted);
    set_counter(&m->gc_bytes_deleted, st.gc_bytes_deleted);
    set_counter(&m->gc_bytes_moved, st.gc_bytes_moved);
}

static void on_sample(struct env_timer *timer) {
    struct served *s = container_of(timer, struct served_metrics, timer)->served;
    served_sample(s);
    env_timer_start(loop_env(s->config.loop), timer, SAMPLE_US);
}

static double oldest_seconds(void *arg) {
    return (double)metrics_gauge_get(arg) / 1e6;
}

static void register_metrics(struct served *s) {
    struct served_metrics *m = s->values = NEW(struct served_metrics);
    struct metrics_group *g = s->metrics =
        metrics_group_new(s->config.metrics, METRICS_LABELS({"volume", s->target.id}));
    m->served = s;
    m->timer.fn = on_sample;
    const struct {
        const struct metrics_gauge *gauge;
        const char *name, *help;
    } gauges[] = {
        {&m->healthy, "portalbd_volume_healthy", "1 when nothing is wrong with the volume."},
        {&m->size, "portalbd_volume_size_bytes", "Size of the device."},
        {&m->journal_used, "portalbd_journal_used_bytes", "Bytes of the journal in use."},
        {&m->journal_size, "portalbd_journal_size_bytes", "Bytes of the journal."},
        {&m->unflushed, "portalbd_unflushed_bytes", "Bytes acknowledged and not in the store."},
        {&m->in_flight, "portalbd_frontier_lag_segments", "Segments on their way to the store."},
        {&m->frontier, "portalbd_frontier_segment", "The last segment up to which all are stored."},
        {&m->memtable, "portalbd_memtable_extents", "Extents since the last checkpoint."},
        {&m->runs, "portalbd_map_runs", "Runs of the map."},
        {&m->cache_bytes, "portalbd_cache_bytes", "Bytes in the RAM cache."},
        {&m->objects_bytes, "portalbd_volume_objects_bytes",
         "Bytes of the objects under the volume's own prefix, as far as they are known."},
        {&m->garbage_bytes, "portalbd_volume_garbage_bytes",
         "Of these, what nobody needs and is not deleted yet."},
        {&m->held_bytes, "portalbd_volume_held_bytes",
         "Of these, what only snapshots and clones need."},
    };
    const struct {
        const struct metrics_counter *counter;
        const char *name, *help;
    } counters[] = {
        {&m->cache_hits, "portalbd_cache_hits_total", "Reads answered by the RAM cache."},
        {&m->cache_misses, "portalbd_cache_misses_total", "Reads not answered by the RAM cache."},
        {&m->written, "portalbd_volume_written_bytes_total", "Bytes that clients wrote."},
        {&m->stored, "portalbd_volume_stored_bytes_total", "Bytes put into the store."},
        {&m->flushes, "portalbd_volume_flushes_total", "FLUSH and FUA requests."},
        {&m->flush_cuts, "portalbd_volume_flush_cuts_total", "Segments that a flush cut."},
        {&m->checkpoints, "portalbd_volume_checkpoints_total", "Checkpoints."},
        {&m->merges, "portalbd_volume_merges_total", "Merges of runs."},
        {&m->gc_rounds, "portalbd_gc_rounds_total", "GC rounds."},
        {&m->gc_objects_deleted, "portalbd_gc_objects_deleted_total", "Objects that GC deleted."},
        {&m->gc_bytes_deleted, "portalbd_gc_deleted_bytes_total",
         "Bytes of the objects that GC deleted."},
        {&m->gc_bytes_moved, "portalbd_gc_moved_bytes_total", "Bytes that GC rewrote."},
    };
    for (size_t i = 0; i < ARRAY_LEN(gauges); i++)
        metrics_gauge_register(g, gauges[i].gauge, gauges[i].name, gauges[i].help, NULL);
    for (size_t i = 0; i < ARRAY_LEN(counters); i++)
        metrics_counter_register(g, counters[i].counter, counters[i].name, counters[i].help, NULL);
    metrics_gauge_fn_register(g, oldest_seconds, &m->oldest_unflushed_us,
                              "portalbd_oldest_unflushed_seconds",
                              "Age of the oldest write that is not in the store.", NULL);
    served_sample(s);
    if (s->config.scraped)
        env_timer_start(loop_env(s->config.loop), &m->timer, SAMPLE_US);
}

/* --- the gate --- */

static struct served_gate *gate_of(struct blockdev *dev) {
    return container_of(dev, struct served_gate, dev);
}

static bool gate_submit(struct blockdev *dev, struct bd_request *req) {
    struct served_gate *g = gate_of(dev);
    if (g->volume)
        return bd_submit(g->volume, req);
    req->rc = -ERR_SHUTDOWN;
    return true;
}

static uint64_t gate_size_bytes(struct blockdev *dev) {
    struct served_gate *g = gate_of(dev);
    return g->volume ? bd_size_bytes(g->volume) : g->size_bytes;
}

static void gate_close(struct blockdev *dev) {
    (void)dev; /* part of struct served */
}

static const struct blockdev_ops gate_ops = {
    .submit = gate_submit, .size_bytes = gate_size_bytes, .close = gate_close};

static void gate_open(struct served *s) {
    struct blockdev *volume = volume_blockdev(s->volume);
    s->gate.dev = *volume;
    s->gate.dev.ops = &gate_ops;
    s->gate.dev.read_only = volume->read_only || s->target.read_only;
    s->gate.volume = volume;
}

static void gate_shut(struct served *s) {
    s->gate.size_bytes = bd_size_bytes(s->gate.volume);
    s->gate.volume = NULL;
}

/* --- open --- */

static void on_broken(void *arg, const struct err *why) {
    struct served *s = arg;
    s->broken = true;
    metrics_gauge_add(s->config.broken, 1);
    log_error("the volume is out of use: requests are refused from now on",
              LOG_STR("volume", s->target.id), LOG_ERR(why));
    s->config.hooks->out_of_use(s->config.arg, s, why);
}

static void on_owned(void *arg) {
    struct served *s = arg;
    s->owned = true;
    s->config.hooks->owned(s->config.arg);
}

static int open_journal(struct served *s, struct err *e) {
    struct journal_file_config config = {.dir = s->config.journal_dir,
                                         .state_dir = s->config.state_dir,
                                         .id = s->target.id,
                                         .size = s->config.journal_size};
    if (!config.dir || s->target.is_snapshot)
        return 0;
    return journal_file_open(&config, &s->journal, e);
}

static int open_volume(struct served *s, struct err *e) {
    struct volume_config config = {.env = loop_env(s->config.loop),
                                   .store = s->config.pool->store,
                                   .key = s->target.key,
                                   .publish_epoch = s->target.publish_epoch,
                                   .journal_size = s->config.journal_size,
                                   .journal = s->journal ? journal_file_memory(s->journal) : NULL,
                                   .resume = s->config.resume,
                                   .cache_size = s->config.cache_size,
                                   .flush_coalesce_us = s->config.flush_coalesce_us,
                                   .on_broken = on_broken,
                                   .on_owned = on_owned,
                                   .arg = s};
    int rc = s->target.is_snapshot ? volume_open_pin(&config, &s->target.pin, &s->volume, e)
                                   : volume_open(&config, &s->volume, e);
    if (rc < 0)
        return rc;
    gate_open(s);
    s->dev = bd_stats_open(&s->gate.dev, config.env, s->config.metrics,
                           METRICS_LABELS({"volume", s->target.id}));
    return 0;
}

static int listen_for_control(struct served *s, struct err *e) {
    struct control_server_config config = {.loop = s->config.loop,
                                           .run_dir = s->config.run_dir,
                                           .volume = s->target.id,
                                           .handle = served_control,
                                           .arg = s};
    return control_server_start(&config, &s->control, e);
}

int served_open(const struct served_config *config, const struct served_target *target,
                struct served **ret, struct err *e) {
    struct served *s = NEW(struct served);
    s->config = *config;
    s->target = *target;
    int rc = lock(s, e);
    if (rc < 0) {
        free(s);
        return err_wrap(e, "volume %s", target->id);
    }
    FAULT_POINT("after the lock");
    rc = open_journal(s, e);
    FAULT_POINT("after the journal's file");
    if (rc == 0)
        rc = open_volume(s, e);
    if (rc == 0)
        rc = listen_for_control(s, e);
    FAULT_POINT("after the control socket");
    if (rc < 0) {
        served_drop(s);
        served_free(s);
        return err_wrap(e, "volume %s", target->id);
    }
    register_metrics(s);
    log_info("volume opened", LOG_STR("volume", target->id), LOG_STR("name", target->name),
             LOG_U64("size_bytes", bd_size_bytes(s->dev)),
             LOG_U64("publish_epoch", target->publish_epoch));
    *ret = s;
    return 0;
}

/* --- end --- */

int served_close(struct served *s, struct err *e) {
    CHECK(s->volume);
    s->closing = true;
    int rc = volume_close(s->volume, e);
    s->closed = rc == 0;
    if (s->closed)
        log_info("volume closed", LOG_STR("volume", s->target.id));
    return rc < 0 ? err_wrap(e, "volume %s", s->target.id) : 0;
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

void served_drop(struct served *s) {
    if (s->control)
        control_server_stop(TAKE_PTR(s->control));
    if (!s->volume)
        return;
    struct fiber_done freed;
    fiber_done_init(&freed);
    gate_shut(s);
    volume_free(TAKE_PTR(s->volume), on_freed, &freed); /* a timer may ask for it meanwhile */
    fiber_done_wait_always(loop_env(s->config.loop), &freed);
}

void served_free(struct served *s) {
    CHECK(!s->volume && !s->control);
    if (s->dev)
        s->dev->ops->close(s->dev);
    metrics_group_free(s->metrics);
    if (s->values)
        env_timer_stop(loop_env(s->config.loop), &s->values->timer);
    free(s->values);
    if (s->broken)
        metrics_gauge_add(s->config.broken, -1);
    if (s->journal)
        journal_file_close(s->journal, s->closed || (!s->owned && journal_file_is_new(s->journal)));
    drop_lock(s);
    free(s);
}

/* --- questions --- */

void served_describe_unsaved(struct served *s, char *text, size_t size) {
    struct volume_status st;
    text[0] = '\0';
    if (s->closed || s->target.is_snapshot || !s->volume)
        return;
    volume_status(s->volume, &st);
    if (st.last_write == st.durable_write)
        return;
    snprintf(text, size,
             "writes %llu to %llu (%llu bytes, the oldest %llu s old) are not in the store",
             (unsigned long long)(st.durable_write + 1), (unsigned long long)st.last_write,
             (unsigned long long)st.unflushed_bytes,
             (unsigned long long)(st.oldest_unflushed_us / 1000000));
}

const char *served_journal_kind(const struct served *s) {
    return s->target.is_snapshot ? "none" : s->journal ? "shm" : "memory";
}
