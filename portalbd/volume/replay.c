/* What an open does with the journal (design: Open, steps 2 and 6).
 *
 *   newest manifest names our journal --> keep it: what it holds and the log does not is replayed
 *   ... names another, first attach   --> another writer came: ours is set aside, a new one begins
 *   ... names another, resume         --> fenced: the device that still hangs on us must go
 *
 * I9 Replay starts behind the last write that manifest, tail and walked log name under our
 * journal's id: by the number of the write, never by that of a segment, and never by a number that
 * belongs to another journal. A record that is not good ends the replay. What is before it is a
 * prefix of the acknowledged writes, at or behind the last flush, so a new device may be served
 * from it (P2). A device that lives on may not: it would go on behind a hole. */
#include "common/log.h"
#include "common/mutant.h"
#include "portalbd/volume/volume_internal.h"

enum { RECORDS_PER_SLICE = 1024 };

struct set_aside_job {
    struct journal_memory *memory;
    uint64_t writes;
    uint64_t bytes;
    int rc;
    struct err err;
};

static void set_aside_run(void *arg) {
    struct set_aside_job *s = arg;
    s->rc = s->memory->set_aside(s->memory, s->writes, s->bytes, &s->err);
}

/* fiber. Keeps a copy for people. writes 0: nobody knows. */
static int set_aside(const struct volume_config *c, uint64_t writes, uint64_t bytes,
                     struct err *e) {
    CHECK(c->journal && bytes > 0);
    struct set_aside_job s = {.memory = c->journal, .writes = writes, .bytes = bytes};
    fiber_run_job(c->env, set_aside_run, &s);
    return s.rc < 0 ? err_copy(e, &s.err) : 0;
}

/* fiber. A cancelled open changes nothing in the memory any more. */
static int check_cancelled(const struct volume_config *c, struct err *e) {
    return fiber_cancelled(c->env) ? err_set(e, -ERR_CANCELLED, "opening was cancelled") : 0;
}

/* What stands between us and the journal that the manifest names, in a daemon that must have it. */
static int refuse_resume(const struct journal_opening *o, struct err *e) {
    const char *damage = journal_damage(o->journal);
    if (damage)
        return err_set(e, -ERR_FENCED, "the journal cannot be used: %s", damage);
    if (random_id_is_zero(journal_id(o->journal)))
        return err_set(e, -ERR_FENCED, "the journal of this attachment is gone");
    return err_set(e, -ERR_FENCED, "another writer has had the volume");
}

/* journal_claim.claim, at step 2. */
static int claim(struct journal_claim *claim, const struct random_id *named, struct random_id *ret,
                 struct err *e) {
    struct journal_opening *o = container_of(claim, struct journal_opening, claim);
    struct journal *j = o->journal;
    const struct volume_config *c = o->config;
    bool valid = !random_id_is_zero(journal_id(j));
    bool ours = valid && (random_id_equal(journal_id(j), named) ||
                          (MUTANT("replay-foreign-journal") && journal_head(j) > 0));
    if (ours) {
        *ret = *journal_id(j);
        return 0;
    }
    uint64_t bytes = journal_damage(j) ? c->journal->size : journal_head(j) - journal_tail(j);
    if (c->resume && !MUTANT("resume-as-first"))
        return refuse_resume(o, e);
    if (journal_damage(j))
        log_error("the journal found is of no use and is set aside: writes that were acknowledged "
                  "and not flushed may be lost",
                  LOG_STR("volume", c->key.text), LOG_STR("why", journal_damage(j)));
    FAULT_POINT("before a journal is set aside");
    int rc = bytes > 0 ? set_aside(c, valid ? journal_count_writes(j) : 0, bytes, e) : 0;
    if (rc == 0)
        rc = check_cancelled(c, e);
    if (rc < 0)
        return err_wrap(e, "journal");
    env_random(c->env, ret->bytes, sizeof ret->bytes);
    FAULT_POINT("before the journal is formatted");
    journal_format(j, ret);
    FAULT_POINT("after the journal is formatted");
    return 0;
}

int journal_opening_init(struct journal_opening *o, const struct volume_config *config,
                         uint64_t size, struct err *e) {
    *o = (struct journal_opening){.config = config, .claim.claim = claim};
    return journal_open(config->journal, size, &config->key, &o->journal, e);
}

/* fiber. The records from `from` on become writes of the open segment, as if just acknowledged. */
static int replay_records(struct volume *v, uint64_t from, struct err *e) {
    uint64_t end = journal_head(v->journal);
    for (uint64_t pos = from; pos < end;) {
        struct journal_record r;
        int rc = 0;
        while (rc == 0 && v->state == VOL_OPEN && !write_has_room(v))
            rc = waitq_wait(v->env, &v->frontier_moved);
        if (rc == 0 && ++v->stats.replayed_writes % RECORDS_PER_SLICE == 0)
            rc = fiber_yield(v->env);
        if (rc < 0)
            return err_set(e, -ERR_CANCELLED, "opening was cancelled");
        if (v->state != VOL_OPEN)
            return err_copy(e, &v->why);
        journal_read(v->journal, pos, &r);
        write_note(v, &r);
        FAULT_POINT("after a write was replayed");
        pos = r.end;
    }
    return 0;
}

/* The journal ends before its end. */
static int judge_damage(struct volume *v, const struct journal_found *found, struct err *e) {
    const struct volume_config *c = &v->config;
    uint64_t lost = journal_head(v->journal) - found->end;
    if (c->resume)
        return err_set(e, -ERR_FENCED,
                       "the journal is damaged, the device would go on behind a hole: %s",
                       found->damage.text);
    log_error("the journal is damaged: what was acknowledged and not flushed is lost from there on",
              LOG_STR("volume", c->key.text), LOG_U64("last_write", found->number),
              LOG_U64("bytes_lost", lost), LOG_ERR(&found->damage));
    return set_aside(c, 0, lost, e);
}

int journal_replay(struct volume *v, struct err *e) {
    CHECK(v->open.records == 0 && v->last_write == v->durable_write);
    struct journal_found found;
    int rc = journal_scan(v->journal, v->last_write, v->size_bytes / SECTOR_SIZE, &found, e);
    if (rc == 0 && found.damage.code)
        rc = judge_damage(v, &found, e);
    if (rc == 0)
        rc = check_cancelled(&v->config, e);
    if (rc < 0)
        return err_wrap(e, "journal");
    if (MUTANT("skip-replay"))
        found.from = found.end;
    FAULT_POINT("before the journal is recovered");
    journal_recover(v->journal, &found);
    FAULT_POINT("after the journal is recovered");
    v->open.from = v->open.to = found.from;
    struct journal_record first;
    if (found.from < found.end) {
        journal_read(v->journal, found.from, &first);
        v->last_write = first.number - 1;
    } else {
        v->last_write = v->durable_write = found.number;
    }
    rc = replay_records(v, found.from, e);
    if (rc == 0 && v->stats.replayed_writes > 0)
        log_info("writes of the journal are replayed", LOG_STR("volume", v->config.key.text),
                 LOG_U64("writes", v->stats.replayed_writes),
                 LOG_U64("bytes", found.end - found.from));
    return rc;
}
