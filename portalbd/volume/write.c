/* The write side: journal, open segment, cuts, the pipeline of PUTs, the durable frontier, FLUSH.
 *
 *   WRITE/TRIM/ZEROES --append--> journal + memtable + cache --cut--> build (worker) --> PUT -->
 * stored stored, and all before it stored --> frontier moves: memtable points at the segment,
 * journal is freed, flushes answered
 *
 * I1 seq put <= frontier + WINDOW; FLUSH_SLOTS of these only for cuts that a flush waits for.
 * I2 A flush is answered when durable_write >= the last write that was acknowledged before it.
 * I6 A refused PUT (somebody else's object at our number) means that we are fenced, for ever.
 * I9 Journal positions of cut segments tile it without a gap; freed <= frontier.
 *
 * A cut takes all records of the open segment, so a segment boundary is also a boundary of writes,
 * and the memtable can be rotated at it. */
#include <stdlib.h>

#include "common/mutant.h"
#include "portalbd/volume/gc.h"
#include "portalbd/volume/volume_internal.h"

static struct segment **slot(struct volume *v, uint64_t seq) {
    return &v->window[seq % ARRAY_LEN(v->window)];
}

/* --- flush --- */

static void answer_flushes(struct volume *v, uint64_t durable_write) {
    while (!list_empty(&v->flush_queue)) { /* whoever is answered may add to it or empty it */
        struct bd_request *req = list_entry(v->flush_queue.next, struct bd_request, node);
        if (req->dev_state[1] > durable_write)
            break;
        list_remove(&req->node);
        volume_complete(req, 0);
    }
}

void write_want_cut(struct volume *v) {
    if (v->open.records > 0)
        v->open.flush_wanted = true;
    if (v->cut_posted || !v->open.flush_wanted)
        return;
    /* One turn later, so that flushes that arrive together share the cut. */
    if (v->config.flush_coalesce_us > 0) {
        if (!env_timer_running(&v->coalesce_timer))
            env_timer_start(v->env, &v->coalesce_timer, v->config.flush_coalesce_us);
        return;
    }
    v->cut_posted = true;
    v->pending++;
    env_post(v->env, &v->cut_event);
}

/* The request waits until write number dev_state[1] is durable. */
static bool wait_durable(struct volume *v, struct bd_request *req, uint64_t number) {
    v->stats.flushes++;
    if (number <= v->durable_write) {
        req->rc = 0;
        return true;
    }
    req->dev_state[1] = number;
    CHECK(list_empty(&v->flush_queue) ||
          list_entry(v->flush_queue.prev, struct bd_request, node)->dev_state[1] <= number);
    list_push_back(&v->flush_queue, &req->node);
    write_want_cut(v);
    return false;
}

bool flush_submit(struct volume *v, struct bd_request *req) {
    return wait_durable(v, req, v->last_write);
}

int write_wait_durable(struct volume *v, uint64_t number, struct err *e) {
    while (v->durable_write < number) {
        int rc = volume_refusal(v);
        if (rc < 0 && v->state != VOL_CLOSING)
            return v->why.code ? err_copy(e, &v->why)
                               : err_set(e, rc, "volume %s is closing", v->config.key.text);
        write_want_cut(v);
        rc = waitq_wait(v->env, &v->frontier_moved);
        if (rc < 0)
            return err_set(
                e, -ERR_CANCELLED, "volume %s: given up with %llu bytes not uploaded",
                v->config.key.text,
                (unsigned long long)(journal_head(v->journal) - journal_tail(v->journal)));
    }
    return 0;
}

/* --- frontier --- */

static void free_segment(struct segment *s) {
    segment_build_release(&s->build);
    obj_request_release(&s->put);
    free(s);
}

void write_drop_window(struct volume *v) {
    for (size_t i = 0; i < ARRAY_LEN(v->window); i++)
        if (v->window[i])
            free_segment(v->window[i]);
}

static void pass_frontier(struct volume *v, struct segment *s) {
    CHECK(s->seq == v->frontier + 1 && s->stored);
    CHECK(s->build.from >= journal_tail(v->journal));
    struct lens_block *lens = lens_block_new(s->build.table.lens, s->build.table.len_count);
    struct memtable *generation = v->frozen && s->seq <= v->frozen_last_seq ? v->frozen : v->active;
    memtable_set_stored(generation, s->build.from, s->build.to, s->seq, &s->build.table, lens);
    lens_block_unref(lens);
    uint64_t before = journal_tail(v->journal);
    journal_free_to(v->journal, s->build.to);
    v->frontier = s->seq;
    pace_freed(&v->pace, env_now_us(v->env), s->build.to - before, s->seq + 1 == v->next_seq);
    v->durable_write = s->build.meta.last_write;
    *slot(v, s->seq) = NULL;
    free_segment(s);
}

static void maybe_cut(struct volume *v);

static void advance_frontier(struct volume *v) {
    uint64_t before = v->frontier;
    struct segment *s;
    while ((s = *slot(v, v->frontier + 1)) != NULL && s->stored)
        pass_frontier(v, s);
    if (v->frontier == before)
        return;
    answer_flushes(v, v->durable_write);
    waitq_wake_all(&v->frontier_moved);
    maybe_cut(v);
    write_resume(v);
}

static void on_put(struct obj_request *req) {
    struct segment *s = container_of(req, struct segment, put);
    struct volume *v = s->volume;
    s->putting = false;
    if (req->rc == 0) {
        s->stored = true;
        uint64_t size = s->build.frames.len + s->build.tail.len + SEGMENT_HEADER_SIZE;
        v->stats.bytes_stored += size;
        v->backlog_bytes += size;
        gc_note_segment(v->gc, s->seq, size, &s->build.table);
        volume_fill_disk_segment(v, s);
        buf_release(&s->build.frames); /* the frontier needs only the table, and may be far */
        if (MUTANT("ack-before-frontier"))
            answer_flushes(v, s->build.meta.last_write);
        advance_frontier(v);
    } else if (v->state != VOL_FREEING) {
        bool fenced = req->rc == -ERR_EXISTS || req->rc == -ERR_STALE || req->rc == -ERR_FENCED;
        struct err why = req->err;
        if (fenced)
            err_set_text(&why, -ERR_FENCED, "volume %s: another writer owns %s", v->config.key.text,
                         s->key);
        volume_break(v, fenced ? VOL_FENCED : VOL_ERROR, &why);
    }
    volume_pending_done(v);
}

static void put_segment(struct segment *s) {
    struct volume *v = s->volume;
    s->parts[0] = view_of(s->build.header, SEGMENT_HEADER_SIZE);
    s->parts[1] = buf_view(&s->build.frames);
    s->parts[2] = buf_view(&s->build.tail);
    key_log(s->key, &v->config.key, s->seq);
    s->put = (struct obj_request){.verb = OBJ_PUT,
                                  .key = s->key,
                                  .parts = s->parts,
                                  .part_count = ARRAY_LEN(s->parts),
                                  .done = on_put};
    CHECK(s->seq <= v->frontier + WINDOW || MUTANT("window-unbounded"));
    s->putting = true;
    objstore_submit(v->store, &s->put);
}

/* --- cut --- */

static void build_run(struct env_job *job) {
    segment_build_run(&container_of(job, struct segment, job)->build);
}

static void build_done(struct env_job *job) {
    struct segment *s = container_of(job, struct segment, job);
    struct volume *v = s->volume;
    v->builds--;
    if (v->state == VOL_OPEN || v->state == VOL_CLOSING)
        put_segment(s); /* its turn at volume_pending_done comes with the answer */
    else
        volume_pending_done(v);
}

static void rotate(struct volume *v) {
    CHECK(!v->frozen && v->open.records == 0);
    v->rotate_wanted = false;
    v->frozen = v->active;
    v->frozen_last_seq = v->next_seq - 1;
    v->frozen_last_write = v->last_write;
    v->active = memtable_new();
    v->frozen_segments = v->backlog_segments;
    v->backlog_segments = 0;
    v->backlog_bytes = 0;
}

static void cut(struct volume *v) {
    CHECK(v->open.records > 0);
    CHECK(*slot(v, v->next_seq) == NULL);
    struct segment *s = NEW(struct segment);
    s->volume = v;
    s->seq = v->next_seq++;
    s->cut_us = env_now_us(v->env);
    s->build.journal = v->journal;
    s->build.from = v->open.from;
    s->build.to = v->open.to;
    s->build.compress = v->builds < BUILDS_MAX;
    s->build.meta = (struct segment_meta){
        .kind = SEGMENT_DATA,
        .epoch = v->manifest.epoch,
        .seq = s->seq,
        .nonce = v->manifest.nonce,
        .journal = v->manifest.journal,
        .last_write = v->last_write,
    };
    segment_volume_hash(s->build.meta.volume_hash, &v->config.key);
    *slot(v, s->seq) = s;
    if (v->open.flush_wanted)
        v->stats.flush_cuts++;
    memset(&v->open, 0, sizeof v->open);
    v->open.from = v->open.to = s->build.to;
    env_timer_stop(v->env, &v->cut_timer);
    v->backlog_segments++;
    if (v->rotate_wanted)
        rotate(v);
    s->job = (struct env_job){.run = build_run, .done = build_done};
    v->builds++;
    v->pending++;
    pace_start(&v->pace, s->cut_us);
    env_job_submit(v->env, &s->job);
    checkpoint_maybe_start(v);
}

static bool open_is_full(const struct volume *v) {
    return v->open.bytes >= v->config.segment_size || v->open.pieces >= OPEN_PIECES_MAX;
}

static bool may_cut(const struct volume *v) {
    uint64_t window = v->open.flush_wanted ? WINDOW : WINDOW - FLUSH_SLOTS;
    if (MUTANT("window-unbounded"))
        window = ARRAY_LEN(v->window) - 1;
    return v->open.records > 0 && v->next_seq <= v->frontier + window;
}

static void maybe_cut(struct volume *v) {
    if (v->state != VOL_OPEN && v->state != VOL_CLOSING)
        return;
    if ((v->open.flush_wanted || v->open.expired || open_is_full(v)) && may_cut(v))
        cut(v);
}

static void on_cut_event(struct env_event *event) {
    struct volume *v = container_of(event, struct volume, cut_event);
    v->cut_posted = false;
    maybe_cut(v);
    volume_pending_done(v);
}

static void on_coalesced(struct env_timer *timer) {
    maybe_cut(container_of(timer, struct volume, coalesce_timer));
}

static void on_cut_timer(struct env_timer *timer) {
    struct volume *v = container_of(timer, struct volume, cut_timer);
    v->open.expired = true;
    maybe_cut(v);
}

static void on_pace_timer(struct env_timer *timer) {
    write_resume(container_of(timer, struct volume, pace_timer));
}

static void on_starved_timer(struct env_timer *timer) {
    write_resume(container_of(timer, struct volume, starved_timer));
}

void write_init(struct volume *v) {
    list_init(&v->write_queue);
    list_init(&v->flush_queue);
    waitq_init(&v->frontier_moved);
    v->cut_event.fn = on_cut_event;
    v->cut_timer.fn = on_cut_timer;
    v->coalesce_timer.fn = on_coalesced;
    v->starved_timer.fn = on_starved_timer;
    v->pace_timer.fn = on_pace_timer;
}

void write_rotate(struct volume *v) {
    CHECK(!v->frozen);
    v->rotate_wanted = true;
    if (v->open.records == 0)
        rotate(v);
    else
        write_want_cut(v);
}

/* --- append --- */

bool write_backlog_full(const struct volume *v) {
    size_t extents = memtable_count(v->active) + (v->frozen ? memtable_count(v->frozen) : 0);
    return v->backlog_segments + v->frozen_segments >= BACKLOG_SEGMENTS_MAX ||
           extents >= BACKLOG_EXTENTS_MAX;
}

bool write_has_room(struct volume *v) {
    if (write_backlog_full(v)) {
        checkpoint_maybe_start(v);
        return false;
    }
    if (open_is_full(v))
        maybe_cut(v);
    return !open_is_full(v);
}

static void trim_outward(uint64_t *sector, uint64_t *count, uint64_t end) {
    uint64_t from = *sector / 8 * 8;
    *count = MIN(ALIGN_UP(*sector + *count, 8), end) - from;
    *sector = from;
}

void write_note(struct volume *v, const struct journal_record *r) {
    CHECK(r->number == v->last_write + 1);
    CHECK(r->pos >= v->open.to);
    struct mem_extent x = {
        .sector = r->sector, .count = r->count, .kind = r->kind, .pos = r->data_pos};
    memtable_put(v->active, &x);
    read_mark_changed(v, r->sector, r->count);
    if (v->open.records++ == 0) {
        v->open.first_us = env_now_us(v->env);
        env_timer_start(v->env, &v->cut_timer, CUT_AFTER_US);
    }
    v->last_write = r->number;
    v->open.to = r->end;
    v->open.bytes += r->end - r->pos;
    v->open.pieces += 2 + (r->kind == EXTENT_DATA ? extent_frames(r->count) : 1);
}

/* One record: into the journal, then everything that must know of it. */
static bool append(struct volume *v, uint8_t kind, uint64_t sector, uint64_t count,
                   const uint8_t *data) {
    if (kind == EXTENT_HOLE && MUTANT("trim-rounded-outward"))
        trim_outward(&sector, &count, v->size_bytes / SECTOR_SIZE);
    struct journal_record r;
    if (!write_has_room(v) || !journal_append(v->journal, kind, sector, count, data, &r))
        return false;
    write_note(v, &r);
    if (kind == EXTENT_DATA)
        ram_cache_write(v->cache, sector, count, data);
    else
        ram_cache_drop(v->cache, sector, count);
    return true;
}

/* May a record of len bytes come now? Else the timer asks again. */
static bool admit(struct volume *v, uint64_t len) {
    uint64_t used = journal_head(v->journal) - journal_tail(v->journal);
    uint64_t now = env_now_us(v->env), rate = gc_write_rate(v->gc);
    uint64_t us = pace_admit(&v->pace, now, used, journal_size(v->journal), len, rate);
    if (v->debt_wait_from_us > 0) {
        v->stats.gc_debt_wait_us += now - v->debt_wait_from_us;
        v->debt_wait_from_us = 0;
    }
    if (us == 0)
        return true;
    v->stats.write_waits_paced++;
    if (rate != PACE_FREE)
        v->debt_wait_from_us = now;
    env_timer_start(v->env, &v->pace_timer, us);
    return false;
}

/* Appends what is left of a request (dev_state[0]: bytes done). True when all of it is in. */
static bool append_request(struct volume *v, struct bd_request *req) {
    while (req->dev_state[0] < req->len) {
        uint64_t off = req->off + req->dev_state[0];
        uint64_t len = req->len - req->dev_state[0];
        bool ok;
        if (req->op == BD_WRITE) {
            len = MIN(len, (uint64_t)JOURNAL_DATA_MAX);
            ok = admit(v, len) && append(v, EXTENT_DATA, off / SECTOR_SIZE, len / SECTOR_SIZE,
                                         req->write_data + req->dev_state[0]);
        } else {
            bool hole = req->op == BD_TRIM || !(req->flags & BD_NO_HOLE);
            ok = append(v, hole ? EXTENT_HOLE : EXTENT_ZERO, off / SECTOR_SIZE, len / SECTOR_SIZE,
                        NULL);
        }
        if (!ok)
            return false;
        req->dev_state[0] += len;
        if (open_is_full(v))
            maybe_cut(v);
    }
    v->stats.bytes_written += req->op == BD_WRITE ? req->len : 0;
    return true;
}

/* Lets the journal drain for those who wait for room. Room that only the system can give is asked
 * for again. */
static void drain(struct volume *v) {
    if (env_timer_running(&v->pace_timer))
        return; /* there is room, only not yet */
    v->stats.write_waits_full++;
    if (v->open.records > 0)
        v->open.expired = true;
    maybe_cut(v);
    if (journal_starved(v->journal) && !env_timer_running(&v->starved_timer))
        env_timer_start(v->env, &v->starved_timer, STARVED_RETRY_US);
}

bool write_submit(struct volume *v, struct bd_request *req) {
    req->dev_state[0] = 0;
    if (map_limit_refuses(v, req)) {
        req->rc = -ERR_NO_SPACE;
        return true;
    }
    if (!list_empty(&v->write_queue) || !append_request(v, req)) {
        list_push_back(&v->write_queue, &req->node);
        drain(v);
        return false;
    }
    if (req->flags & BD_FUA)
        return wait_durable(v, req, v->last_write);
    req->rc = 0;
    return true;
}

void write_resume(struct volume *v) {
    env_timer_stop(v->env, &v->pace_timer);
    while (!list_empty(&v->write_queue)) {
        struct bd_request *req = list_entry(v->write_queue.next, struct bd_request, node);
        if (!append_request(v, req)) {
            drain(v);
            return;
        }
        list_remove(&req->node);
        if (!(req->flags & BD_FUA) || wait_durable(v, req, v->last_write))
            volume_complete(req, 0);
    }
}

static void fail_list(struct list_node *head, int rc) {
    struct list_node *node;
    while ((node = list_pop_front(head)) != NULL)
        volume_complete(list_entry(node, struct bd_request, node), rc);
}

void write_fail_all(struct volume *v, int rc) {
    env_timer_stop(v->env, &v->cut_timer);
    env_timer_stop(v->env, &v->coalesce_timer);
    env_timer_stop(v->env, &v->starved_timer);
    env_timer_stop(v->env, &v->pace_timer);
    fail_list(&v->write_queue, rc);
    fail_list(&v->flush_queue, rc);
    waitq_wake_all(&v->frontier_moved);
}
