/* Whom something happens to: one of those that are there, drawn. */
#include "tests/sim/director.h"

struct sim_volume *pick_volume(struct sim *s) {
    struct sim_volume *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state != LIVE)
            continue;
        if (!picked || sim_below(&s->world, ++seen + 1) == 0)
            picked = v;
    }
    return picked;
}

bool source_is_gone(const struct sim_volume *v) {
    return (v->from_snap && v->from_snap->state != LIVE) ||
           (v->from_volume && v->from_volume->state != LIVE);
}

/* Those that live or may yet come to be. */
unsigned count_volumes(struct sim *s) {
    unsigned n = 0;
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        n += v->state == LIVE || v->state == DYING || (v->state == UNBORN && !source_is_gone(v));
    }
    return n;
}

struct snap *pick_snap(struct sim *s, bool unborn) {
    struct snap *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state != (unborn ? UNBORN : LIVE))
            continue;
        if (!picked || sim_below(&s->world, ++seen + 1) == 0)
            picked = n;
    }
    return picked;
}

unsigned count_snaps(struct sim *s) {
    unsigned n = 0;
    list_for_each (&s->snaps, node)
        n += list_entry(node, struct snap, node)->state != DEAD;
    return n;
}

struct daemon *pick_daemon(struct sim *s, struct sim_volume *vol) {
    struct daemon *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if ((vol && d->vol != vol) || d->state == DAEMON_ENDED)
            continue;
        if (!picked || sim_below(&s->world, ++seen + 1) == 0)
            picked = d;
    }
    return picked;
}

unsigned count_daemons(struct sim *s, const struct sim_volume *vol, bool writers) {
    unsigned n = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        n += d->vol == vol && daemon_is_writer(d) == writers && d->state != DAEMON_ENDED;
    }
    return n;
}

/* Somebody who will serve this volume without our help. */
bool has_writer_awake(struct sim *s, const struct sim_volume *vol) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->vol == vol && daemon_is_writer(d) && !sim_proc_asleep(&d->proc) && !d->stop &&
            d->state <= DAEMON_SERVING)
            return true;
    }
    return false;
}

struct controller *pick_controller(struct sim *s) {
    struct controller *picked = NULL;
    uint64_t seen = 0;
    size_t count = 0;
    list_for_each (&s->controllers, node) {
        struct controller *c = list_entry(node, struct controller, node);
        count++;
        if (!picked || sim_below(&s->world, ++seen + 1) == 0)
            picked = c;
    }
    if (count < CONTROLLERS)
        picked = controller_start(s);
    return picked;
}

struct sim_journal *pick_serving_journal(struct sim *s) {
    struct sim_journal *picked = NULL;
    uint64_t seen = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->journal && d->state == DAEMON_SERVING && !d->stop &&
            (!picked || sim_below(&s->world, ++seen + 1) == 0))
            picked = d->journal;
    }
    return picked;
}
