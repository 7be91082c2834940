/* The journals on the nodes: which daemon has which, who came between, and what must be in them.
 *
 * A daemon that dies leaves its journal as it is in that moment: what is done in it while the rest
 * of the process is cleared away has no effect. What its successor on the same node finds is
 * checked: if nobody else's manifest was the newest since, nothing that was acknowledged may be
 * missing (P3); if somebody else's was, a resumed daemon must not serve. */
#include <inttypes.h>
#include <stdlib.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

void journals_release(struct sim_volume *vol) {
    for (size_t i = 0; i < NODES; i++)
        ram_journal_release(&vol->journals[i].ram);
}

static void take(struct daemon *d, struct sim_journal *j, bool resume) {
    if (!j->ram.memory.base) {
        ram_journal_init(&j->ram, d->sim->limits.journal_size);
        j->vol = d->vol;
        j->foreign = true;
    }
    CHECK(!j->user);
    j->user = d;
    d->journal = j;
    d->resume = resume;
}

/* The journal of a new daemon, on some node where nobody has it. */
void journals_pick(struct daemon *d) {
    struct sim_world *w = &d->sim->world;
    if (sim_chance(w, d->sim->memory_mode_rate))
        return;
    bool home = d->sim->loyal && sim_chance(w, 800);
    struct sim_journal *j = &d->vol->journals[home ? 0 : sim_below(w, NODES)];
    if (j->user)
        return;
    bool resume = j->owned && j->publish_epoch == d->publish_epoch;
    j->owned = resume;
    j->publish_epoch = d->publish_epoch;
    take(d, j, resume);
}

void journals_resume(struct daemon *d, struct sim_journal *j) {
    take(d, j, j->owned);
}

/* So that a daemon's puts are known as its journal's also after its death. */
void journals_register(struct daemon *d, unsigned number) {
    struct sim *s = d->sim;
    if (number >= s->journal_of_count) {
        size_t count = 2 * (size_t)number + 16;
        s->journal_of = xrealloc(s->journal_of, count * sizeof(struct sim_journal *));
        for (size_t i = s->journal_of_count; i < count; i++)
            s->journal_of[i] = NULL;
        s->journal_of_count = count;
    }
    s->journal_of[number] = d->journal;
}

/* Does the manifest do nothing but grow a closed volume? Who does that is no other writer: a daemon
 * that closed here may still be resumed. */
static bool only_grows(struct sim *s, struct sim_volume *vol, const struct sim_effect *x) {
    char key[KEY_MAX];
    struct view body;
    struct manifest m, before;
    uint64_t n = vol->manifest_newest;
    key_manifest(key, &vol->key, n - 1);
    if (n < 2 || !sim_bucket_find(s->bucket, key, &body) ||
        manifest_decode(&before, n - 1, body, NULL) < 0)
        return false;
    bool ret = false;
    if (manifest_decode(&m, n, x->body, NULL) == 0) {
        ret = before.closed && m.closed && m.epoch == before.epoch &&
              m.size_bytes > before.size_bytes && random_id_equal(&m.journal, &before.journal) &&
              m.root.next_seq == before.root.next_seq && m.root.run_count == before.root.run_count;
        manifest_release(&m);
    }
    manifest_release(&before);
    return ret;
}

void journals_manifest_stored(struct sim *s, struct sim_volume *vol, const struct sim_effect *x) {
    const char *client = x->client;
    struct sim_journal *own = NULL;
    if (client[0] == 'c' && only_grows(s, vol, x))
        return;
    if (client[0] == 'd')
        own = s->journal_of[strtoul(client + 1, NULL, 10)];
    for (size_t i = 0; i < NODES; i++) {
        struct sim_journal *j = &vol->journals[i];
        if (j != own)
            j->foreign = j->reign_broken = j->broken = true;
    }
    if (!own)
        return;
    struct daemon *d = own->user;
    if (d && !d->dead && !d->named && strcmp(d->proc.name, client) == 0) {
        d->named = true;
        d->overtaken = own->foreign;
        d->unbroken = !own->reign_broken;
        own->broken = false;
    }
    own->foreign = false;
}

/* The agent hears of it by the ready pipe. */
void journals_owned(void *arg) {
    struct daemon *d = arg;
    if (d->journal && !d->dead)
        d->journal->owned = true;
}

struct reign *journals_expected_reign(struct daemon *d) {
    if (!d->journal || !d->unbroken)
        return NULL;
    return d->journal->reign;
}

void journals_opened(struct daemon *d) {
    struct sim_journal *j = d->journal;
    if (!j)
        return;
    if (d->resume && d->overtaken)
        sim_fail(d->sim, "%s was resumed and serves, although another writer had %s before it",
                 d->proc.name, d->vol->name);
    j->reign = d->reign;
    j->reign_broken = j->broken;
}

void journals_open_failed(struct daemon *d, int rc) {
    struct sim_journal *j = d->journal;
    if (!j || rc != -ERR_FENCED)
        return;
    if (d->resume && !j->foreign)
        sim_fail(d->sim, "%s was resumed and is fenced, although nobody else had %s", d->proc.name,
                 d->vol->name);
    d->sim->totals.resumes_fenced += d->resume;
    j->owned = false; /* the agent takes the device down */
}

void journals_closed(struct daemon *d) {
    struct sim_journal *j = d->journal;
    if (!j)
        return;
    /* Somebody told the daemon to end, and the device stays: so does the journal, and the next one
     * resumes. */
    j->owned = j->owned && sim_chance(&d->sim->world, 200);
    j->reign = NULL;
    /* Whoever dies before it deletes the file leaves an empty journal. */
    if (sim_chance(&d->sim->world, 800) && !j->owned) {
        ram_journal_reset(&j->ram);
        j->foreign = true;
    }
}

void journals_let_go(struct daemon *d) {
    struct sim_journal *j = d->journal;
    if (!j)
        return;
    struct sim_totals *t = &d->sim->totals;
    t->journals_set_aside += j->ram.set_asides;
    t->reserves_refused += j->ram.refusals;
    if (j->ram.set_asides > 0 && j->reign)
        scenarios_note(d->sim, S5_OTHER_NODE_BETWEEN);
    j->ram.set_asides = j->ram.refusals = 0;
    if (d->dead)
        ram_journal_thaw(&j->ram);
    j->user = NULL;
}
