/* Calls of an attach backend beside each other (attach.h says which may be): those that help a call
 * which waits for a daemon to its end, and those of one volume beside another's.
 *
 * Linked with --wrap=nbd_netlink_reconfigure: what the nbd backend learns from the kernel is old by
 * the time that it has it. */
#include "tests/support/attach_fixture.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/mem.h"
#include "node-agent/attach/nbd_netlink.h"

enum {
    RACES = 30,
    RACERS = 4,
    RACE_US_MAX = 20000, /* that a racer starts later than the others */
    OLD_US_MAX = 10000,
    OLD_US_MUCH = 900000, /* four of them are longer than the kernel looks away from old requests */
};

static unsigned old_us, old_us_max;

int __real_nbd_netlink_reconfigure(const struct nbd_reconfigure *r, struct err *e);
int __wrap_nbd_netlink_reconfigure(const struct nbd_reconfigure *r, struct err *e);

int __wrap_nbd_netlink_reconfigure(const struct nbd_reconfigure *r, struct err *e) {
    int rc = __real_nbd_netlink_reconfigure(r, e);
    if (old_us_max)
        usleep(old_us + (unsigned)rand() % (old_us_max - old_us));
    return rc;
}

/* --- a detach that waits --- */

static int detach_in_child(struct attach_fixture *f) {
    struct err e;
    return f->backend->ops->detach(f->backend, f->volume, false, &e) < 0;
}

/* Its last flush went to a daemon that died with it. */
static void start_stuck_detach(struct attach_fixture *f) {
    if (fixture_is_fuse()) {
        print_message("detach of this backend, with nothing to write, waits for no daemon\n");
        skip();
    }
    fixture_attach(f);
    f->memory->held = true;
    f->client = fixture_start_client(f, detach_in_child);
    fixture_await_received(f, BD_FLUSH, 0);
    attach_server_kill(&f->server);
    f->memory->held = false;
    assert_int_equal(child_wait(f->client, 300), -1);
    assert_true(fixture_is_there(f->backend, f->volume, NULL));
}

static void test_detach_waits_for_the_next_daemon(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    start_stuck_detach(f);
    old_us = OLD_US_MUCH, old_us_max = OLD_US_MUCH + 1;
    fixture_recover(f);
    old_us_max = 0;
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    assert_true(f->memory->answered[BD_FLUSH] > 0);
    assert_false(fixture_is_there(f->backend, f->volume, NULL));
    assert_int_equal(attach_server_wait(&f->server, FIXTURE_SOON_MS), 0);
}

static void test_fail_ends_a_detach(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    start_stuck_detach(f);
    fixture_fail(f);
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 1);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    assert_false(fixture_is_there(f->backend, f->volume, NULL));
}

/* --- calls that come too late --- */

static void expect_over(struct attach_fixture *f) {
    struct err e;
    const struct attach_ops *ops = f->backend->ops;
    int over = fixture_is_fuse() ? -ERR_IO : -ERR_NOT_FOUND;
    assert_int_equal(ops->resume(f->backend, f->volume, &f->link, &e), over);
    assert_int_equal(ops->reattach(f->backend, f->volume, &f->how, &f->link, &e), over);
    assert_true(ops->grow(f->backend, f->volume, 2 * f->how.size_bytes, &e) < 0);
}

/* While somebody has it open, and afterwards. */
static void test_calls_after_fail(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    fixture_attach(f);
    int fd = fixture_open_device(f);
    assert_true(fd >= 0);
    fixture_fail(f);
    expect_over(f);
    close(fd);
    OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
    expect_over(f);
    fixture_fail(f);
}

/* The kernel looks away from a new connection as long as the old one lives: that is no success. */
static void test_the_old_connection_lives(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    struct err e;
    if (fixture_is_fuse()) {
        print_message("a device of this backend has one connection for ever\n");
        skip();
    }
    fixture_attach(f);
    int old = attach_server_hand_over(&f->server);
    OK(f->backend->ops->resume(f->backend, f->volume, &f->link, &why));
    fixture_start_server(f, true);
    assert_int_equal(f->backend->ops->reattach(f->backend, f->volume, &f->how, &f->link, &e),
                     -ERR_BUSY);
    assert_int_equal(attach_server_wait(&f->server, FIXTURE_SOON_MS), 0); /* nobody there */
    close(old);
    fixture_recover(f);
    f->client = fixture_start_client(f, fixture_write_one);
    assert_int_equal(fixture_expect_client_ends(f, FIXTURE_SOON_MS), 0);
    fixture_detach(f);
}

/* --- a neighbour --- */

struct racer {
    struct attach_fixture *f;
    pthread_barrier_t *start;
    void (*call)(struct racer *r);
    unsigned late_us;
    bool force;
    int rc;
    struct err e;
};

static void race_attach(struct racer *r) {
    struct attach_fixture *f = r->f;
    r->rc = f->backend->ops->attach(f->backend, f->volume, &f->how, &f->link, &f->device, &r->e);
}

static void race_detach(struct racer *r) {
    r->rc = r->f->backend->ops->detach(r->f->backend, r->f->volume, r->force, &r->e);
}

static void race_fail(struct racer *r) {
    fixture_fail(r->f);
}

static void *racer_main(void *arg) {
    struct racer *r = arg;
    pthread_barrier_wait(r->start);
    usleep(r->late_us);
    r->call(r);
    return NULL;
}

static void race(struct racer *racers) {
    pthread_t threads[RACERS];
    pthread_barrier_t start;
    assert_int_equal(pthread_barrier_init(&start, NULL, RACERS), 0);
    for (size_t i = 0; i < RACERS; i++) {
        racers[i].start = &start;
        racers[i].late_us = (unsigned)rand() % RACE_US_MAX;
        assert_int_equal(pthread_create(&threads[i], NULL, racer_main, &racers[i]), 0);
    }
    for (size_t i = 0; i < RACERS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&start);
}

/* A device that goes gives its number to the next one that comes: what still wants to end the first
 * must not end the second. */
static void test_a_neighbour_is_spared(void **state) {
    fixture_need(state);
    struct attach_fixture *f = *state;
    for (unsigned i = 0; i < RACES; i++) {
        struct attach_fixture *next = fixture_new(f->backend, 64 * MIB, 64 * MIB);
        fixture_attach(f);
        fixture_prepare(next);
        struct racer racers[RACERS] = {
            {.f = f, .call = race_fail},
            {.f = f, .call = race_fail},
            {.f = f, .call = race_detach, .force = i % 2 == 0},
            {.f = next, .call = race_attach},
        };
        old_us = 0, old_us_max = OLD_US_MAX;
        race(racers);
        old_us_max = 0;
        if (racers[3].rc < 0)
            fail_msg("attach: %s", racers[3].e.text);
        int fd = fixture_open_device(next);
        assert_true(fd >= 0);
        assert_int_equal(pread(fd, fixture_buffer, FIXTURE_BLOCK, 0), FIXTURE_BLOCK);
        close(fd);
        assert_true(fixture_is_there(next->backend, next->volume, NULL));
        fixture_detach(next);
        fixture_free(next);
        OK(f->backend->ops->detach(f->backend, f->volume, false, &why));
        assert_false(fixture_is_there(f->backend, f->volume, NULL));
        attach_server_kill(&f->server);
        attach_link_close(&f->link);
    }
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_setup, fixture_teardown)

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        CASE(test_detach_waits_for_the_next_daemon),
        CASE(test_fail_ends_a_detach),
        CASE(test_calls_after_fail),
        CASE(test_the_old_connection_lives),
        CASE(test_a_neighbour_is_spared),
    };
    if (!fixture_begin(argc, argv))
        return 2;
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    fixture_end();
    return rc;
}
