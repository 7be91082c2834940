/* Becoming the one writer of a volume (design: Open, steps 2 to 5; the models behind it are in
 * docs/protocol.md).
 *
 *   newest manifest n -> put n+1 with our epoch -> walk the log -> fence at its end -> n+1 still
 * the newest?
 *
 * I1 The nonce of an open is in every object that it writes: "own epoch, another nonce" is another
 * writer. I2 The fence stands at the first number that is missing in the walk. A lost fence PUT
 * goes on in the order of numbers: a segment of a lower epoch belongs to the log; a fence of a
 * lower epoch at g sends us to g + FENCE_JUMP. I3 Nothing is served before the manifest was seen to
 * be the newest after the fence. I4 Where the log goes on behind our root, no fence is put unless
 * the manifest was seen to be the newest after the log was listed: whoever is overtaken already
 * would fence a healthy writer for nothing, walking over that one's fence, or with a manifest whose
 * number GC had made free again. */
#include "portalbd/volume/takeover.h"

#include <stdlib.h>

#include "common/mutant.h"

void log_walk_release(struct log_walk *w) {
    free(w->segments);
    *w = (struct log_walk){0};
}

static void walk_append(struct log_walk *w, uint64_t seq, uint64_t size) {
    CHECK(w->count == 0 || w->segments[w->count - 1].seq < seq);
    if ((w->count & (w->count - 1)) == 0) /* at powers of two */
        w->segments = xrealloc(w->segments, MAX(w->count * 2, (size_t)16) * sizeof *w->segments);
    w->segments[w->count++] = (struct walked_segment){.seq = seq, .size = size};
}

static int walk(struct log_walk *ret, const struct obj_list *list, uint64_t from, uint64_t jump,
                struct err *e) {
    CHECK(from >= 1);
    struct log_walk w = {.end = from};
    for (size_t i = 0; i < list->count; i++) {
        uint64_t seq;
        if (key_parse_log(list->entries[i].key, &seq) < 0 || seq < w.end)
            continue; /* not a segment, or between a fence and where it sends us: no walk visits it
                       */
        if (seq > w.end)
            break;
        if (list->entries[i].size == SEGMENT_FENCE_SIZE) {
            w.end = seq + jump;
        } else if (w.count == SEGMENTS_WALKED_MAX) {
            log_walk_release(&w);
            return err_set(e, -ERR_CORRUPT, "the log has more than %d segments behind its manifest",
                           SEGMENTS_WALKED_MAX);
        } else {
            walk_append(&w, seq, list->entries[i].size);
            w.end = seq + 1;
        }
    }
    *ret = w;
    return 0;
}

int log_walk_listing(struct log_walk *ret, const struct obj_list *list, uint64_t from,
                     struct err *e) {
    return walk(ret, list, from, FENCE_JUMP, e);
}

int log_walk_snapshot(struct log_walk *ret, const struct obj_list *list, uint64_t from,
                      struct err *e) {
    return walk(ret, list, from, MUTANT("snapshot-ignores-fence-jump") ? 1 : FENCE_JUMP, e);
}

int log_list(struct obj_list *ret, struct objstore *s, const struct volume_key *v, uint64_t from,
             struct err *e) {
    char prefix[KEY_MAX], after[KEY_MAX];
    key_log_prefix(prefix, v);
    if (from == 1) /* no segment has number 0 */
        return objstore_list(s, prefix, NULL, LOG_LIST_MAX, ret, e);
    key_log(after, v, from - 1);
    return objstore_list(s, prefix, after, LOG_LIST_MAX, ret, e);
}

int log_walk_to_root(const struct log_walk *w, struct root *root, uint64_t next_seq,
                     struct err *e) {
    CHECK(next_seq >= w->end);
    for (size_t i = 0; i < w->count;) {
        size_t n = 1;
        while (i + n < w->count && w->segments[i + n].seq == w->segments[i].seq + n)
            n++;
        if (root->tail_count == ROOT_TAIL_MAX)
            return err_set(e, -ERR_OVERLOAD, "the root's tail has more than %d ranges",
                           ROOT_TAIL_MAX);
        root->tail = xrealloc(root->tail, (root->tail_count + 1) * sizeof *root->tail);
        root->tail[root->tail_count++] =
            (struct root_tail){.volume = 0, .first = w->segments[i].seq, .count = n};
        i += n;
    }
    root->next_seq = next_seq;
    return 0;
}

void takeover_release(struct takeover *t) {
    manifest_release(&t->manifest);
    log_walk_release(&t->walk);
}

/* Step 2: may we, and with which journal? */
static int claim_volume(const struct volume_key *v, const struct manifest *newest,
                        uint32_t publish_epoch, struct journal_claim *journal, bool allow_deleted,
                        struct random_id *ret_journal, struct err *e) {
    uint32_t stored_epoch = epoch_publish(newest->epoch);
    if (newest->deleted && !allow_deleted)
        return err_set(e, -ERR_NOT_FOUND, "volume %s is deleted", v->text);
    if (stored_epoch > publish_epoch)
        return err_set(e, -ERR_FENCED, "volume %s was published again (epoch %u, ours is %u)",
                       v->text, stored_epoch, publish_epoch);
    *ret_journal = (struct random_id){0};
    return journal ? journal->claim(journal, &newest->journal, ret_journal, e) : 0;
}

/* Steps 2 and 3: until a manifest of ours is stored. */
static int put_open_manifest(struct env *env, struct objstore *s, const struct volume_key *v,
                             uint32_t publish_epoch, struct journal_claim *journal,
                             bool allow_deleted, struct manifest *ret, struct err *e) {
    struct random_id own = {0};
    for (;;) {
        struct manifest m;
        int rc = manifest_newest(s, v, &m, e);
        if (rc < 0)
            return rc;
        if (random_id_is_zero(&own) || !MUTANT("journal-decided-once"))
            rc = claim_volume(v, &m, publish_epoch, journal, allow_deleted, &own, e);
        if (rc < 0) {
            manifest_release(&m);
            return rc;
        }
        uint64_t open_count =
            epoch_publish(m.epoch) == publish_epoch ? (m.epoch & UINT32_MAX) + 1 : 1;
        bool same_journal = !random_id_is_zero(&own) && random_id_equal(&own, &m.journal);
        m.number++;
        m.epoch = (uint64_t)publish_epoch << 32 | open_count;
        env_random(env, m.nonce.bytes, sizeof m.nonce.bytes);
        if (!same_journal)
            m.last_write = 0;
        m.journal = own;
        m.closed = false;
        FAULT_POINT("before the opening manifest");
        rc = manifest_put(s, v, &m, e);
        FAULT_POINT("after the opening manifest");
        if (rc == 0) {
            *ret = m;
            return 0;
        }
        manifest_release(&m);
        if (rc != -ERR_EXISTS && rc != -ERR_STALE)
            return rc;
    }
}

enum fence_outcome { FENCE_WON, FENCE_LOST_TO_SEGMENT, FENCE_LOST_TO_FENCE };

/* Puts our fence at one number and says what decides there. Whoever of a higher epoch, or of ours
 * with another nonce, is there: -ERR_FENCED. */
static int fence_at(struct objstore *s, const struct volume_key *v, const struct manifest *m,
                    uint64_t seq, enum fence_outcome *ret, uint64_t *ret_size, struct err *e) {
    struct segment_meta meta = {
        .kind = SEGMENT_FENCE, .epoch = m->epoch, .seq = seq, .nonce = m->nonce};
    segment_volume_hash(meta.volume_hash, v);
    uint8_t body[SEGMENT_FENCE_SIZE];
    segment_encode_fence(body, &meta);
    char key[KEY_MAX];
    key_log(key, v, seq);
    CLEANUP_BUF struct buf existing = {0};
    FAULT_POINT("before a fence");
    int rc = objstore_put(s, key, view_of(body, sizeof body), &existing, e);
    FAULT_POINT("after a fence");
    if (rc == 0) {
        *ret = FENCE_WON;
        return 0;
    }
    if (rc == -ERR_STALE)
        return err_set(e, -ERR_FENCED, "%s is taken and then gone: a newer writer collects garbage",
                       key);
    if (rc != -ERR_EXISTS)
        return rc;
    struct segment_meta other;
    rc = segment_decode_header(buf_view(&existing), &other, e);
    if (rc < 0)
        return err_wrap(e, "%s", key);
    if (other.epoch >= m->epoch)
        return err_set(e, -ERR_FENCED,
                       "%s has epoch %llx, ours is %llx: another writer has the volume", key,
                       (unsigned long long)other.epoch, (unsigned long long)m->epoch);
    *ret = other.kind == SEGMENT_FENCE ? FENCE_LOST_TO_FENCE : FENCE_LOST_TO_SEGMENT;
    *ret_size =
        existing
            .len; /* informative: the read-back is cut, readers ask the store for the true size */
    return 0;
}

struct parallel_fence {
    struct objstore *store;
    const struct volume_key *volume;
    const struct manifest *manifest;
    uint64_t seq;
    enum fence_outcome outcome;
    uint64_t size;
    int rc;
    struct err err;
};

static void parallel_fence_run(void *arg) {
    struct parallel_fence *f = arg;
    f->rc = fence_at(f->store, f->volume, f->manifest, f->seq, &f->outcome, &f->size, &f->err);
}

/* Walks from `seq` on by putting fences, FENCE_JUMP of them at a time to beat a writer that still
 * adds segments, until one wins. The first of the numbers that holds no segment decides. */
static int fence_behind_segment(struct env *env, struct objstore *s, const struct volume_key *v,
                                const struct manifest *m, struct log_walk *walk, uint64_t seq,
                                bool *ret_won, uint64_t *ret_next, struct err *e) {
    struct parallel_fence *fences = xcalloc(FENCE_JUMP, sizeof *fences);
    struct fiber_group group;
    fiber_group_init(&group, env);
    for (uint64_t i = 0; i < FENCE_JUMP; i++) {
        fences[i] = (struct parallel_fence){.store = s, .volume = v, .manifest = m, .seq = seq + i};
        fiber_group_start(&group, parallel_fence_run, &fences[i]);
    }
    int rc = fiber_group_wait(&group);
    if (rc < 0)
        err_set_text(e, rc, "volume %s: cancelled", v->text);
    *ret_won = false;
    *ret_next = seq + FENCE_JUMP;
    for (uint64_t i = 0; rc == 0 && i < FENCE_JUMP; i++) {
        if (fences[i].rc < 0) {
            rc = err_copy(e, &fences[i].err);
        } else if (fences[i].outcome == FENCE_LOST_TO_SEGMENT) {
            walk_append(walk, seq + i, fences[i].size);
        } else {
            *ret_won = fences[i].outcome == FENCE_WON;
            *ret_next = *ret_won ? seq + i : seq + i + FENCE_JUMP;
            break;
        }
    }
    free(fences);
    return rc;
}

/* Step 4: our fence at the first missing number. *ret_cut is that number. */
static int fence_the_log(struct env *env, struct objstore *s, const struct volume_key *v,
                         const struct manifest *m, struct log_walk *walk, uint64_t *ret_cut,
                         struct err *e) {
    uint64_t seq = walk->end;
    bool behind_segment = false;
    for (;;) {
        if (walk->count > SEGMENTS_WALKED_MAX)
            return err_set(e, -ERR_BUSY,
                           "another writer adds segments faster than they can be fenced off");
        bool won;
        if (behind_segment) {
            uint64_t next;
            int rc = fence_behind_segment(env, s, v, m, walk, seq, &won, &next, e);
            if (rc < 0)
                return rc;
            seq = next;
        } else {
            enum fence_outcome outcome;
            uint64_t size = 0;
            int rc = fence_at(s, v, m, seq, &outcome, &size, e);
            if (rc < 0)
                return rc;
            won = outcome == FENCE_WON;
            behind_segment = outcome == FENCE_LOST_TO_SEGMENT;
            if (behind_segment)
                walk_append(walk, seq++, size);
            else if (!won)
                seq += FENCE_JUMP;
        }
        if (won) {
            walk->end = seq;
            *ret_cut = seq;
            return 0;
        }
    }
}

/* Steps 4 and 5, and the numbers that follow from the cut. */
static int fence_and_check(struct env *env, struct objstore *s, const struct volume_key *v,
                           struct takeover *t, struct err *e) {
    struct obj_list list = {0};
    int rc = log_list(&list, s, v, t->manifest.root.next_seq, e);
    if (rc < 0)
        return rc;
    rc = log_walk_listing(&t->walk, &list, t->manifest.root.next_seq, e);
    bool goes_on = list.count > 0;
    obj_list_release(&list);
    if (rc < 0)
        return rc;
    if (MUTANT("no-fence")) {
        t->first_seq = t->walk.end;
        return manifest_check_newest(s, v, t->manifest.number, e);
    }
    uint64_t cut = 0;
    if (goes_on) /* I4 */
        rc = manifest_check_newest(s, v, t->manifest.number, e);
    if (rc < 0)
        return rc;
    rc = fence_the_log(env, s, v, &t->manifest, &t->walk, &cut, e);
    if (rc < 0)
        return rc;
    t->first_seq = cut + FENCE_JUMP;
    if (MUTANT("no-manifest-check-after-fence"))
        return 0;
    return manifest_check_newest(s, v, t->manifest.number, e);
}

int volume_takeover(struct env *env, struct objstore *s, const struct volume_key *v,
                    uint32_t publish_epoch, struct journal_claim *journal, bool allow_deleted,
                    struct takeover *ret, struct err *e) {
    struct takeover t = {0};
    int rc = put_open_manifest(env, s, v, publish_epoch, journal, allow_deleted, &t.manifest, e);
    if (rc < 0)
        return rc;
    rc = fence_and_check(env, s, v, &t, e);
    if (rc < 0) {
        takeover_release(&t);
        return rc;
    }
    CHECK(t.first_seq >= t.walk.end);
    *ret = t;
    return 0;
}

int volume_fence(struct env *env, struct objstore *s, const struct volume_key *v,
                 uint32_t publish_epoch, struct manifest *ret, struct err *e) {
    struct takeover t;
    int rc = volume_takeover(env, s, v, publish_epoch, NULL, false, &t, e);
    if (rc < 0)
        return rc;
    struct manifest *m = &t.manifest;
    m->number++;
    m->closed = true;
    rc = log_walk_to_root(&t.walk, &m->root, t.first_seq, e);
    if (rc == 0)
        rc = manifest_put(s, v, m, e);
    if (rc == -ERR_EXISTS || rc == -ERR_STALE)
        rc = err_set(e, -ERR_FENCED, "volume %s: manifest %llu is another writer's", v->text,
                     (unsigned long long)m->number);
    if (rc == 0)
        rc = manifest_check_newest(s, v, m->number, e);
    if (rc == 0 && ret) {
        *ret = *m;
        *m = (struct manifest){0};
    }
    takeover_release(&t);
    return rc;
}
