/* The end of a run: everything comes to rest, is read once more, and swept. */
#include "tests/sim/director.h"

enum { SETTLE_STEPS_MAX = 20000, COLLECTS_MAX = 20 };
#define SETTLE_STEP_US 200000

static bool tasks_left(struct sim *s) {
    list_for_each (&s->controllers, node)
        if (list_entry(node, struct controller, node)->tasks > 0)
            return true;
    return false;
}

/* Also those that started since. */
static void stop_daemons(struct sim *s, unsigned kill_per_mille) {
    list_for_each (&s->daemons, node) {
        struct daemon *d = list_entry(node, struct daemon, node);
        if (d->state == DAEMON_ENDED || d->stop)
            continue;
        if (sim_chance(&s->world, kill_per_mille))
            daemon_kill(d);
        else
            daemon_stop(d, sim_chance(&s->world, 700));
    }
}

static bool wait_until_ended(struct sim *s) {
    for (unsigned i = 0; i < SETTLE_STEPS_MAX && !checker_failed(&s->checker); i++) {
        daemons_reap(s);
        stop_daemons(s, 0);
        if (list_empty(&s->daemons) && !tasks_left(s))
            return true;
        if (!director_pause(s, SETTLE_STEP_US))
            return false;
    }
    sim_fail(s, "it does not come to rest: a daemon or a task hangs");
    return false;
}

/* Runs a task to its end, without trouble. */
static void do_task(struct sim *s, struct controller *c, struct task t) {
    if (checker_failed(&s->checker))
        return;
    controller_submit(c, &t);
    wait_until_ended(s);
}

static void clear_doubts(struct sim *s, struct controller *c) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state == UNBORN)
            do_task(s, c, (struct task){.kind = TASK_CREATE, .vol = v});
        if (v->state == UNBORN) /* its source is gone */
            v->state = DEAD;
        if (v->state == DYING)
            do_task(s, c, (struct task){.kind = TASK_DELETE, .vol = v, .steal = true});
    }
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state == UNBORN && n->source->state == LIVE)
            do_task(s, c, (struct task){.kind = TASK_SNAPSHOT, .snap = n});
        if (n->state == UNBORN)
            do_task(s, c, (struct task){.kind = TASK_FIND_SNAPSHOT, .snap = n});
        if (n->state == DYING)
            do_task(s, c, (struct task){.kind = TASK_DELETE_SNAPSHOT, .snap = n});
    }
}

static uint64_t count_requests(struct sim *s) {
    uint64_t n = 0;
    for (size_t i = 0; i <= OBJ_DELETE; i++)
        n += sim_bucket_stats(s->bucket)->requests[i];
    return n;
}

/* P9: a volume that nobody writes to sends nothing, once its debts are paid. */
static void check_idle(struct sim *s, const struct sim_volume *v) {
    director_pause(s, UINT64_C(60) * 1000000);
    uint64_t before = count_requests(s);
    director_pause(s, UINT64_C(3600) * 1000000);
    if (count_requests(s) != before)
        sim_fail(s, "P9: %s is idle and sends %llu requests an hour", v->name,
                 (unsigned long long)(count_requests(s) - before));
}

/* Publishes, waits until a daemon serves it. */
static void open_once_more(struct sim *s, struct controller *c, struct sim_volume *v) {
    controller_submit(c,
                      &(struct task){.kind = TASK_PUBLISH, .vol = v, .steal = true, .start = true});
    uint64_t opens = s->totals.opens;
    for (unsigned i = 0; s->totals.opens == opens && !checker_failed(&s->checker); i++) {
        if (i == SETTLE_STEPS_MAX)
            sim_fail(s, "%s cannot be opened at the end", v->name);
        director_pause(s, SETTLE_STEP_US);
    }
}

/* Everything that lives is opened and read once more. */
static void read_everything(struct sim *s, struct controller *c) {
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state != LIVE || checker_failed(&s->checker))
            continue;
        open_once_more(s, c, v);
        check_idle(s, v);
        list_for_each (&s->daemons, dn)
            daemon_stop(list_entry(dn, struct daemon, node), sim_chance(&s->world, 700));
        wait_until_ended(s);
    }
    list_for_each (&s->snaps, node) {
        struct snap *n = list_entry(node, struct snap, node);
        if (n->state != LIVE || checker_failed(&s->checker))
            continue;
        uint64_t opens = s->totals.read_only_opens;
        daemon_start_read_only(s, n);
        wait_until_ended(s);
        if (s->totals.read_only_opens == opens)
            sim_fail(s, "snapshot %s cannot be opened at the end", n->name);
    }
}

/* Every volume pays what it owes; true: something was deleted. */
static bool collect_everything(struct sim *s, struct controller *c) {
    uint64_t before = s->totals.objects_freed;
    list_for_each (&s->volumes, node) {
        struct sim_volume *v = list_entry(node, struct sim_volume, node);
        if (v->state != LIVE || checker_failed(&s->checker))
            continue;
        open_once_more(s, c, v);
        list_for_each (&s->daemons, dn) {
            struct daemon *d = list_entry(dn, struct daemon, node);
            d->collect = true;
            daemon_stop(d, true);
        }
        wait_until_ended(s);
    }
    do_task(s, c, (struct task){.kind = TASK_BACKGROUND});
    return s->totals.objects_freed > before;
}

static void give_memory(struct sim *s) {
    list_for_each (&s->volumes, node)
        for (size_t i = 0; i < NODES; i++)
            list_entry(node, struct sim_volume, node)->journals[i].ram.refuse_next = 0;
}

/* A PUT that was sent twice may come once more behind its deletion, in a deleted volume that its
 * collector takes for done: another controller finds it, on a store where nothing is sent twice. */
static struct controller *after_the_last(struct sim *s, struct controller *c) {
    while (sim_bucket_pending(s->bucket) > 0)
        if (!director_pause(s, SETTLE_STEP_US))
            return c;
    struct sim_faults none = {.latency_us_max = 1, .late_us_max = 1};
    sim_bucket_set_faults(s->bucket, &none);
    controller_kill(c);
    c = controller_start(s);
    do_task(s, c, (struct task){.kind = TASK_BACKGROUND});
    return c;
}

void director_settle(struct sim *s) {
    sim_rng_seed(&s->director.rng, s->options.seed);
    s->stopping = true;
    give_memory(s);
    stop_daemons(s, 300);
    struct sim_faults none = {.latency_us_max = 5000, .late_us_max = 1000000};
    sim_bucket_set_faults(s->bucket, &none);
    if (!wait_until_ended(s))
        return;
    while (!list_empty(&s->controllers))
        controller_kill(list_entry(s->controllers.next, struct controller, node));
    while (sim_bucket_pending(s->bucket) > 0) /* what the dead have sent still arrives */
        if (!director_pause(s, SETTLE_STEP_US))
            return;
    struct controller *c = controller_start(s);
    clear_doubts(s, c);
    for (unsigned i = 0; i < 3 && !checker_failed(&s->checker); i++) {
        do_task(s, c, (struct task){.kind = TASK_BACKGROUND});
        director_pause(s, SWEEP_INTERVAL_US + 1000000);
    }
    read_everything(s, c);
    /* A chain of deleted clones is given back a link a pass. */
    for (unsigned i = 0; collect_everything(s, c) && !checker_failed(&s->checker); i++)
        if (i == COLLECTS_MAX)
            sim_fail(s, "there is something to collect for ever");
    c = after_the_last(s, c);
    if (!checker_failed(&s->checker))
        audit_bucket(s);
    do_task(s, c, (struct task){.kind = TASK_FSCK, .at_rest = true});
    while (!list_empty(&s->controllers))
        controller_kill(list_entry(s->controllers.next, struct controller, node));
}
