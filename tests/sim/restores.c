/* Restores in place, as the model has to know them. The moment of a restore is the PUT of the
 * manifest that carries the snapshot's root, by whichever controller finished it; from then on the
 * volume's content is the snapshot's. */
#include <stdlib.h>
#include <string.h>

#include "common/mem.h"
#include "tests/sim/sim.h"

void snap_release(struct snap *n) {
    if (n->root)
        root_release(n->root);
    free(n->root);
    free(n);
}

/* What its pin holds, while that is still there. */
static void learn_root(struct sim *s, struct snap *n) {
    char key[KEY_MAX];
    struct view body;
    struct pin_root p;
    key_pin_root(key, &n->volume, &n->pin);
    if (n->root || !sim_bucket_find(s->bucket, key, &body) || pin_root_decode(&p, body, NULL) < 0)
        return;
    if (!p.expired) {
        n->root = NEW(struct root);
        root_copy(n->root, &p.root);
    }
    pin_root_release(&p);
}

static bool same_content(const struct root *a, const struct root *b) {
    if (a->run_count != b->run_count || a->tail_count != b->tail_count)
        return false;
    for (size_t i = 0; i < a->run_count; i++)
        if (!random_id_equal(&a->runs[i].index.id, &b->runs[i].index.id))
            return false;
    for (size_t i = 0; i < a->tail_count; i++)
        if (a->tail[i].first != b->tail[i].first || a->tail[i].count != b->tail[i].count ||
            !volume_key_equal(&a->volumes[a->tail[i].volume], &b->volumes[b->tail[i].volume]))
            return false;
    return true;
}

void restores_begin(struct sim *s, struct sim_volume *vol, struct snap *n) {
    learn_root(s, n);
    n->restores++;
    vol->restores++;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->vol == vol && daemon_is_writer(d) && d->state == DAEMON_SERVING)
            scenarios_note(s, S6_RESTORE_BESIDE_WRITER);
    }
}

void restores_manifest_stored(struct sim *s, struct sim_volume *vol, const struct sim_effect *x) {
    uint64_t n;
    struct manifest m;
    if (x->client[0] != 'c' || vol->restores == 0 || !vol->model ||
        key_parse_numbered(x->key, &n) < 0 || manifest_decode(&m, n, x->body, NULL) < 0)
        return;
    struct snap *which = NULL;
    list_for_each (&s->snaps, node) {
        struct snap *k = list_entry(node, struct snap, node);
        if (k->restores > 0 && k->source == vol && k->root && m.closed &&
            same_content(&m.root, k->root))
            which = k;
    }
    if (which) {
        sim_trace(&s->world, x->client, "%s is restored to %s", vol->name, which->name);
        model_restored(vol->model, x->client, m.epoch, which->image);
        s->totals.restores++;
        if (which->state != LIVE)
            scenarios_note(s, S6_RESTORE_OF_DELETED);
    }
    manifest_release(&m);
}
