/* A daemon: opens a volume, reads all of it for the checker, serves clients, closes or dies.
 *
 *   OPENING --volume_open--> READING --all read--> SERVING --stop--> CLOSING --> ENDED
 *      any of them --error, fenced--> ENDED        any of them --daemon_kill--> freed
 *
 * Everything that a client of the volume hears is told to the model in the turn in which it hears
 * it, and nothing any more once the daemon is dead. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

/* Some have a disk cache, on a disk that others used before; some disks fail, or lie. */
static void pick_disk(struct daemon *d) {
    struct sim *s = d->sim;
    bool wanted = sim_chance(&s->world, s->disk_rate), bad = sim_chance(&s->world, 150);
    uint64_t how = sim_below(&s->world, 3);
    if (!wanted)
        return;
    struct list_node *node = list_pop_front(&s->disks);
    if (node) {
        d->disk = list_entry(node, struct sim_disk, node);
    } else {
        d->disk = NEW(struct sim_disk);
        memory_medium_init(&d->disk->memory, DISK_CACHE_SIZE_MIN);
    }
    d->disk->memory.fail_reads = bad && how == 0;
    d->disk->memory.fail_writes = bad && how == 1;
    d->disk->memory.flip = bad && how == 2;
}

static void on_freed(void *arg) {
    struct daemon *d = arg;
    d->volume = NULL;
    waitq_wake_all(&d->changed);
}

/* fiber. Nobody is inside the volume any more; then it goes. Also in a cancelled fiber. */
static void drop_volume(struct daemon *d) {
    while (d->calls > 0)
        waitq_wait_always(&d->proc.env, &d->changed);
    struct volume_status st;
    volume_status(d->volume, &st);
    struct sim_totals *t = &d->sim->totals;
    t->checkpoints += st.checkpoints;
    t->merges += st.merges;
    t->gc_rounds += st.gc_rounds;
    t->gc_deleted += st.gc_objects_deleted;
    t->gc_moves += st.gc_moves;
    t->parts_reused += st.map_parts_reused;
    t->cache_hits += st.cache_hits;
    t->cache_misses += st.cache_misses;
    t->flushes += st.flushes;
    t->disk_hits += st.disk_cache_hits;
    t->disks_failed += st.disk_cache_off;
    if (st.health == VOLUME_HEALTH_FENCED && d->journal && !d->dead)
        d->journal->owned = false; /* the agent is told, and takes the device down */
    volume_free(d->volume, on_freed, d);
    while (d->volume || d->clients > 0)
        waitq_wait_always(&d->proc.env, &d->changed);
}

static bool may_not_exist(const struct daemon *d) {
    return d->snap ? d->snap->state != LIVE : d->vol->state != LIVE;
}

/* An open may fail because somebody else came, the thing was deleted, or we were killed. */
static void judge_open(struct daemon *d, int rc, const struct err *e) {
    struct sim *s = d->sim;
    bool fenced = rc == -ERR_FENCED || rc == -ERR_STALE || rc == -ERR_BUSY;
    s->totals.opens_fenced += fenced;
    sim_trace(&s->world, d->proc.name, "open failed: %s", e->text);
    if (!d->dead)
        journals_open_failed(d, rc);
    if (rc == -ERR_CANCELLED && d->dead)
        return;
    if (fenced && daemon_is_writer(d))
        return;
    if ((rc == -ERR_NOT_FOUND || rc == -ERR_SHUTDOWN || rc == -ERR_STALE) && may_not_exist(d))
        return;
    sim_fail(s, "open of %s by %s ended with %s: %s", d->snap ? d->snap->name : d->vol->name,
             d->proc.name, err_code_name(rc), e->text);
}

static bool open_volume(struct daemon *d) {
    struct sim *s = d->sim;
    struct volume_config config = s->limits;
    config.env = &d->proc.env;
    config.store = d->store;
    config.publish_epoch = d->publish_epoch;
    config.disk = d->disk ? &d->disk->memory.medium : NULL;
    struct err e = {0};
    int rc;
    if (d->snap) {
        config.key = d->snap->volume;
        rc = volume_open_pin(&config, &d->snap->pin, &d->volume, &e);
    } else {
        config.key = d->vol->key;
        config.journal = d->journal ? &d->journal->ram.memory : NULL;
        config.resume = d->resume;
        config.on_owned = journals_owned;
        config.arg = d;
        rc = volume_open(&config, &d->volume, &e);
    }
    if (rc < 0)
        judge_open(d, rc, &e);
    return rc == 0;
}

/* The whole content, compared with the model. */
static bool read_volume(struct daemon *d) {
    struct sim *s = d->sim;
    CLEANUP_FREE uint32_t *found = xcalloc(s->checker.places, sizeof *found);
    struct volume_status st;
    volume_status(d->volume, &st);
    int rc = client_read_all(d, found);
    if (d->dead)
        return false;
    if (rc < 0) {
        bool gone =
            (d->snap && may_not_exist(d)) || (!d->snap && (rc == -ERR_FENCED || may_not_exist(d)));
        if (!gone)
            sim_fail(s, "%s cannot read what it opened: %s", d->proc.name, err_code_name(rc));
        return false;
    }
    if (d->snap) {
        s->totals.read_only_opens++;
        model_image_check(d->snap->image, found, st.size_bytes);
        return !checker_failed(&s->checker);
    }
    s->totals.opens++;
    d->vol->kills_in_open = 0;
    s->totals.replays += st.replayed_writes > 0;
    s->totals.writes_replayed += st.replayed_writes;
    struct reign *whole = journals_expected_reign(d);
    s->totals.nothing_lost_checked += whole != NULL;
    d->reign = model_open(d->vol->model, d->proc.name, st.epoch, found, whole,
                          st.replayed_writes > 0, d->size_min, st.size_bytes);
    if (!d->reign)
        return false;
    scenarios_opened(s, d);
    journals_opened(d);
    return !checker_failed(&s->checker);
}

static void serve(struct daemon *d) {
    struct sim *s = d->sim;
    d->state = DAEMON_SERVING;
    unsigned clients = d->snap ? 1 : (unsigned)sim_between(&s->world, 1, s->client_count);
    for (unsigned i = 0; i < clients; i++)
        client_start(d);
    while (!d->stop && !fiber_cancelled(&d->proc.env))
        if (waitq_wait(&d->proc.env, &d->changed) < 0)
            break;
    d->stop = true;
}

/* All debts are paid; nothing else is going on. */
static void collect(struct daemon *d) {
    struct err e = {0};
    d->calls++;
    int rc = volume_collect(d->volume, &e);
    d->calls--;
    if (rc < 0 && !d->dead && rc != -ERR_FENCED && !may_not_exist(d))
        sim_fail(d->sim, "collecting by %s ended with %s: %s", d->proc.name, err_code_name(rc),
                 e.text);
}

static void close_volume(struct daemon *d) {
    struct sim *s = d->sim;
    d->state = DAEMON_CLOSING;
    size_t token = d->reign ? model_flush_begin(d->reign) : 0;
    struct err e = {0};
    d->calls++;
    int rc = volume_close(d->volume, &e);
    d->calls--;
    if (d->dead)
        return;
    sim_trace(&s->world, d->proc.name, "closed: %s", rc < 0 ? e.text : "clean");
    if (rc == 0 && d->reign)
        model_flush_acked(d->reign, token);
    s->totals.closes += rc == 0;
    if (rc == 0)
        journals_closed(d);
    if (rc < 0 && rc != -ERR_FENCED && rc != -ERR_CANCELLED && !may_not_exist(d))
        sim_fail(s, "close by %s ended with %s: %s", d->proc.name, err_code_name(rc), e.text);
}

static void daemon_main(void *arg) {
    struct daemon *d = arg;
    if (open_volume(d)) {
        d->state = DAEMON_READING;
        if (read_volume(d))
            serve(d);
        if (d->collect && !d->dead)
            collect(d);
        if (d->close && !d->dead)
            close_volume(d);
        drop_volume(d);
    }
    d->state = DAEMON_ENDED;
    sim_trace(&d->sim->world, d->proc.name, "ended");
}

/* For a debugger's eye, when a killed daemon hangs. */
static void describe(struct sim_proc *p) {
    const struct daemon *d = p->owner;
    fprintf(stderr, "%s: state %d, %zu clients, %zu calls, volume %s\n", p->name, d->state,
            d->clients, d->calls, d->volume ? "open" : "none");
}

static void on_kill(struct sim_proc *p) {
    struct daemon *d = p->owner;
    d->dead = true;
    d->stop = true;
    sim_store_cut(d->below);
    if (d->journal)
        ram_journal_freeze(&d->journal->ram);
    waitq_wake_all(&d->changed);
}

static bool is_gone(struct sim_proc *p) {
    const struct daemon *d = p->owner;
    return d->state == DAEMON_ENDED && d->clients == 0;
}

static struct daemon *start(struct sim *s, struct sim_volume *vol, struct snap *snap,
                            struct sim_journal *journal, uint64_t publish_epoch) {
    struct daemon *d = NEW(struct daemon);
    d->sim = s;
    d->vol = vol;
    d->snap = snap;
    d->publish_epoch = (uint32_t)publish_epoch;
    d->size_min = vol->model ? vol->model->size_acked : 0;
    char name[SIM_NAME_MAX];
    unsigned number = s->next_number++;
    name_format(name, sizeof name, snap ? "r" : "d", number);
    if (!snap && journal)
        journals_resume(d, journal);
    else if (!snap)
        journals_pick(d);
    journals_register(d, number);
    pick_disk(d);
    sim_proc_init(&d->proc, &s->world, name);
    d->proc.owner = d;
    d->proc.on_kill = on_kill;
    d->proc.gone = is_gone;
    d->proc.describe = describe;
    d->below = sim_store_open(s->bucket, &d->proc, name);
    d->store = store_stack(s, d->below);
    waitq_init(&d->changed);
    list_push_back(&s->daemons, &d->node);
    s->totals.daemons++;
    if (snap)
        snap->users++;
    sim_trace(&s->world, name, "starts on %s, publish epoch %" PRIu64 ", journal %zd%s",
              snap ? snap->name : vol->name, publish_epoch,
              d->journal ? d->journal - vol->journals : -1, d->resume ? ", resumes" : "");
    fiber_start(&d->proc.env, daemon_main, d);
    return d;
}

struct daemon *daemon_start(struct sim *s, struct sim_volume *vol, uint64_t publish_epoch) {
    struct daemon *d = start(s, vol, NULL, NULL, publish_epoch);
    vol->opens_begun++;
    scenarios_opening(s, d);
    return d;
}

bool daemon_respawn(struct sim *s, struct sim_journal *j) {
    if (!j->vol || j->user || j->vol->state != LIVE)
        return false;
    struct daemon *d = start(s, j->vol, NULL, j, j->publish_epoch);
    j->vol->opens_begun++;
    s->totals.respawns++;
    scenarios_opening(s, d);
    return true;
}

struct daemon *daemon_start_read_only(struct sim *s, struct snap *snap) {
    return start(s, snap->source, snap, NULL, 0);
}

void daemon_stop(struct daemon *d, bool close) {
    d->stop = true;
    d->close = close;
    waitq_wake_all(&d->changed);
}

static void daemon_release(struct daemon *d) {
    d->sim->totals.hedges += store_stack_hedges(d->sim, d->store);
    if (d->snap)
        d->snap->users--;
    journals_let_go(d);
    if (d->disk)
        list_push_back(&d->sim->disks, &d->disk->node);
    objstore_close(d->store);
    sim_proc_release(&d->proc);
    list_remove(&d->node);
    free(d);
}

void daemon_kill(struct daemon *d) {
    struct sim *s = d->sim;
    s->totals.crashes++;
    scenarios_at_kill(s, &d->proc);
    if (d->state == DAEMON_OPENING && daemon_is_writer(d) && ++d->vol->kills_in_open == 2)
        scenarios_note(s, S5_KILL_IN_OPEN_TWICE);
    sim_trace(&s->world, d->proc.name, "KILLED");
    sim_proc_kill(&d->proc);
    daemon_release(d);
}

void daemons_reap(struct sim *s) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->state == DAEMON_ENDED && list_empty(&d->proc.env.fibers) && !d->proc.events &&
            d->proc.jobs == 0 && d->clients == 0)
            daemon_release(d);
    }
}
