/* A journal that outlives its daemon: what was acknowledged is there after any death of the
 * process, also while it opened, and never where another writer came between. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/fiber.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/volume/manifest_store.h"
#include "portalbd/volume/volume.h"
#include "tests/support/ram_journal.h"
#include "tests/support/virtual_env.h"

enum { VOLUME_SIZE = 4 * 1024 * 1024, JOURNAL_SIZE = 4 * 1024 * 1024, BLOCK = 4096 };
enum { BLOCKS = VOLUME_SIZE / BLOCK };

struct world {
    struct virtual_env venv;
    struct env *env;
    struct memory_store *bucket;
    struct objstore *store;
    struct volume_key key;
    struct ram_journal journal;
    struct volume *v;
    struct err why; /* of the last open that failed */
    bool resume;
    uint64_t segment_size;
    unsigned owned;            /* calls of on_owned */
    uint32_t expected[BLOCKS]; /* number of the write that each block has */
    uint32_t next;             /* number of the next write */
    bool finished;
};

/* --- helpers, all of them for fibers --- */

static void create_volume(struct world *w) {
    struct manifest m = {.number = 1, .size_bytes = VOLUME_SIZE, .block_size = 4096};
    env_random(w->env, m.nonce.bytes, sizeof m.nonce.bytes);
    root_init(&m.root, &w->key);
    m.root.next_seq = 1;
    struct err e = {0};
    assert_int_equal(manifest_put(w->store, &w->key, &m, &e), 0);
    manifest_release(&m);
}

static void on_owned(void *arg) {
    ((struct world *)arg)->owned++;
}

static int try_open(struct world *w, struct journal_memory *journal) {
    struct volume_config c = {
        .env = w->env,
        .store = w->store,
        .key = w->key,
        .publish_epoch = 1,
        .journal = journal,
        .journal_size = JOURNAL_SIZE,
        .resume = w->resume,
        .cache_size = 64 * 1024,
        .segment_size = w->segment_size,
        .on_owned = on_owned,
        .arg = w,
    };
    w->why = (struct err){0};
    return volume_open(&c, &w->v, &w->why);
}

static void open_volume(struct world *w) {
    if (try_open(w, &w->journal.memory) < 0)
        fail_msg("%s", w->why.text);
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void free_volume(struct world *w) {
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(w->v, on_freed, &freed);
    fiber_done_wait_always(w->env, &freed);
    w->v = NULL;
}

/* kill -9. */
static void kill_daemon(struct world *w) {
    ram_journal_freeze(&w->journal);
    if (w->v)
        free_volume(w);
    ram_journal_thaw(&w->journal);
}

static void close_volume(struct world *w) {
    struct err e = {0};
    if (volume_close(w->v, &e) < 0)
        fail_msg("%s", e.text);
    struct volume_status s;
    volume_status(w->v, &s);
    assert_int_equal(s.journal_used, 0);
    free_volume(w);
}

struct call {
    struct bd_request req;
    struct fiber_done done;
    uint32_t data[BLOCK / 4];
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct call, req)->done);
}

static bool submit_write(struct world *w, struct call *c, uint32_t block) {
    *c = (struct call){.req = {.op = BD_WRITE,
                               .off = (uint64_t)block * BLOCK,
                               .len = BLOCK,
                               .write_data = (const uint8_t *)c->data,
                               .done = on_done}};
    for (size_t i = 0; i < ARRAY_LEN(c->data); i++)
        c->data[i] = w->next + (uint32_t)i * 65536;
    w->expected[block] = w->next++;
    fiber_done_init(&c->done);
    return bd_submit(volume_blockdev(w->v), &c->req);
}

/* Writes that are acknowledged in this turn: nothing of them is on its way yet. */
static void write_some(struct world *w, unsigned count) {
    static struct call c;
    for (unsigned i = 0; i < count; i++) {
        assert_true(submit_write(w, &c, w->next * 7919 % BLOCKS));
        assert_int_equal(c.req.rc, 0);
    }
}

static uint32_t read_block(struct world *w, uint32_t block) {
    static struct call c;
    c = (struct call){.req = {.op = BD_READ,
                              .off = (uint64_t)block * BLOCK,
                              .len = BLOCK,
                              .read_buf = (uint8_t *)c.data,
                              .done = on_done}};
    fiber_done_init(&c.done);
    if (!bd_submit(volume_blockdev(w->v), &c.req))
        fiber_done_wait_always(w->env, &c.done);
    assert_int_equal(c.req.rc, 0);
    for (size_t i = 1; c.data[0] && i < ARRAY_LEN(c.data); i++)
        assert_int_equal(c.data[i], c.data[0] + i * 65536);
    return c.data[0];
}

static void check_all(struct world *w) {
    for (uint32_t b = 0; b < BLOCKS; b++)
        assert_int_equal(read_block(w, b), w->expected[b]);
}

static uint64_t replayed(struct world *w) {
    struct volume_status s;
    volume_status(w->v, &s);
    assert_true(s.journal_outlives);
    return s.replayed_writes;
}

/* --- scenarios --- */

static void nothing_is_lost(void *arg) {
    struct world *w = arg;
    create_volume(w);
    for (unsigned round = 0; round < 40; round++) {
        open_volume(w);
        w->resume = true;
        check_all(w);
        write_some(w, 1 + round * 13 % 90);
        struct err e = {0};
        if (round % 3 == 1)
            assert_int_equal(volume_flush(w->v, &e), 0);
        if (round % 5 == 2)
            assert_int_equal(volume_checkpoint(w->v, &e), 0);
        write_some(w, 1 + round * 17 % 50);
        kill_daemon(w);
    }
    open_volume(w);
    assert_true(replayed(w) > 0);
    check_all(w);
    assert_int_equal(w->journal.set_asides, 0);
    close_volume(w);
    open_volume(w); /* died before it deleted the file */
    assert_int_equal(replayed(w), 0);
    check_all(w);
    write_some(w, 5);
    kill_daemon(w);
    open_volume(w);
    assert_int_equal(replayed(w), 5);
    check_all(w);
    close_volume(w);
    w->finished = true;
}

/* More segments than the window holds, and a memtable that is checkpointed meanwhile. */
static void replay_of_many_segments(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 800);
    kill_daemon(w);
    w->segment_size = BLOCK;
    open_volume(w);
    assert_int_equal(replayed(w), 800);
    struct volume_status s;
    volume_status(w->v, &s);
    assert_true(s.frontier > 700);
    check_all(w);
    kill_daemon(w);
    open_volume(w);
    assert_true(replayed(w) < 100); /* the store has the others */
    check_all(w);
    close_volume(w);
    w->finished = true;
}

struct opener {
    struct world *w;
    struct fiber_done done;
};

static void open_fiber(void *arg) {
    struct opener *o = arg;
    try_open(o->w, &o->w->journal.memory);
    fiber_done_set(&o->done);
}

/* Opens, and kills it after so many turns. True when it had come to its end. */
static bool open_and_kill(struct world *w, unsigned turns) {
    struct opener o = {.w = w};
    fiber_done_init(&o.done);
    struct fiber *f = fiber_start(w->env, open_fiber, &o);
    for (unsigned i = 0; i < turns && !o.done.done; i++)
        assert_int_equal(fiber_yield(w->env), 0);
    bool ended = o.done.done;
    ram_journal_freeze(&w->journal);
    if (!ended)
        fiber_cancel(f);
    fiber_done_wait_always(w->env, &o.done);
    kill_daemon(w);
    return ended;
}

/* Killed between every two steps of an open, twice in a row, with a resume or without. */
static void killed_while_it_opens(void *arg) {
    struct world *w = arg;
    create_volume(w);
    w->segment_size = 4 * BLOCK;
    open_volume(w);
    for (unsigned turns = 0, ended = 0; ended < 10; turns++) {
        write_some(w, 30);
        kill_daemon(w);
        w->resume = turns % 2;
        open_and_kill(w, turns);
        ended += open_and_kill(w, turns / 2 + turns % 7);
        open_volume(w);
        check_all(w);
    }
    assert_int_equal(w->journal.set_asides, 0);
    close_volume(w);
    w->finished = true;
}

/* Another node has the volume for a moment. */
static void let_another_in(struct world *w) {
    struct volume *mine = w->v;
    bool resume = w->resume;
    w->resume = false;
    assert_int_equal(try_open(w, NULL), 0);
    close_volume(w);
    w->v = mine;
    w->resume = resume;
}

static void another_writer_came(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 20);
    kill_daemon(w);
    memset(w->expected, 0, sizeof w->expected);
    let_another_in(w);
    unsigned owned = w->owned;
    w->resume = true;
    assert_int_equal(try_open(w, &w->journal.memory), -ERR_FENCED);
    assert_int_equal(w->owned, owned);
    assert_int_equal(w->journal.set_asides, 0); /* a resumed one touches nothing */
    w->resume = false;
    open_volume(w);
    assert_int_equal(w->journal.set_asides, 1);
    assert_int_equal(w->journal.writes_lost, 20);
    assert_true(w->journal.bytes_lost > 20 * BLOCK);
    assert_int_equal(replayed(w), 0);
    check_all(w);
    write_some(w, 3);
    close_volume(w);
    let_another_in(w);
    open_volume(w); /* an empty one is not worth keeping */
    assert_int_equal(w->journal.set_asides, 1);
    check_all(w);
    close_volume(w);
    w->finished = true;
}

static void resume_without_its_journal(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 20);
    kill_daemon(w);
    w->resume = true;
    w->journal.memory.base[20] ^= 1; /* in the header */
    assert_int_equal(try_open(w, &w->journal.memory), -ERR_FENCED);
    w->journal.memory.base[20] ^= 1;
    w->journal.memory.base[4096 + 48 + BLOCK] ^= 1; /* the second record */
    assert_int_equal(try_open(w, &w->journal.memory), -ERR_FENCED);
    w->journal.memory.base[4096 + 48 + BLOCK] ^= 1;
    open_volume(w);
    check_all(w);
    kill_daemon(w);
    ram_journal_reset(&w->journal);
    assert_int_equal(try_open(w, &w->journal.memory), -ERR_FENCED);
    w->finished = true;
}

/* A daemon that was told to end while its device stays: closed, and the journal stays. */
static void resume_after_a_clean_close(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    for (unsigned turn = 0; turn < 12; turn++) {
        write_some(w, 20);
        close_volume(w);
        w->resume = true;
        open_and_kill(w, turn);
        open_and_kill(w, turn / 2);
        open_volume(w);
        check_all(w);
        write_some(w, 5);
        kill_daemon(w);
        open_volume(w);
        assert_int_equal(replayed(w), 5);
        check_all(w);
    }
    close_volume(w);
    let_another_in(w); /* under the same publish epoch, and it closed, too */
    assert_int_equal(try_open(w, &w->journal.memory), -ERR_FENCED);
    assert_int_equal(w->journal.set_asides, 0);
    w->finished = true;
}

static void damage_costs_the_end_only(void *arg) {
    struct world *w = arg;
    create_volume(w);
    open_volume(w);
    write_some(w, 20);
    kill_daemon(w);
    w->journal.memory.base[4096 + 12 * (48 + BLOCK) + 8] ^= 1; /* the number of write 13 */
    open_volume(w);
    assert_int_equal(replayed(w), 12);
    assert_int_equal(w->journal.set_asides, 1);
    for (uint32_t b = 0; b < BLOCKS; b++)
        w->expected[b] = w->expected[b] > 12 ? 0 : w->expected[b];
    check_all(w);
    write_some(w, 4);
    kill_daemon(w);
    w->resume = true;
    open_volume(w);
    check_all(w);
    kill_daemon(w);
    w->resume = false;
    w->journal.memory.base[0] ^= 1; /* the whole journal is of no use */
    open_volume(w);
    assert_int_equal(w->journal.set_asides, 2);
    close_volume(w);
    w->finished = true;
}

static void no_memory_is_a_pause(void *arg) {
    struct world *w = arg;
    create_volume(w);
    w->journal.full = true;
    assert_int_equal(try_open(w, &w->journal.memory), -ERR_BUSY);
    w->journal.full = false;
    open_volume(w);
    w->journal.full = true;
    struct call *c = NEW(struct call);
    assert_false(submit_write(w, c, 3));
    assert_int_equal(fiber_sleep_us(w->env, 10 * 1000 * 1000), 0);
    assert_false(c->done.done);
    struct volume_status s;
    volume_status(w->v, &s);
    assert_true(s.journal_starved);
    w->journal.full = false;
    assert_int_equal(fiber_done_wait(w->env, &c->done), 0);
    assert_int_equal(c->req.rc, 0);
    close_volume(w);
    ram_journal_reset(&w->journal);
    open_volume(w);
    w->journal.refuse_next = 5; /* a close waits for it, too */
    assert_false(submit_write(w, c, 4));
    close_volume(w);
    assert_true(c->done.done);
    assert_int_equal(c->req.rc, 0);
    open_volume(w);
    check_all(w);
    close_volume(w);
    free(c);
    w->finished = true;
}

/* --- set-up --- */

static void run(void (*scenario)(void *arg)) {
    struct world *w = NEW(struct world);
    w->next = 1;
    w->segment_size = 256 * 1024;
    virtual_env_init(&w->venv, 1);
    w->env = &w->venv.env;
    w->bucket = memory_store_new();
    w->store =
        objstore_retry_new(objstore_memory_open(w->env, w->bucket), &(struct retry_options){0});
    id_format_key(&w->key, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    ram_journal_init(&w->journal, JOURNAL_SIZE);
    virtual_env_call(&w->venv, scenario, w);
    assert_true(w->finished);
    ram_journal_release(&w->journal);
    objstore_close(w->store);
    memory_store_free(w->bucket);
    virtual_env_release(&w->venv);
    free(w);
}

#define SCENARIO(name)                                                                             \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        run(name);                                                                                 \
    }
SCENARIO(nothing_is_lost)
SCENARIO(replay_of_many_segments)
SCENARIO(killed_while_it_opens)
SCENARIO(another_writer_came)
SCENARIO(resume_without_its_journal)
SCENARIO(resume_after_a_clean_close)
SCENARIO(damage_costs_the_end_only)
SCENARIO(no_memory_is_a_pause)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_is_lost),
        cmocka_unit_test(test_replay_of_many_segments),
        cmocka_unit_test(test_killed_while_it_opens),
        cmocka_unit_test(test_another_writer_came),
        cmocka_unit_test(test_resume_without_its_journal),
        cmocka_unit_test(test_resume_after_a_clean_close),
        cmocka_unit_test(test_damage_costs_the_end_only),
        cmocka_unit_test(test_no_memory_is_a_pause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
