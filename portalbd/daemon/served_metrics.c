/* What /metrics shows of a volume: a sample of volume_status, taken on the owner thread, for
 * scrapes on another. */
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/daemon/served.h"

enum { SAMPLE_US = 1000 * 1000 }; /* how old what /metrics shows may be */

struct value {
    size_t off; /* of a uint64_t in struct volume_status */
    const char *name, *help;
};
#define VALUE(member) offsetof(struct volume_status, member)

static const struct value gauges[] = {
    {VALUE(size_bytes), "portalbd_volume_size_bytes", "Size of the device."},
    {VALUE(journal_used), "portalbd_journal_used_bytes", "Bytes of the journal in use."},
    {VALUE(journal_size), "portalbd_journal_size_bytes", "Bytes of the journal."},
    {VALUE(drain_rate), "portalbd_journal_drain_bytes_per_second",
     "How fast the journal drained when it last had something to."},
    {VALUE(unflushed_bytes), "portalbd_unflushed_bytes",
     "Bytes acknowledged and not in the store."},
    {VALUE(segments_in_flight), "portalbd_frontier_lag_segments",
     "Segments on their way to the store."},
    {VALUE(frontier), "portalbd_frontier_segment", "The last segment up to which all are stored."},
    {VALUE(memtable_extents), "portalbd_memtable_extents", "Extents since the last checkpoint."},
    {VALUE(run_count), "portalbd_map_runs", "Runs of the map."},
    {VALUE(map_fill_percent), "portalbd_map_fill_percent",
     "How much of the map's largest size is used; from 100 on writes are refused."},
    {VALUE(cache_bytes), "portalbd_cache_bytes", "Bytes in the RAM cache."},
    {VALUE(disk_cache_bytes), "portalbd_disk_cache_bytes", "Bytes in the disk cache."},
    {VALUE(read_streams), "portalbd_read_streams", "Sequential readers."},
    {VALUE(gc_bytes), "portalbd_volume_objects_bytes",
     "Bytes of the objects under the volume's own prefix, as far as they are known."},
    {VALUE(gc_garbage_bytes), "portalbd_volume_garbage_bytes",
     "Of these, what nobody needs and is not deleted yet."},
    {VALUE(gc_held_bytes), "portalbd_volume_held_bytes",
     "Of these, what only snapshots and clones need."},
    {VALUE(gc_debt_bytes), "portalbd_gc_debt_bytes",
     "Dead bytes in objects that GC is to rewrite; from 15 % of what is live on, writes are "
     "slowed."},
};

static const struct value counters[] = {
    {VALUE(cache_hits), "portalbd_cache_hits_total", "Reads answered by the RAM cache."},
    {VALUE(cache_misses), "portalbd_cache_misses_total", "Reads not answered by the RAM cache."},
    {VALUE(disk_cache_hits), "portalbd_disk_cache_hits_total", "Extents found in the disk cache."},
    {VALUE(disk_cache_misses), "portalbd_disk_cache_misses_total", "Extents not found there."},
    {VALUE(read_ahead_bytes), "portalbd_read_ahead_bytes_total", "Bytes fetched ahead of readers."},
    {VALUE(read_ahead_unread), "portalbd_read_ahead_unread_bytes_total",
     "Bytes fetched ahead of readers that did not come."},
    {VALUE(write_waits_paced), "portalbd_write_waits_paced_total",
     "Waits of writes because the journal was getting full or GC was behind."},
    {VALUE(write_waits_full), "portalbd_write_waits_full_total",
     "Waits of writes because the journal was full or a checkpoint overdue."},
    {VALUE(bytes_written), "portalbd_volume_written_bytes_total", "Bytes that clients wrote."},
    {VALUE(bytes_stored), "portalbd_volume_stored_bytes_total", "Bytes put into the store."},
    {VALUE(flushes), "portalbd_volume_flushes_total", "FLUSH and FUA requests."},
    {VALUE(flush_cuts), "portalbd_volume_flush_cuts_total", "Segments that a flush cut."},
    {VALUE(checkpoints), "portalbd_volume_checkpoints_total", "Checkpoints."},
    {VALUE(merges), "portalbd_volume_merges_total", "Merges of runs."},
    {VALUE(gc_rounds), "portalbd_gc_rounds_total", "GC rounds."},
    {VALUE(gc_objects_deleted), "portalbd_gc_objects_deleted_total", "Objects that GC deleted."},
    {VALUE(gc_bytes_deleted), "portalbd_gc_deleted_bytes_total",
     "Bytes of the objects that GC deleted."},
    {VALUE(gc_bytes_moved), "portalbd_gc_moved_bytes_total", "Bytes that GC rewrote."},
    {VALUE(gc_debt_wait_us), "portalbd_gc_debt_wait_microseconds_total",
     "How long writes waited so that GC keeps up."},
};

struct served_metrics {
    struct served *served;
    struct env_timer timer;
    struct metrics_gauge healthy, disk_cache_failed, oldest_unflushed_us;
    struct metrics_gauge gauges[ARRAY_LEN(gauges)];
    struct metrics_counter counters[ARRAY_LEN(counters)];
};

static uint64_t value_of(const struct volume_status *st, const struct value *v) {
    uint64_t value;
    memcpy(&value, (const char *)st + v->off, sizeof value);
    return value;
}

void served_sample(struct served *s) {
    struct served_metrics *m = s->values;
    if (!s->volume)
        return;
    struct volume_status st;
    volume_status(s->volume, &st);
    metrics_gauge_set(&m->healthy, st.health == VOLUME_HEALTH_OK);
    metrics_gauge_set(&m->disk_cache_failed, st.disk_cache_off);
    metrics_gauge_set(&m->oldest_unflushed_us, (int64_t)st.oldest_unflushed_us);
    for (size_t i = 0; i < ARRAY_LEN(gauges); i++)
        metrics_gauge_set(&m->gauges[i], (int64_t)value_of(&st, &gauges[i]));
    for (size_t i = 0; i < ARRAY_LEN(counters); i++)
        metrics_counter_add(&m->counters[i],
                            value_of(&st, &counters[i]) - metrics_counter_get(&m->counters[i]));
}

static void on_sample(struct env_timer *timer) {
    struct served *s = container_of(timer, struct served_metrics, timer)->served;
    served_sample(s);
    env_timer_start(loop_env(s->config.loop), timer, SAMPLE_US);
}

static double oldest_seconds(void *arg) {
    return (double)metrics_gauge_get(arg) / 1e6;
}

void served_metrics_start(struct served *s) {
    struct served_metrics *m = s->values = NEW(struct served_metrics);
    struct metrics_group *g = s->metrics =
        metrics_group_new(s->config.metrics, METRICS_LABELS({"volume", s->target.id}));
    m->served = s;
    m->timer.fn = on_sample;
    metrics_gauge_register(g, &m->healthy, "portalbd_volume_healthy",
                           "1 when nothing is wrong with the volume.", NULL);
    metrics_gauge_register(g, &m->disk_cache_failed, "portalbd_disk_cache_failed",
                           "1 when the disk cache failed and is off.", NULL);
    for (size_t i = 0; i < ARRAY_LEN(gauges); i++)
        metrics_gauge_register(g, &m->gauges[i], gauges[i].name, gauges[i].help, NULL);
    for (size_t i = 0; i < ARRAY_LEN(counters); i++)
        metrics_counter_register(g, &m->counters[i], counters[i].name, counters[i].help, NULL);
    metrics_gauge_fn_register(g, oldest_seconds, &m->oldest_unflushed_us,
                              "portalbd_oldest_unflushed_seconds",
                              "Age of the oldest write that is not in the store.", NULL);
    served_sample(s);
    if (s->config.scraped)
        env_timer_start(loop_env(s->config.loop), &m->timer, SAMPLE_US);
}

void served_metrics_stop(struct served *s) {
    metrics_group_free(s->metrics);
    if (s->values)
        env_timer_stop(loop_env(s->config.loop), &s->values->timer);
    free(s->values);
}
