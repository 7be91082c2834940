/* Checkpoints: memtable -> run -> manifest; everything else that puts a manifest of an open
 * volume.
 *
 *   rotate at a segment boundary -> wait until the frontier has passed it -> run -> manifest
 * (next_seq behind the boundary)
 *
 * I3 next_seq <= frontier + 1; a manifest's number is our last + 1, its epoch and nonce are ours.
 * I4 A run names only segments below next_seq: its generation ended at the boundary, and all of it
 * is stored.
 *
 * A checkpoint that fails half way leaves the frozen generation; the next one goes on with it. */
#include <stdlib.h>

#include "common/log.h"
#include "portalbd/volume/gc.h"
#include "portalbd/volume/run_writer.h"
#include "portalbd/volume/volume_internal.h"

enum { ENTRIES_PER_SLICE = 1024 };

int manifest_advance(struct volume *v, struct manifest *m, struct err *e) {
    CHECK(v->manifest_mutex.held);
    CHECK(m->number == v->manifest.number + 1);
    CHECK(m->epoch == v->manifest.epoch && random_id_equal(&m->nonce, &v->manifest.nonce));
    CHECK(m->root.next_seq <= v->frontier + 1);
    gc_fill_manifest(v->gc, m);
    int rc = manifest_put(v->store, &v->config.key, m, e);
    if (rc == -ERR_EXISTS || rc == -ERR_STALE) {
        rc = err_set(e, -ERR_FENCED, "volume %s: manifest %llu is another writer's",
                     v->config.key.text, (unsigned long long)m->number);
        volume_break(v, VOL_FENCED, e);
    }
    if (rc < 0) {
        manifest_release(m);
        return rc;
    }
    manifest_release(&v->manifest);
    v->manifest = *m;
    gc_wake(v->gc);
    return 0;
}

int volume_check_newest(struct volume *v, struct err *e) {
    /* The mutex: a manifest of our own that is put meanwhile would look like another's. */
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "cancelled");
    int rc = manifest_check_newest(v->store, &v->config.key, v->manifest.number, e);
    fiber_mutex_unlock(&v->manifest_mutex);
    if (rc == -ERR_FENCED)
        volume_break(v, VOL_FENCED, e);
    return rc;
}

/* fiber. The frozen generation becomes a run. Without entries there is none: ret_run->entry_count
 * is 0, *ret_reader is NULL. */
static int write_run(struct volume *v, struct root_run *ret_run, struct run_reader **ret_reader,
                     struct err *e) {
    struct run_writer *w = run_writer_new(v->env, v->store, &v->config.key, map_shape(v));
    bool bottom = v->run_count == 0;
    const struct mem_extent *x;
    size_t n = 0;
    int rc = 0;
    for (uint64_t sector = 0; rc == 0 && (x = memtable_seek(v->frozen, sector)) != NULL;) {
        CHECK(x->stored);
        sector = x->sector + x->count;
        struct map_entry m = mem_extent_entry(x);
        const struct volume_key *owner =
            m.kind == EXTENT_DATA ? &v->manifest.root.volumes[x->volume] : NULL;
        if (!(bottom && m.kind == EXTENT_HOLE))
            rc = run_writer_add(w, &m, owner, e);
        if (rc == 0 && ++n % ENTRIES_PER_SLICE == 0 && fiber_yield(v->env) < 0)
            rc = err_set(e, -ERR_CANCELLED, "the checkpoint was cancelled");
    }
    if (rc == 0)
        rc = run_writer_finish(w, ret_run, e);
    if (rc == 0)
        *ret_reader = run_writer_reader(w, v->pages);
    run_writer_free(w);
    return rc;
}

/* fiber. Until the present generation is frozen and all of it is stored. */
static int freeze(struct volume *v, struct err *e) {
    if (!v->frozen && !v->rotate_wanted)
        write_rotate(v);
    while (!v->frozen || v->frontier < v->frozen_last_seq) {
        if (v->state == VOL_FENCED || v->state == VOL_ERROR)
            return err_copy(e, &v->why);
        if (waitq_wait(v->env, &v->frontier_moved) < 0)
            return err_set(e, -ERR_CANCELLED, "the checkpoint was cancelled");
    }
    return 0;
}

static bool nothing_to_do(const struct volume *v) {
    return !v->frozen && v->open.records == 0 && memtable_count(v->active) == 0 &&
           v->manifest.root.tail_count == 0 && v->next_seq == v->manifest.root.next_seq;
}

/* fiber; both mutexes held. Takes reader over. */
static int put_checkpoint(struct volume *v, struct root_run *run, struct run_reader *reader,
                          struct err *e) {
    struct manifest m = manifest_next(&v->manifest);
    m.root.tail_count = 0;
    m.root.next_seq = v->frozen_last_seq + 1;
    if (!random_id_is_zero(&m.journal))
        m.last_write = v->frozen_last_write;
    int rc = run_list_insert(v, &m, run, reader, e);
    if (rc < 0)
        return rc;
    memtable_free(v->frozen);
    v->frozen = NULL;
    v->frozen_segments = 0;
    v->stats.checkpoints++;
    return 0;
}

static int checkpoint(struct volume *v, struct err *e) {
    if (nothing_to_do(v))
        return 0;
    int rc = freeze(v, e);
    if (rc < 0)
        return rc;
    struct root_run run = {0};
    struct run_reader *reader = NULL;
    rc = write_run(v, &run, &reader, e);
    if (rc < 0)
        return rc;
    run.age = v->frozen_last_seq + 1;
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0) {
        if (reader)
            run_reader_unref(reader);
        return err_set(e, -ERR_CANCELLED, "the checkpoint was cancelled");
    }
    rc = put_checkpoint(v, &run, reader, e);
    fiber_mutex_unlock(&v->manifest_mutex);
    write_resume(v);
    waitq_wake_all(&v->frontier_moved); /* a replay may wait for room in the backlog */
    return rc;
}

int checkpoint_now(struct volume *v, struct err *e) {
    int rc = levels_wait_room(v, e);
    if (rc < 0)
        return rc;
    if (fiber_mutex_lock(v->env, &v->checkpoint_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "the checkpoint was cancelled");
    rc = checkpoint(v, e);
    fiber_mutex_unlock(&v->checkpoint_mutex);
    /* Something of our run, before its lost answer was repeated: whoever deleted it, it was not us.
     */
    if (rc == -ERR_NOT_FOUND || rc == -ERR_STALE) {
        struct err missing = *e;
        rc = read_explain_missing(v, missing.text, e);
    }
    if (rc == 0)
        levels_maybe_start(v);
    return rc;
}

/* What is overwritten is seen to be garbage only after a checkpoint: a small volume would hold many
 * times what lives in it. */
static bool is_much_of_the_volume(const struct volume *v) {
    return v->backlog_bytes >= MAX(v->config.checkpoint_bytes, gc_live_bytes(v->gc) / 8);
}

static bool is_due(const struct volume *v) {
    return v->state == VOL_OPEN &&
           (v->backlog_segments >= v->config.checkpoint_segments || is_much_of_the_volume(v) ||
            memtable_count(v->active) >= v->config.checkpoint_extents || write_backlog_full(v));
}

static void checkpoint_fiber(struct volume *v, void *arg) {
    (void)arg;
    struct err e = {0};
    int rc = 0;
    while (rc == 0 && is_due(v))
        rc = checkpoint_now(v, &e);
    v->checkpoint_started = false;
    if (rc < 0 && rc != -ERR_CANCELLED && v->state == VOL_OPEN)
        volume_break(v, VOL_ERROR, &e);
}

void checkpoint_maybe_start(struct volume *v) {
    if (v->checkpoint_started || !is_due(v))
        return;
    v->checkpoint_started = true;
    volume_fiber_start(v, checkpoint_fiber, NULL);
}

int volume_checkpoint(struct volume *v, struct err *e) {
    CHECK(!v->read_only);
    int rc = checkpoint_now(v, e);
    return rc == 0 ? levels_settle(v, false, e) : rc;
}

int volume_grow(struct volume *v, uint64_t size_bytes, struct err *e) {
    if (v->read_only)
        return err_set(e, -ERR_READ_ONLY, "a snapshot cannot grow");
    if (size_bytes % 4096 != 0 || size_bytes / SECTOR_SIZE > SECTORS_MAX)
        return err_set(e, -ERR_INVALID,
                       "%llu bytes: a volume's size is a multiple of 4096, at most 2^60",
                       (unsigned long long)size_bytes);
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "growing was cancelled");
    int rc = 0;
    if (size_bytes > v->size_bytes) {
        struct manifest m = manifest_next(&v->manifest);
        m.size_bytes = size_bytes;
        rc = manifest_advance(v, &m, e);
        if (rc == 0)
            rc = manifest_check_newest(v->store, &v->config.key, v->manifest.number, e);
        if (rc == -ERR_FENCED)
            volume_break(v, VOL_FENCED, e);
        if (rc == 0)
            v->size_bytes = size_bytes;
    }
    fiber_mutex_unlock(&v->manifest_mutex);
    return rc;
}

/* fiber. The last manifest of a clean close. */
static int put_closed(struct volume *v, struct err *e) {
    if (fiber_mutex_lock(v->env, &v->manifest_mutex) < 0)
        return err_set(e, -ERR_CANCELLED, "closing was cancelled");
    struct manifest m = manifest_next(&v->manifest);
    m.closed = true;
    int rc = manifest_advance(v, &m, e);
    fiber_mutex_unlock(&v->manifest_mutex);
    return rc;
}

/* fiber. Until the writes that were accepted before are in: they wait for journal space, for memory
 * of the journal or, when nothing is on its way to the store, for a checkpoint. */
static int drain_write_queue(struct volume *v, struct err *e) {
    int rc = 0;
    write_resume(v); /* nobody waits for GC any more */
    while (rc == 0 && !list_empty(&v->write_queue)) {
        if (v->durable_write < v->last_write)
            rc = write_wait_durable(v, v->durable_write + 1, e);
        else if (!journal_starved(v->journal))
            rc = checkpoint_now(v, e);
        else if (fiber_sleep_us(v->env, STARVED_RETRY_US) < 0)
            rc = err_set(e, -ERR_CANCELLED, "closing was cancelled");
        if (v->state == VOL_FENCED || v->state == VOL_ERROR)
            return err_copy(e, &v->why);
    }
    return rc;
}

int volume_close(struct volume *v, struct err *e) {
    if (v->state == VOL_FENCED || v->state == VOL_ERROR)
        return err_copy(e, &v->why);
    CHECK(v->state == VOL_OPEN);
    v->state = VOL_CLOSING;
    if (v->read_only)
        return 0;
    int rc = levels_stop(v, e);
    if (rc == 0)
        rc = levels_settle(v, true, e);
    if (rc == 0)
        rc = drain_write_queue(v, e);
    if (rc == 0)
        rc = write_wait_durable(v, v->last_write, e);
    if (rc == 0)
        rc = checkpoint_now(v, e);
    if (rc == 0)
        rc = levels_settle(v, true, e);
    if (rc == 0) {
        gc_at_close(v->gc);
        rc = put_closed(v, e);
    }
    CHECK(rc < 0 || journal_head(v->journal) == journal_tail(v->journal));
    if (rc == 0)
        log_debug("closed manifest stored", LOG_STR("volume", v->config.key.text),
                  LOG_U64("manifest", v->manifest.number));
    return rc;
}
