/* Counts how often a run met the scenarios of docs/protocol.md: from what the bucket sees, and from
 * what the director does. */
#include <stdio.h>
#include <string.h>

#include "tests/sim/sim.h"

const char *const scenario_names[SCENARIO_COUNT] = {
    [S1_OPENER_OVERTAKEN] = "S1 opener asleep while another opens",
    [S2_GAP_AT_FENCE] = "S2 fence before stored segments",
    [S2_ZOMBIE_FILLS_GAP] = "S2 segment put behind a fence",
    [S2_FENCE_MEETS_SEGMENT] = "S2 fence meets a segment",
    [S3_THREE_OPENERS] = "S3 three openers",
    [S3_FENCE_MEETS_FENCE] = "S3 fence meets another's fence",
    [S4_LATE_SEGMENT_AFTER_DELETE] = "S4 segment put again after its deletion",
    [S4_LATE_MANIFEST_AFTER_DELETE] = "S4 manifest put again after its deletion",
    [S4_LATE_ROOT_AFTER_DELETE] = "S4 pin put again after its deletion",
    [S5_KILL_IN_OPEN] = "S5 killed while it opened",
    [S5_KILL_IN_OPEN_TWICE] = "S5 ... twice in a row",
    [S5_LATE_MANIFEST] = "S5 manifest put by the dead",
    [S5_KILL_IN_REPLAY] = "S5 killed between the fence and the end of replay",
    [S5_OTHER_NODE_BETWEEN] = "S5 journal set aside, another came",
    [S6_PAUSE_IN_DELETE] = "S6 asleep within a deletion's rounds",
    [S6_PAUSE_IN_ROUND] = "S6 writer asleep within a GC round",
    [S6_KILL_IN_ROUND] = "S6 writer killed within a GC round",
    [S6_RESTORE_BESIDE_WRITER] = "S6 restore while the old writer serves",
    [S6_RESTORE_OF_DELETED] = "S6 snapshot deleted within its restore",
    [S6_PAUSE_IN_RESTORE] = "S6 restorer asleep",
    [S6_KILL_IN_RESTORE] = "S6 restorer killed",
    [S7_KILL_IN_SNAPSHOT] = "S7 maker killed",
    [S7_PAUSE_IN_SNAPSHOT] = "S7 maker asleep",
    [S7_TWO_MAKERS] = "S7 two makers of one snapshot",
    [S7_EXPIRED_ROOT] = "S7 pin expired by the sweeper",
    [S8_PINS_CHANGE_IN_LIST] = "S8 pins change within a LIST",
    [S9_SNAPSHOT_DURING_OPEN] = "S9 snapshot beside an open",
    [S9_SNAPSHOT_DURING_CHECKPOINT] = "S9 snapshot beside a checkpoint",
    [S9_SNAPSHOT_DURING_RESTORE] = "S9 snapshot beside a restore",
    [S10_KILL_IN_CHECKPOINT] = "S10 killed between run and manifest",
    [S11_DELETE_WITH_SNAPSHOTS] = "S11 volume deleted under snapshots",
    [S11_DELETE_WITH_CLONES] = "S11 volume deleted under clones",
    [S11_ZOMBIE_AFTER_DELETE] = "S11 writer alive after the deletion",
    [S12_OLD_EPOCH_RESTARTS] = "S12 daemon starts with an old epoch",
};

void scenarios_note(struct sim *s, enum scenario which) {
    s->totals.scenarios[which]++;
}

static bool is_fence(const struct sim *s, const char *folder, size_t folder_len, uint64_t seq) {
    char key[KEY_MAX];
    snprintf(key, sizeof key, "%.*s%016llx", (int)folder_len, folder, (unsigned long long)seq);
    struct view body;
    return sim_bucket_find(s->bucket, key, &body) && body.len == SEGMENT_FENCE_SIZE;
}

static bool is_segment(const struct sim *s, const char *folder, size_t folder_len, uint64_t seq) {
    char key[KEY_MAX];
    snprintf(key, sizeof key, "%.*s%016llx", (int)folder_len, folder, (unsigned long long)seq);
    struct view body;
    return sim_bucket_find(s->bucket, key, &body) && body.len != SEGMENT_FENCE_SIZE;
}

static void at_log_put(struct sim *s, const struct sim_effect *x) {
    uint64_t seq;
    if (key_parse_log(x->key, &seq) < 0)
        return;
    size_t folder_len = (size_t)(strrchr(x->key, '/') + 1 - x->key);
    bool fence = x->body.len == SEGMENT_FENCE_SIZE;
    if (x->stored && x->was_deleted)
        scenarios_note(s, S4_LATE_SEGMENT_AFTER_DELETE);
    if (fence && !x->stored && is_fence(s, x->key, folder_len, seq))
        scenarios_note(s, S3_FENCE_MEETS_FENCE);
    if (fence && !x->stored && is_segment(s, x->key, folder_len, seq))
        scenarios_note(s, S2_FENCE_MEETS_SEGMENT);
    if (!x->stored)
        return;
    for (uint64_t i = 1; fence && i < FENCE_JUMP; i++) {
        if (is_segment(s, x->key, folder_len, seq + i)) {
            scenarios_note(s, S2_GAP_AT_FENCE);
            return;
        }
    }
    for (uint64_t i = 1; !fence && i < FENCE_JUMP && i < seq; i++) {
        if (is_fence(s, x->key, folder_len, seq - i)) {
            scenarios_note(s, S2_ZOMBIE_FILLS_GAP);
            return;
        }
    }
}

static void at_map_or_manifest_put(struct sim *s, const struct sim_effect *x, bool map) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (strcmp(d->proc.name, x->client) == 0)
            d->checkpointing = map;
    }
}

static void note_newest(struct sim *s, const struct sim_effect *x) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        uint64_t number;
        char folder[KEY_MAX];
        snprintf(folder, sizeof folder, "volumes/%s/", v->key.text);
        if (!v->key.text[0] || !strstr(x->key, folder) || key_parse_numbered(x->key, &number) < 0 ||
            number <= v->manifest_newest)
            continue;
        v->manifest_newest = number;
        v->manifest_by = x->client[0];
        journals_manifest_stored(s, v, x);
        restores_manifest_stored(s, v, x);
    }
}

static struct daemon *daemon_of(struct sim *s, const struct sim_proc *p) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (&d->proc == p)
            return d;
    }
    return NULL;
}

/* The round's last step. */
static void at_delete(struct sim *s, const struct sim_effect *x) {
    bool has_successor = strstr(x->key, "/manifest/") || strncmp(x->key, "volumes/", 8) != 0;
    s->totals.objects_freed += x->existed && !has_successor;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->collecting && strcmp(d->proc.name, x->client) == 0)
            d->collecting = false;
    }
}

static void on_effect(void *arg, const struct sim_effect *x) {
    struct sim *s = arg;
    guard_on_effect(s, x);
    if (x->verb == OBJ_DELETE)
        at_delete(s, x);
    if (x->verb != OBJ_PUT)
        return;
    if (strstr(x->key, "/log/")) {
        at_log_put(s, x);
    } else if (strstr(x->key, "/map/")) {
        at_map_or_manifest_put(s, x, true);
    } else if (strstr(x->key, "/manifest/")) {
        at_map_or_manifest_put(s, x, false);
        if (x->stored)
            note_newest(s, x);
        if (x->stored && x->late)
            scenarios_note(s, S5_LATE_MANIFEST);
        if (x->stored && x->was_deleted)
            scenarios_note(s, S4_LATE_MANIFEST_AFTER_DELETE);
    } else if (strstr(x->key, "/pins/")) {
        if (x->stored && x->was_deleted)
            scenarios_note(s, S4_LATE_ROOT_AFTER_DELETE);
        if (x->stored && memmem(x->body.data, x->body.len, "\"expired\":true", 14))
            scenarios_note(s, S7_EXPIRED_ROOT);
    }
}

void scenarios_watch_store(struct sim *s) {
    sim_bucket_set_observer(s->bucket, on_effect, s);
}

static struct controller *controller_of(struct sim *s, const struct sim_proc *p) {
    list_for_each (&s->controllers, node) {
        struct controller *c = list_entry(node, struct controller, node);
        if (&c->proc == p)
            return c;
    }
    return NULL;
}

/* A GC round from its look at the pins on. */
void scenarios_at_submit(struct sim *s, struct sim_proc *p, enum obj_verb verb, const char *key) {
    bool looks = verb == OBJ_LIST && strstr(key, "/pins/");
    bool ends = verb == OBJ_PUT && strstr(key, "/manifest/");
    struct daemon *d = looks || ends ? daemon_of(s, p) : NULL;
    if (d)
        d->collecting = looks;
}

void scenarios_at_sleep(struct sim *s, struct sim_proc *p) {
    struct daemon *d = daemon_of(s, p);
    if (d && d->state == DAEMON_OPENING && daemon_is_writer(d))
        d->slept_in_open = true;
    if (d && d->collecting)
        scenarios_note(s, S6_PAUSE_IN_ROUND);
    struct controller *c = controller_of(s, p);
    if (!c)
        return;
    if (c->tasks_of[TASK_DELETE] + c->tasks_of[TASK_BACKGROUND] > 0)
        scenarios_note(s, S6_PAUSE_IN_DELETE);
    if (c->tasks_of[TASK_SNAPSHOT] > 0)
        scenarios_note(s, S7_PAUSE_IN_SNAPSHOT);
    if (c->tasks_of[TASK_RESTORE] > 0)
        scenarios_note(s, S6_PAUSE_IN_RESTORE);
}

void scenarios_at_kill(struct sim *s, struct sim_proc *p) {
    struct daemon *d = daemon_of(s, p);
    if (d && daemon_is_writer(d) && d->state == DAEMON_OPENING)
        scenarios_note(s, S5_KILL_IN_OPEN);
    if (d && d->state == DAEMON_OPENING && d->journal && d->named && d->journal->owned)
        scenarios_note(s, S5_KILL_IN_REPLAY);
    if (d && d->checkpointing)
        scenarios_note(s, S10_KILL_IN_CHECKPOINT);
    struct controller *c = controller_of(s, p);
    if (c && c->tasks_of[TASK_SNAPSHOT] > 0)
        scenarios_note(s, S7_KILL_IN_SNAPSHOT);
    if (c && c->tasks_of[TASK_RESTORE] > 0)
        scenarios_note(s, S6_KILL_IN_RESTORE);
    if (d && d->collecting)
        scenarios_note(s, S6_KILL_IN_ROUND);
}

void scenarios_opened(struct sim *s, struct daemon *opened) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d != opened && d->vol == opened->vol && d->state == DAEMON_OPENING &&
            d->slept_in_open && sim_proc_asleep(&d->proc))
            scenarios_note(s, S1_OPENER_OVERTAKEN);
    }
}

void scenarios_opening(struct sim *s, struct daemon *opening) {
    unsigned openers = 0;
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        openers += d->vol == opening->vol && daemon_is_writer(d) && d->state == DAEMON_OPENING;
    }
    if (openers >= 3)
        scenarios_note(s, S3_THREE_OPENERS);
    if (opening->publish_epoch < opening->vol->publish_epoch)
        scenarios_note(s, S12_OLD_EPOCH_RESTARTS);
}
