/* Opening: takeover (takeover.c), then the tables of the tail and of the walked log are read in
 * parallel and replayed in order, and the runs are opened. A snapshot's root is opened the same
 * way, without the takeover. */
#include <stdlib.h>

#include "common/log.h"
#include "common/mutant.h"
#include "portalbd/volume/gc.h"
#include "portalbd/volume/pins.h"
#include "portalbd/volume/volume_internal.h"

enum { TABLES_AT_ONCE = 32 };

/* One segment to replay. */
struct replayed {
    struct volume *v;
    uint16_t volume; /* index into the root's table */
    uint64_t seq;
    struct segment_meta meta;
    struct segment_table table;
    int rc;
    struct err err;
};

/* Whoever wrote a segment of our own log must have a lower epoch, or be us. */
static int check_meta(const struct replayed *r, struct err *e) {
    const struct volume *v = r->v;
    const struct segment_meta *m = &r->meta;
    uint8_t hash[16];
    segment_volume_hash(hash, &v->manifest.root.volumes[r->volume]);
    if (memcmp(hash, m->volume_hash, sizeof hash) != 0 || m->seq != r->seq ||
        m->kind != SEGMENT_DATA)
        return err_set(e, -ERR_CORRUPT, "the object is another one than its key says");
    if (r->volume == 0 && !v->read_only && m->epoch >= v->manifest.epoch)
        return err_set(e, -ERR_FENCED,
                       "its epoch %llx is not below ours: another writer has the volume",
                       (unsigned long long)m->epoch);
    return 0;
}

/* fiber. The table of one segment, by one suffix GET (two when the table is long). */
static int read_table(struct replayed *r, struct err *e) {
    struct volume *v = r->v;
    char key[KEY_MAX];
    key_log(key, &v->manifest.root.volumes[r->volume], r->seq);
    size_t want = SEGMENT_TAIL_GUESS;
    for (;;) {
        CLEANUP_BUF struct buf tail = {0};
        uint64_t object_size = 0;
        int rc = objstore_get_suffix(v->store, key, want, &tail, &object_size, e);
        if (rc < 0)
            return rc;
        size_t need = 0;
        rc = segment_decode_tail(buf_view(&tail), object_size, &r->meta, &r->table, &need, e);
        if (rc == -ERR_OVERLOAD && need > want) {
            want = need;
            continue;
        }
        if (rc == 0)
            rc = check_meta(r, e);
        return rc < 0 ? err_wrap(e, "%s", key) : 0;
    }
}

static void read_table_fiber(void *arg) {
    struct replayed *r = arg;
    r->rc = read_table(r, &r->err);
}

/* Write numbers count within one journal only: another node's "1" says nothing of ours. */
static void learn_last_write(struct volume *v, const struct segment_meta *m) {
    if (!random_id_is_zero(&m->journal) && random_id_equal(&m->journal, &v->manifest.journal))
        v->last_write = MAX(v->last_write, m->last_write);
}

/* fiber. Reads and replays segments in the order given. */
static int replay(struct volume *v, struct replayed *segments, size_t count, struct err *e) {
    int rc = 0;
    for (size_t from = 0; rc == 0 && from < count; from += TABLES_AT_ONCE) {
        size_t n = MIN(count - from, (size_t)TABLES_AT_ONCE);
        struct fiber_group group;
        fiber_group_init(&group, v->env);
        for (size_t i = from; i < from + n; i++)
            fiber_group_start(&group, read_table_fiber, &segments[i]);
        if (fiber_group_wait(&group) < 0)
            rc = err_set(e, -ERR_CANCELLED, "opening was cancelled");
        for (size_t i = from; i < from + n; i++) {
            struct replayed *r = &segments[i];
            if (rc == 0 && r->rc < 0)
                rc = err_copy(e, &r->err);
            if (rc == 0) {
                memtable_replay(v->active, r->volume, r->seq, &r->table);
                learn_last_write(v, &r->meta);
            }
            segment_table_release(&r->table);
        }
    }
    return rc;
}

static int replay_all(struct volume *v, const struct log_walk *walk, struct err *e) {
    const struct root *root = &v->manifest.root;
    size_t count = walk->count;
    for (size_t i = 0; i < root->tail_count; i++)
        count += root->tail[i].count;
    if (count > 2 * SEGMENTS_WALKED_MAX)
        return err_set(e, -ERR_CORRUPT, "the tail has %zu segments, more than any writer leaves",
                       count);
    struct replayed *segments = xcalloc(count, sizeof *segments);
    size_t n = 0;
    for (size_t i = 0; i < root->tail_count; i++)
        for (uint64_t k = 0; k < root->tail[i].count; k++)
            segments[n++] = (struct replayed){
                .v = v, .volume = root->tail[i].volume, .seq = root->tail[i].first + k};
    for (size_t i = 0; i < walk->count; i++)
        segments[n++] = (struct replayed){.v = v, .seq = walk->segments[i].seq};
    CHECK(n == count);
    int rc = replay(v, segments, count, e);
    free(segments);
    v->backlog_segments = count;
    return rc;
}

/* Frees a volume that nobody has seen yet: nothing is under way. */
static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void discard(struct volume *v) {
    struct env *env = v->env;
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(v, on_freed, &freed);
    fiber_done_wait_always(env, &freed);
}

/* fiber. */
static int open_content(struct volume *v, const struct log_walk *walk, struct err *e) {
    v->size_bytes = v->manifest.size_bytes;
    v->last_write = v->manifest.last_write;
    int rc = replay_all(v, walk, e);
    v->durable_write = v->last_write;
    if (rc == 0)
        rc = open_runs(v, e);
    if (rc == -ERR_NOT_FOUND || rc == -ERR_CORRUPT) {
        /* A newer writer may have collected it meanwhile, and a sleeping opener's fence may stand
         * where a segment was. */
        struct err was = *e;
        int why = read_explain_missing(v, was.text, e);
        rc = why == -ERR_CORRUPT && rc == -ERR_CORRUPT ? err_copy(e, &was) : why;
    }
    return rc;
}

/* fiber. Steps 2 to 5. On success ret has everything that it has of takeover and journal. */
static int take_over(const struct volume_config *config, struct volume *v, struct takeover *ret,
                     struct err *e) {
    struct journal_opening o;
    int rc = journal_opening_init(&o, &v->config, v->config.journal_size, e);
    if (rc < 0)
        return rc;
    v->journal = o.journal;
    rc = volume_takeover(config->env, config->store, &config->key, config->publish_epoch, &o.claim,
                         false, ret, e);
    if (rc < 0)
        return rc;
    FAULT_POINT("before the volume is owned");
    if (config->on_owned)
        config->on_owned(config->arg);
    FAULT_POINT("after the volume is owned");
    v->manifest = ret->manifest;
    ret->manifest = (struct manifest){0};
    v->next_seq = ret->first_seq;
    v->frontier = ret->first_seq - 1;
    return 0;
}

int volume_open(const struct volume_config *config, struct volume **ret, struct err *e) {
    struct volume *v = volume_new(config);
    struct takeover t = {0};
    v->opening = true;
    v->gc = gc_new(v);
    int rc = take_over(config, v, &t, e);
    if (rc == 0)
        rc = open_content(v, &t.walk, e);
    takeover_release(&t);
    FAULT_POINT("after the log was read");
    if (rc == 0)
        rc = journal_replay(v, e);
    FAULT_POINT("after the journal was replayed");
    if (rc < 0) {
        discard(v);
        return err_wrap(e, "volume %s: open", config->key.text);
    }
    v->opening = false;
    gc_wake(v->gc);
    log_debug("log replayed", LOG_STR("volume", v->config.key.text),
              LOG_U64("epoch", v->manifest.epoch),
              LOG_U64("segments_replayed", v->backlog_segments), LOG_U64("runs", v->run_count),
              LOG_U64("next_seq", v->next_seq));
    *ret = v;
    return 0;
}

/* fiber. The root that a pin holds, as a manifest of its own. */
static int read_pin(const struct volume_config *config, const struct random_id *pin,
                    struct manifest *ret, struct err *e) {
    struct pin_root p;
    int rc = pin_root_get(config->store, &config->key, pin, &p, e);
    if (rc < 0)
        return rc;
    if (p.expired) {
        pin_root_release(&p);
        return err_set(e, -ERR_NOT_FOUND, "the snapshot was deleted");
    }
    *ret =
        (struct manifest){.size_bytes = p.size_bytes, .block_size = p.block_size, .depth = p.depth};
    root_copy(&ret->root, &p.root);
    pin_root_release(&p);
    return 0;
}

int volume_open_pin(const struct volume_config *config, const struct random_id *pin,
                    struct volume **ret, struct err *e) {
    struct manifest m;
    int rc = read_pin(config, pin, &m, e);
    if (rc < 0)
        return rc;
    struct volume *v = volume_new(config);
    v->manifest = m;
    v->read_only = true;
    v->dev.read_only = true;
    v->pin = *pin;
    struct log_walk none = {0};
    rc = open_content(v, &none, e);
    if (rc < 0) {
        discard(v);
        if (rc == -ERR_SHUTDOWN)
            return err_set(e, -ERR_NOT_FOUND, "the snapshot was deleted");
        return err_wrap(e, "volume %s: open snapshot", config->key.text);
    }
    *ret = v;
    return 0;
}
