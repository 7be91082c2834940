/* A volume's lifecycle and the dispatch of requests. Who does what is said in volume_internal.h. */
#include <stdlib.h>

#include "common/log.h"
#include "portalbd/volume/gc.h"
#include "portalbd/volume/volume_internal.h"

enum {
    JOURNAL_SIZE_DEFAULT = 64 * 1024 * 1024,
    CACHE_SIZE_DEFAULT = 64 * 1024 * 1024,
    PAGE_CACHE_SIZE = 16 * 1024 * 1024,
    SEGMENT_SIZE_DEFAULT_MAX = 8 * 1024 * 1024,
    CHECKPOINT_SEGMENTS_DEFAULT = 256,
    CHECKPOINT_EXTENTS_DEFAULT = 128 * 1024,
    CHECKPOINT_BYTES_DEFAULT = 128 * 1024 * 1024,
    RUNS_MAX_DEFAULT = 8,
    COLLECT_TURNS_MAX = 8,
    GC_DELAY_DEFAULT_US = 2 * 1000 * 1000,
    GC_LIVE_PERCENT_DEFAULT = 58,
    GC_MOVE_BYTES_DEFAULT = 8 * 1024 * 1024,
};

static struct volume *volume_of(struct blockdev *dev) {
    return container_of(dev, struct volume, dev);
}

/* --- requests --- */

void volume_complete(struct bd_request *req, int rc) {
    req->rc = rc;
    req->done(req);
}

int volume_refusal(const struct volume *v) {
    switch (v->state) {
    case VOL_OPEN:
        return 0;
    case VOL_FENCED:
        return -ERR_FENCED;
    case VOL_CLOSING:
    case VOL_ERROR:
    case VOL_FREEING:
        break;
    }
    return -ERR_SHUTDOWN;
}

static bool refuse(struct bd_request *req, int rc) {
    req->rc = rc;
    return true;
}

static bool submit(struct blockdev *dev, struct bd_request *req) {
    struct volume *v = volume_of(dev);
    CHECK(req->off % SECTOR_SIZE == 0 && req->len % SECTOR_SIZE == 0);
    CHECK(req->off <= v->size_bytes && req->len <= v->size_bytes - req->off);
    int refusal = volume_refusal(v);
    if (refusal < 0 && v->state != VOL_ERROR)
        return refuse(req, refusal);
    switch (req->op) {
    case BD_READ:
        return read_submit(v, req);
    case BD_BLOCK_STATUS:
        return block_status_submit(v, req);
    case BD_CACHE:
        return prefetch_submit(v, req);
    case BD_FLUSH:
        if (v->read_only)
            return refuse(req, 0);
        return refusal < 0 ? refuse(req, refusal) : flush_submit(v, req);
    case BD_WRITE:
    case BD_TRIM:
    case BD_WRITE_ZEROES:
        if (v->read_only)
            return refuse(req, -ERR_READ_ONLY);
        return refusal < 0 ? refuse(req, refusal) : write_submit(v, req);
    case BD_OPS:
        break;
    }
    return refuse(req, -ERR_INVALID);
}

static uint64_t size_bytes(struct blockdev *dev) {
    return volume_of(dev)->size_bytes;
}

static void no_close(struct blockdev *dev) {
    (void)dev; /* the volume outlives its device interface: volume_free */
}

static const struct blockdev_ops volume_ops = {
    .submit = submit, .size_bytes = size_bytes, .close = no_close};

struct blockdev *volume_blockdev(struct volume *v) {
    return &v->dev;
}

void volume_report_read_error(struct volume *v, const struct bd_request *req, const struct err *e) {
    if (e->code == -ERR_CANCELLED || e->code == -ERR_SHUTDOWN || v->state == VOL_FREEING)
        return;
    log_error("read failed", LOG_STR("volume", v->config.key.text), LOG_U64("off", req->off),
              LOG_U64("len", req->len), LOG_ERR(e));
}

/* --- trouble --- */

static void on_broken(struct env_event *event) {
    struct volume *v = container_of(event, struct volume, broken_event);
    if (v->config.on_broken && !v->opening && v->state != VOL_FREEING)
        v->config.on_broken(v->config.arg, &v->why);
    volume_pending_done(v);
}

void volume_break(struct volume *v, enum volume_state state, const struct err *why) {
    CHECK(state == VOL_FENCED || state == VOL_ERROR);
    if (v->state != VOL_OPEN && v->state != VOL_CLOSING)
        return;
    v->state = state;
    v->why = *why;
    if (v->gc)
        gc_stop(v->gc);
    if (state == VOL_FENCED && v->config.yields)
        log_debug("volume given up: another one has taken it",
                  LOG_STR("volume", v->config.key.text), LOG_ERR(why));
    else
        log_error("volume broken: from now on its requests are refused",
                  LOG_STR("volume", v->config.key.text), LOG_BOOL("fenced", state == VOL_FENCED),
                  LOG_ERR(why));
    v->pending++;
    env_post(v->env, &v->broken_event);
    write_fail_all(v, volume_refusal(v));
    waitq_wake_all(&v->levels_changed);
}

/* --- life --- */

static void on_freed(struct env_event *event);

struct volume *volume_new(const struct volume_config *config) {
    struct volume *v = NEW(struct volume);
    v->config = *config;
    struct volume_config *c = &v->config;
    c->journal_size = c->journal_size ? c->journal_size : JOURNAL_SIZE_DEFAULT;
    c->journal_size = ALIGN_UP(MAX(c->journal_size, (uint64_t)JOURNAL_SIZE_MIN), 4096);
    if (c->journal)
        c->journal_size = c->journal->size;
    c->cache_size = c->cache_size ? c->cache_size : CACHE_SIZE_DEFAULT;
    if (!c->segment_size)
        c->segment_size = MIN((uint64_t)SEGMENT_SIZE_DEFAULT_MAX, c->journal_size / 8);
    CHECK(c->segment_size + 2 * JOURNAL_DATA_MAX <= SEGMENT_SIZE_MAX);
    c->checkpoint_segments =
        c->checkpoint_segments ? c->checkpoint_segments : CHECKPOINT_SEGMENTS_DEFAULT;
    c->checkpoint_extents =
        c->checkpoint_extents ? c->checkpoint_extents : CHECKPOINT_EXTENTS_DEFAULT;
    c->checkpoint_bytes = c->checkpoint_bytes ? c->checkpoint_bytes : CHECKPOINT_BYTES_DEFAULT;
    c->runs_max = c->runs_max ? c->runs_max : RUNS_MAX_DEFAULT;
    c->gc_live_percent = c->gc_live_percent ? c->gc_live_percent : GC_LIVE_PERCENT_DEFAULT;
    c->gc_move_bytes = c->gc_move_bytes ? c->gc_move_bytes : GC_MOVE_BYTES_DEFAULT;
    c->gc_delay_us = c->gc_delay_us ? c->gc_delay_us : GC_DELAY_DEFAULT_US;
    CHECK(c->runs_max < ROOT_RUNS_MAX / 2);
    v->env = c->env;
    v->store = c->store;
    v->dev = (struct blockdev){
        .ops = &volume_ops, .block_size_min = SECTOR_SIZE, .block_size_preferred = 4096};
    v->active = memtable_new();
    v->cache = ram_cache_new(c->cache_size);
    v->pages = page_cache_new(c->env, c->store, PAGE_CACHE_SIZE);
    v->disk = c->disk ? disk_cache_new(c->env, c->disk) : NULL;
    list_init(&v->misses);
    waitq_init(&v->read_ended);
    list_init(&v->merges);
    waitq_init(&v->levels_changed);
    list_init(&v->fibers);
    fiber_mutex_init(&v->checkpoint_mutex);
    fiber_mutex_init(&v->manifest_mutex);
    v->broken_event.fn = on_broken;
    v->freed_event.fn = on_freed;
    write_init(v);
    return v;
}

struct volume_fiber {
    struct list_node node; /* on v->fibers */
    struct fiber *fiber;
    struct volume *v;
    void (*fn)(struct volume *v, void *arg);
    void *arg;
};

static void volume_fiber_run(void *arg) {
    struct volume_fiber *f = arg;
    struct volume *v = f->v;
    f->fn(v, f->arg);
    list_remove(&f->node);
    free(f);
    volume_pending_done(v);
}

void volume_fiber_start(struct volume *v, void (*fn)(struct volume *v, void *arg), void *arg) {
    struct volume_fiber *f = NEW(struct volume_fiber);
    *f = (struct volume_fiber){.v = v, .fn = fn, .arg = arg};
    list_push_back(&v->fibers, &f->node);
    v->pending++;
    f->fiber = fiber_start(v->env, volume_fiber_run, f);
}

void volume_pending_done(struct volume *v) {
    CHECK(v->pending > 0);
    if (--v->pending == 0 && v->state == VOL_FREEING)
        env_post(v->env, &v->freed_event);
}

static void on_freed(struct env_event *event) {
    struct volume *v = container_of(event, struct volume, freed_event);
    CHECK(v->pending == 0 && list_empty(&v->fibers));
    write_drop_window(v);
    for (size_t i = 0; i < v->run_count; i++)
        run_reader_unref(v->runs[i]);
    free(v->runs);
    memtable_free(v->active);
    memtable_free(v->frozen);
    page_cache_free(v->pages);
    ram_cache_free(v->cache);
    disk_cache_free(v->disk);
    journal_free(v->journal);
    gc_free(v->gc);
    manifest_release(&v->manifest);
    void (*freed)(void *arg) = v->freed;
    void *arg = v->freed_arg;
    free(v);
    freed(arg);
}

void volume_free(struct volume *v, void (*freed)(void *arg), void *arg) {
    CHECK(v->state != VOL_FREEING);
    v->state = VOL_FREEING;
    v->freed = freed;
    v->freed_arg = arg;
    write_fail_all(v, -ERR_SHUTDOWN);
    if (v->gc)
        gc_stop(v->gc);
    for (size_t i = 0; i < ARRAY_LEN(v->window); i++)
        if (v->window[i] && v->window[i]->putting)
            objstore_cancel(v->store, &v->window[i]->put);
    list_for_each (&v->fibers, node)
        fiber_cancel(list_entry(node, struct volume_fiber, node)->fiber);
    v->pending++;
    volume_pending_done(v);
}

int volume_collect(struct volume *v, struct err *e) {
    CHECK(!v->read_only);
    int rc = volume_refusal(v);
    if (rc < 0)
        return err_set(e, rc, "volume %s is not open", v->config.key.text);
    rc = levels_settle(v, false, e);
    bool again = rc == 0;
    for (int i = 0; again && i < COLLECT_TURNS_MAX; i++) {
        uint64_t merges = v->stats.merges;
        rc = gc_collect(v->gc, e);
        if (rc == 0)
            rc = levels_settle(v, false, e); /* what was moved makes merges due, they garbage */
        again = rc == 0 && v->stats.merges != merges;
    }
    /* What stopped it says more than that it was stopped. */
    return v->state == VOL_FENCED || v->state == VOL_ERROR ? err_copy(e, &v->why) : rc;
}

int volume_flush(struct volume *v, struct err *e) {
    if (v->read_only)
        return 0;
    int rc = volume_refusal(v);
    if (rc < 0)
        return v->why.code ? err_copy(e, &v->why)
                           : err_set(e, rc, "volume %s is closing", v->config.key.text);
    return write_wait_durable(v, v->last_write, e);
}

/* --- status --- */

static enum volume_health health(const struct volume *v, uint64_t oldest_us) {
    if (v->state == VOL_FENCED)
        return VOLUME_HEALTH_FENCED;
    if (v->state == VOL_ERROR)
        return VOLUME_HEALTH_ERROR;
    if (oldest_us > WAITING_AFTER_US)
        return VOLUME_HEALTH_WAITING;
    return !v->read_only && v->map_fill >= MAP_FULL ? VOLUME_HEALTH_FULL : VOLUME_HEALTH_OK;
}

void volume_status(struct volume *v, struct volume_status *ret) {
    *ret = v->stats;
    uint64_t now = env_now_us(v->env), oldest = v->open.records ? v->open.first_us : now;
    for (size_t i = 0; i < ARRAY_LEN(v->window); i++) {
        if (!v->window[i])
            continue;
        ret->segments_in_flight++;
        oldest = MIN(oldest, v->window[i]->cut_us);
    }
    ret->oldest_unflushed_us = now - oldest;
    ret->health = health(v, ret->oldest_unflushed_us);
    ret->why = v->why;
    if (ret->health == VOLUME_HEALTH_FULL)
        err_set_text(&ret->why, -ERR_NO_SPACE, "%s",
                     "the map of the volume is full: writes are refused until blocks are trimmed "
                     "(fstrim); larger blocks need less of it");
    ret->size_bytes = v->size_bytes;
    ret->block_size = v->manifest.block_size;
    ret->epoch = v->manifest.epoch;
    ret->manifest_number = v->manifest.number;
    ret->next_seq = v->manifest.root.next_seq;
    ret->frontier = v->frontier;
    ret->last_write = v->last_write;
    ret->drain_rate = v->pace.rate;
    ret->durable_write = v->durable_write;
    if (v->journal) {
        ret->journal_outlives = journal_outlives(v->journal);
        ret->journal_starved = journal_starved(v->journal);
        ret->journal_size = JOURNAL_HEADER_SIZE + journal_size(v->journal);
        ret->journal_used = journal_head(v->journal) - journal_tail(v->journal);
        ret->unflushed_bytes = ret->journal_used;
    }
    ret->memtable_extents = memtable_count(v->active) + (v->frozen ? memtable_count(v->frozen) : 0);
    ret->run_count = v->run_count;
    ret->map_fill_percent = v->map_fill / (MAP_FULL / 100);
    if (v->gc)
        gc_status(v->gc, ret);
    ret->cache_bytes = ram_cache_used(v->cache);
    if (v->disk) {
        struct disk_cache_stats d = disk_cache_stats(v->disk);
        ret->disk_cache_hits = d.hits;
        ret->disk_cache_misses = d.misses;
        ret->disk_cache_bytes = d.bytes;
        ret->disk_cache_filled = d.filled_bytes;
        ret->disk_cache_dropped = d.dropped_bytes;
        ret->disk_cache_size = v->config.disk->size;
        ret->disk_cache_off = d.off;
    }
    for (size_t i = 0; i < READ_STREAMS_MAX; i++)
        ret->read_streams += v->ahead.streams[i].next != 0;
}
