/* The modelled bucket: exact without faults; with all of them, behind the retry layer, still what
 * objstore.h promises. */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "common/mem.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "portalbd/objstore/retry.h"
#include "tests/sim/sim_store.h"

static const struct sim_faults no_faults = {.latency_us_max = 1000};
static const struct sim_faults all_faults = {
    .latency_us_max = 20000,
    .slow = 30,
    .slow_us_max = 3000000,
    .refused = 100,
    .timeout = 30,
    .lost_answer = 60,
    .late = 60,
    .duplicate = 60,
    .late_us_max = 60000000,
    .conflict = 50,
    .short_body = 50,
    .short_page = 300,
    .torn_page = 300,
};

struct client {
    struct sim_proc proc;
    struct objstore *below; /* the handle */
    struct objstore *store; /* owned */
    unsigned number;
    unsigned won;
    bool ended;
};

static void client_init(struct client *c, struct sim_world *w, struct sim_bucket *b,
                        unsigned number, void (*fn)(void *)) {
    *c = (struct client){.number = number};
    char name[SIM_NAME_MAX];
    snprintf(name, sizeof name, "client %u", number);
    sim_proc_init(&c->proc, w, name);
    c->below = sim_store_open(b, &c->proc, name);
    c->store = objstore_retry_new(c->below, NULL);
    fiber_start(&c->proc.env, fn, c);
}

static void client_release(struct client *c) {
    objstore_close(c->store);
    sim_proc_release(&c->proc);
}

enum { ROUNDS = 40, CLIENTS = 4 };

/* All clients race for the same keys: one wins each, everybody then reads the winner's body. */
static void race(void *arg) {
    struct client *c = arg;
    struct err e = {0};
    for (unsigned round = 0; round < ROUNDS; round++) {
        char key[64], body[64];
        snprintf(key, sizeof key, "race/%03u", round);
        snprintf(body, sizeof body, "client %u, nonce %llu", c->number,
                 (unsigned long long)env_random_u64(&c->proc.env));
        CLEANUP_BUF struct buf existing = {0};
        int rc = objstore_put(c->store, key, view_of_str(body), &existing, &e);
        if (rc == -ERR_CANCELLED)
            return; /* killed */
        assert_true(rc == 0 || rc == -ERR_EXISTS);
        CLEANUP_BUF struct buf found = {0};
        if (objstore_get(c->store, key, 1000, &found, &e) == -ERR_CANCELLED)
            return;
        bool mine = view_equal(buf_view(&found), view_of_str(body));
        assert_true(mine == (rc == 0));
        assert_true(rc == 0 || view_equal(buf_view(&existing), buf_view(&found)));
        c->won += rc == 0;
    }
    c->ended = true;
}

static unsigned run_race(uint64_t seed, const struct sim_faults *faults, size_t *ret_count) {
    struct sim_world w;
    sim_world_init(&w, seed);
    struct sim_bucket *b = sim_bucket_new(&w, faults);
    struct client clients[CLIENTS];
    for (unsigned i = 0; i < CLIENTS; i++)
        client_init(&clients[i], &w, b, i, race);
    while (sim_step(&w))
        continue;
    unsigned won = 0;
    for (unsigned i = 0; i < CLIENTS; i++) {
        assert_true(clients[i].ended);
        won += clients[i].won;
        client_release(&clients[i]);
    }
    assert_int_equal(sim_bucket_pending(b), 0);
    *ret_count = sim_bucket_count(b);
    sim_bucket_free(b);
    sim_world_release(&w);
    return won;
}

static void test_one_winner(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 20; seed++) {
        size_t count;
        assert_int_equal(run_race(seed, seed % 2 ? &all_faults : &no_faults, &count), ROUNDS);
        assert_int_equal(count, ROUNDS);
    }
}

/* What was there all the time is in every listing, in order, once. */
static void list_all(void *arg) {
    struct client *c = arg;
    struct err e = {0};
    for (unsigned round = 0; round < 20; round++) {
        struct obj_list list = {0};
        assert_int_equal(objstore_list(c->store, "keep/", NULL, 1000, &list, &e), 0);
        unsigned kept = 0;
        for (size_t i = 0; i < list.count; i++) {
            assert_true(i == 0 || strcmp(list.entries[i - 1].key, list.entries[i].key) < 0);
            kept += strlen(list.entries[i].key) == strlen("keep/000");
        }
        assert_int_equal(kept, 50);
        obj_list_release(&list);
    }
    c->ended = true;
}

static void come_and_go(void *arg) {
    struct client *c = arg;
    struct err e = {0};
    for (unsigned i = 0; i < 50; i++) {
        char key[64];
        snprintf(key, sizeof key, "keep/%03u-x", i);
        int rc = objstore_put(c->store, key, view_of_str(key), NULL, &e);
        assert_int_equal(rc, 0);
        assert_int_equal(objstore_delete_one(c->store, key, &e), 0);
    }
    c->ended = true;
}

static void put_kept(void *arg) {
    struct client *c = arg;
    struct err e = {0};
    for (unsigned i = 0; i < 50; i++) {
        char key[64];
        snprintf(key, sizeof key, "keep/%03u", i);
        assert_int_equal(objstore_put(c->store, key, view_of_str("x"), NULL, &e), 0);
    }
    c->ended = true;
}

static void test_lists(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 10; seed++) {
        struct sim_world w;
        sim_world_init(&w, seed);
        struct sim_bucket *b = sim_bucket_new(&w, &no_faults);
        struct client a, l, c;
        client_init(&a, &w, b, 1, put_kept);
        while (sim_step(&w))
            continue;
        sim_bucket_set_faults(b, &all_faults);
        client_init(&l, &w, b, 2, list_all);
        client_init(&c, &w, b, 3, come_and_go);
        while (sim_step(&w))
            continue;
        assert_true(a.ended && l.ended && c.ended);
        client_release(&a);
        client_release(&l);
        client_release(&c);
        sim_bucket_free(b);
        sim_world_release(&w);
    }
}

struct seen {
    unsigned late;
    unsigned after_deletion;
};

static void observe(void *arg, const struct sim_effect *effect) {
    struct seen *s = arg;
    s->late += effect->late;
    s->after_deletion += effect->stored && effect->was_deleted;
}

static void test_kill_and_late_effects(void **state) {
    (void)state;
    struct seen seen = {0};
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct sim_world w;
        sim_world_init(&w, seed);
        struct sim_bucket *b = sim_bucket_new(&w, &all_faults);
        sim_bucket_set_observer(b, observe, &seen);
        struct client c, d;
        client_init(&c, &w, b, 1, race);
        client_init(&d, &w, b, 2, come_and_go);
        uint64_t turns = sim_below(&w, 400);
        for (uint64_t i = 0; i < turns; i++)
            sim_step(&w);
        size_t before = sim_bucket_count(b);
        sim_store_cut(c.below);
        sim_proc_kill(&c.proc);
        assert_int_equal(sim_bucket_count(b), before); /* dying has no effect */
        client_release(&c);
        while (sim_step(&w))
            continue;
        assert_true(d.ended);
        client_release(&d);
        sim_bucket_free(b);
        sim_world_release(&w);
    }
    assert_true(seen.late > 20);
    assert_true(seen.after_deletion > 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_winner),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_kill_and_late_effects),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
