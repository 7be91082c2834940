/* GC of a live volume: what goes, what stays and when, on a memory store and a virtual clock. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>

#include "portalbd/volume/garbage.h"
#include "portalbd/volume/volume.h"
#include "tests/support/pool_fixture.h"

enum { VOLUME_SIZE = 4 * 1024 * 1024, BLOCK = 4096 };

struct world {
    struct pool_fixture f;
    struct volume_key key;
    struct volume *v;
    uint8_t image[VOLUME_SIZE];
    uint8_t found[VOLUME_SIZE];
    uint64_t seed;
    uint32_t live_percent; /* 1: nothing is ever moved */
};

static struct world *world;

static uint32_t next_random(void) {
    world->seed = world->seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(world->seed >> 33);
}

/* --- a volume and its user, for fibers --- */

static void create(void) {
    struct err e;
    struct manifest m = {.number = 1, .size_bytes = VOLUME_SIZE, .block_size = 4096};
    m.closed = true;
    root_init(&m.root, &world->key);
    ok(manifest_put(world->f.store, &world->key, &m, &e), &e);
    manifest_release(&m);
}

static void open_with(bool gc_off) {
    struct err e;
    struct volume_config c = {.env = world->f.env,
                              .store = world->f.store,
                              .key = world->key,
                              .publish_epoch = 1,
                              .journal_size = 4 * 1024 * 1024,
                              .cache_size = 64 * 1024,
                              .segment_size = 64 * 1024,
                              .checkpoint_segments = 8,
                              .runs_max = 2,
                              .gc_live_percent = world->live_percent,
                              .gc_move_bytes = world->live_percent == 1 ? UINT64_MAX : 0,
                              .gc_off = gc_off};
    ok(volume_open(&c, &world->v, &e), &e);
}

struct call {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct call, req)->done);
}

static void call_start(struct call *c, enum bd_op op, unsigned flags, uint64_t off, uint64_t len,
                       uint8_t *buf) {
    *c = (struct call){.req = {.op = op, .flags = flags, .off = off, .len = len, .done = on_done}};
    if (op == BD_READ)
        c->req.read_buf = buf;
    else if (op == BD_WRITE)
        c->req.write_data = buf;
    fiber_done_init(&c->done);
    if (bd_submit(volume_blockdev(world->v), &c->req))
        fiber_done_set(&c->done);
}

static void request(enum bd_op op, unsigned flags, uint64_t off, uint64_t len, uint8_t *buf) {
    struct call c;
    call_start(&c, op, flags, off, len, buf);
    fiber_done_wait_always(world->f.env, &c.done);
    assert_int_equal(c.req.rc, 0);
}

/* Overwrites the whole volume in random order, block by block. */
static void overwrite(void) {
    for (int i = 0; i < VOLUME_SIZE / BLOCK; i++) {
        uint64_t off = (uint64_t)(next_random() % (VOLUME_SIZE / BLOCK)) * BLOCK;
        for (size_t k = 0; k < BLOCK; k++)
            world->image[off + k] = (uint8_t)next_random();
        request(BD_WRITE, i % 64 == 0 ? BD_FUA : 0, off, BLOCK, world->image + off);
    }
    request(BD_FLUSH, 0, 0, 0, NULL);
}

/* Overwrites the whole volume in order: nothing older is needed any more. */
static void fill(void) {
    for (uint64_t off = 0; off < VOLUME_SIZE; off += 65536) {
        for (size_t k = 0; k < 65536; k++)
            world->image[off + k] = (uint8_t)next_random();
        request(BD_WRITE, 0, off, 65536, world->image + off);
    }
    request(BD_FLUSH, 0, 0, 0, NULL);
}

static void check_image(void) {
    request(BD_READ, 0, 0, VOLUME_SIZE, world->found);
    assert_memory_equal(world->found, world->image, VOLUME_SIZE);
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

static void drop(void) {
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(world->v, on_freed, &freed);
    fiber_done_wait_always(world->f.env, &freed);
    world->v = NULL;
}

static void close_it(void) {
    struct err e;
    ok(volume_close(world->v, &e), &e);
    drop();
}

static void checkpoint(void) {
    struct err e;
    ok(volume_checkpoint(world->v, &e), &e);
}

static void collect(void) {
    struct err e;
    ok(volume_collect(world->v, &e), &e);
}

static struct volume_status status(void) {
    struct volume_status s;
    volume_status(world->v, &s);
    return s;
}

static size_t count(const char *part) {
    return pool_fixture_count(&world->f, part);
}

static void put_object(const char *folder, const char *name, const char *body) {
    char key[KEY_MAX];
    key_volume_prefix(key, &world->key);
    size_t len = strlen(key);
    snprintf(key + len, sizeof key - len, "%s%s", folder, name);
    memory_store_replace(world->f.memory, key, view_of_str(body));
}

static struct commit_key commit_key(uint64_t n) {
    struct commit_key k = {0};
    char hash[33];
    name_hash(hash, "s");
    key_snapshot(k.key, hash, n);
    return k;
}

static struct random_id snapshot(uint64_t n) {
    struct err e;
    struct commit_key commit = commit_key(n);
    struct random_id pin;
    struct pin_root root;
    ok(pin_claim_new(world->f.env, world->f.store, &world->key, &commit, &pin, &e), &e);
    ok(pin_cut(world->f.env, world->f.store, &world->key, &pin, &commit, &root, &e), &e);
    pin_root_release(&root);
    return pin;
}

static void release(const struct random_id *pin) {
    struct err e;
    ok(pin_release(world->f.store, &world->key, pin, &e), &e);
}

/* All that the pin names can be read as it was. */
static void check_snapshot(const struct random_id *pin, const uint8_t *image) {
    struct err e;
    struct volume_config c = {.env = world->f.env, .store = world->f.store, .key = world->key};
    struct volume *mine = world->v;
    ok(volume_open_pin(&c, pin, &world->v, &e), &e);
    request(BD_READ, 0, 0, VOLUME_SIZE, world->found);
    assert_memory_equal(world->found, image, VOLUME_SIZE);
    drop();
    world->v = mine;
}

static void rest(uint64_t us) {
    assert_int_equal(fiber_sleep_us(world->f.env, us), 0);
}

/* --- scenarios --- */

/* In the background: space stays bounded, nothing is lost, and then there is rest. */
static void background(void *arg) {
    (void)arg;
    create();
    open_with(false);
    for (int round = 0; round < 12; round++) {
        overwrite();
        rest(3000000);
    }
    checkpoint();
    rest(10000000);
    struct volume_status s = status();
    assert_true(s.gc_objects_deleted > 400);
    assert_int_equal(s.gc_garbage, 0);
    assert_int_equal(s.gc_scrubs, 1);
    assert_true(count("/manifest/") < 40);
    assert_true(count("/map/") <= 2 * s.run_count);
    assert_int_equal(count("/map/") + count("/log/"), s.gc_objects + 1); /* and our fence */
    check_image();
    uint64_t requests = pool_fixture_requests(&world->f);
    check_image(); /* what is not in the cache is read again */
    rest(UINT64_C(3600) * 1000000);
    uint64_t idle = pool_fixture_requests(&world->f) - requests;
    assert_true(idle < 2000); /* reads only: */
    requests = pool_fixture_requests(&world->f);
    rest(UINT64_C(3600) * 1000000);
    assert_int_equal(pool_fixture_requests(&world->f), requests);
    close_it();
    open_with(true);
    check_image();
    close_it();
}

static void pinned(void *arg) {
    (void)arg;
    create();
    open_with(true);
    overwrite();
    checkpoint();
    static uint8_t before[VOLUME_SIZE];
    memcpy(before, world->image, sizeof before);
    struct random_id pin = snapshot(1);
    for (int i = 0; i < 4; i++)
        overwrite();
    checkpoint();
    collect();
    struct volume_status s = status();
    assert_true(s.gc_held > 0);
    assert_true(s.gc_objects_deleted > 0);
    check_snapshot(&pin, before);
    check_image();

    uint64_t requests = pool_fixture_requests(&world->f);
    collect(); /* nothing has changed: a look at the pins, no manifest */
    assert_true(pool_fixture_requests(&world->f) - requests <= 1);
    uint64_t bytes = status().gc_bytes;
    release(&pin);
    collect();
    assert_int_equal(status().gc_held, 0);
    assert_int_equal(status().gc_garbage, 0);
    assert_true(status().gc_bytes + s.gc_held_bytes == bytes);
    check_image();
    close_it();
}

/* The pins of one snapshot go while another's stay: what only the first held goes. */
static void two_pins(void *arg) {
    (void)arg;
    create();
    open_with(true);
    overwrite();
    static uint8_t images[2][VOLUME_SIZE];
    struct random_id pins[2];
    for (int i = 0; i < 2; i++) {
        memcpy(images[i], world->image, VOLUME_SIZE);
        pins[i] = snapshot((uint64_t)i + 1);
        for (int k = 0; k < 3; k++) {
            fill();
            checkpoint();
        }
    }
    checkpoint();
    collect();
    uint64_t held = status().gc_held_bytes;
    release(&pins[0]);
    close_it();
    open_with(true); /* the scrub finds again what was held */
    collect();
    assert_true(status().gc_held_bytes < held * 7 / 10);
    assert_true(status().gc_held_bytes > held * 3 / 10);
    check_snapshot(&pins[1], images[1]);
    check_image();
    close_it();
}

static void claim_blocks(void *arg) {
    (void)arg;
    struct err e;
    create();
    open_with(true);
    struct commit_key commit = commit_key(1);
    struct random_id pin;
    ok(pin_claim_new(world->f.env, world->f.store, &world->key, &commit, &pin, &e), &e);
    for (int i = 0; i < 3; i++)
        overwrite();
    checkpoint();
    collect();
    assert_int_equal(status().gc_objects_deleted, 0);
    assert_true(status().gc_garbage > 0);
    ok(pin_release_claim(world->f.store, &world->key, &pin, &e), &e);
    collect();
    assert_true(status().gc_objects_deleted > 0);
    assert_int_equal(status().gc_garbage, 0);
    check_image();
    close_it();
}

/* What others left behind; and what is none of our business. */
static void scrubbed(void *arg) {
    (void)arg;
    char fence[SEGMENT_FENCE_SIZE + 1];
    memset(fence, 'f', sizeof fence - 1);
    fence[sizeof fence - 1] = '\0';
    create();
    open_with(true);
    overwrite();
    close_it();
    put_object("map/", "00000000000000000000000000000007", "lost part");
    put_object("moved/", "00000000000000000000000000000008", "lost moved segment");
    put_object("log/", "0000000000000003", "zombie in a gap");
    put_object("log/", "0000000000000004", fence);
    put_object("log/", "notes.txt", "not ours");
    put_object("", "notes.txt", "not ours");
    open_with(false);
    rest(10000000); /* nobody writes anything */
    assert_int_equal(status().gc_scrubs, 1);
    assert_int_equal(count("00000000000000000000000000000007"), 0);
    assert_int_equal(count("00000000000000000000000000000008"), 0);
    assert_int_equal(count("log/0000000000000003"), 0);
    assert_int_equal(count("log/0000000000000004"), 1);
    assert_int_equal(count("notes.txt"), 2);
    assert_int_equal(count("/manifest/"), 2);
    uint64_t requests = pool_fixture_requests(&world->f);
    rest(UINT64_C(3600) * 1000000);
    assert_int_equal(pool_fixture_requests(&world->f), requests);
    check_image();
    close_it();
}

/* More than one manifest may condemn, and more than one request may delete. */
static void long_list(void *arg) {
    (void)arg;
    create();
    open_with(true);
    overwrite();
    close_it();
    for (uint32_t i = 0; i < ROOT_LIST_MAX + 700; i++) {
        char name[40];
        snprintf(name, sizeof name, "%032x", i + 1);
        put_object("map/", name, "lost");
    }
    open_with(true);
    collect();
    assert_true(status().gc_objects_deleted >= ROOT_LIST_MAX + 700);
    assert_true(count("/map/") < 20);
    check_image();
    close_it();
}

/* Somebody else has the volume: nothing is deleted. */
static void fenced(void *arg) {
    (void)arg;
    struct err e;
    create();
    open_with(true);
    overwrite();
    overwrite();
    checkpoint();
    struct takeover t;
    ok(volume_takeover(world->f.env, world->f.store, &world->key, 1, NULL, false, &t, &e), &e);
    takeover_release(&t);
    size_t objects = count("/log/") + count("/map/");
    assert_int_equal(volume_collect(world->v, &e), -ERR_FENCED);
    assert_int_equal(count("/log/") + count("/map/"), objects);
    assert_int_equal(status().health, VOLUME_HEALTH_FENCED);
    drop();
}

/* The manifest is found in a hole that a newer writer's GC has left: trace 1 of the protocol. */
static void fenced_in_a_hole(void *arg) {
    (void)arg;
    struct err e;
    create();
    open_with(true);
    overwrite();
    overwrite();
    checkpoint();
    uint64_t ours = status().manifest_number;
    struct manifest m;
    ok(manifest_newest(world->f.store, &world->key, &m, &e), &e);
    m.number = ours + 5;
    m.epoch++;
    m.nonce.bytes[0]++;
    ok(manifest_put(world->f.store, &world->key, &m, &e), &e);
    manifest_release(&m);
    size_t objects = count("/log/") + count("/map/");
    assert_int_equal(volume_collect(world->v, &e), -ERR_FENCED);
    assert_int_equal(count("/log/") + count("/map/"), objects);
    drop();
}

struct collector {
    int rc;
    struct err err;
    struct fiber_done done;
};

static void run_collector(void *arg) {
    struct collector *c = arg;
    c->rc = volume_collect(world->v, &c->err);
    fiber_done_set(&c->done);
}

/* Another writer comes while request n of a collection is under way, and a write of ours finds out
 * before the collection does. False: it took fewer requests. */
static bool overtake_at(uint64_t n) {
    static struct collector c;
    struct fault_rule slow = {
        .kind = FAULT_DELAY, .nth = n, .delay_us_min = 1000000, .delay_us_max = 1000000};
    struct takeover t;
    struct err e;
    struct call write, flush;
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&world->key, ID_VOLUME, hash, (uint32_t)n);
    create();
    open_with(true);
    overwrite();
    overwrite();
    checkpoint();
    objstore_fault_add(world->f.faults, &slow);
    fiber_done_init(&c.done);
    fiber_start(world->f.env, run_collector, &c);
    fiber_sleep_us(world->f.env, 500000);
    objstore_fault_clear(world->f.faults);
    bool under_way = !c.done.done;
    if (under_way) {
        ok(volume_takeover(world->f.env, world->f.store, &world->key, 1, NULL, false, &t, &e), &e);
        takeover_release(&t);
        call_start(&write, BD_WRITE, 0, 0, BLOCK, world->image);
        call_start(&flush, BD_FLUSH, 0, 0, 0, NULL);
        fiber_done_wait_always(world->f.env, &write.done);
        fiber_done_wait_always(world->f.env, &flush.done);
        fiber_done_wait_always(world->f.env, &c.done);
        if (c.rc != -ERR_FENCED)
            fail_msg("request %u: %s: %s", (unsigned)n, err_code_name(c.rc), c.err.text);
        assert_int_equal(c.err.code, -ERR_FENCED);
    }
    drop();
    return under_way;
}

static void overtaken(void *arg) {
    (void)arg;
    uint64_t n = 1;
    while (overtake_at(n))
        assert_true(++n < 1000);
    assert_true(n > 5);
}

/* What is mostly dead is moved; space comes down to what is live, and a bit. */
static void moved(void *arg) {
    (void)arg;
    world->live_percent = 50;
    create();
    open_with(true);
    for (int i = 0; i < 6; i++)
        overwrite();
    checkpoint();
    collect();
    struct volume_status s = status();
    assert_true(s.gc_moves > 0);
    assert_true(s.gc_victims > 10);
    assert_int_equal(s.gc_garbage, 0);
    assert_true(s.gc_bytes < 2 * VOLUME_SIZE); /* 4 times as much without moving */
    assert_true(count("/moved/") > 0);
    check_image();
    close_it();
    open_with(true);
    check_image();
    for (int i = 0; i < 3; i++) { /* moved objects are moved again */
        overwrite();
        checkpoint();
        collect();
        check_image();
    }
    drop(); /* dies */
    open_with(true);
    check_image();
    struct random_id pin = snapshot(1);
    static uint8_t before[VOLUME_SIZE];
    memcpy(before, world->image, sizeof before);
    for (int i = 0; i < 3; i++) {
        overwrite();
        checkpoint();
        collect();
    }
    check_snapshot(&pin, before);
    check_image();
    release(&pin);
    collect();
    assert_true(status().gc_bytes < 2 * VOLUME_SIZE);
    check_image();
    close_it();
}

/* Flush-sized segments become few objects, from the cache where it has them. */
static void repacked(void *arg) {
    (void)arg;
    create();
    struct volume_config c = {.env = world->f.env,
                              .store = world->f.store,
                              .key = world->key,
                              .publish_epoch = 1,
                              .journal_size = 4 * 1024 * 1024,
                              .cache_size = 2 * VOLUME_SIZE,
                              .gc_live_percent = 50,
                              .gc_move_bytes = 1024 * 1024,
                              .gc_off = true};
    struct err e;
    ok(volume_open(&c, &world->v, &e), &e);
    for (int i = 0; i < VOLUME_SIZE / BLOCK; i++) {
        uint64_t off = (uint64_t)i * BLOCK;
        for (size_t k = 0; k < BLOCK; k++)
            world->image[off + k] = (uint8_t)next_random();
        request(BD_WRITE, BD_FUA, off, BLOCK, world->image + off);
    }
    checkpoint();
    assert_true(count("/log/") > VOLUME_SIZE / BLOCK);
    struct fault_rule rule = {
        .kind = FAULT_FAIL, .verbs = 1u << OBJ_GET, .key_part = "/log/", .code = -ERR_CORRUPT};
    objstore_fault_add(world->f.delays, &rule); /* nobody reads a segment */
    collect();
    objstore_fault_clear(world->f.delays);
    assert_int_equal(count("/log/"), 1); /* our fence */
    assert_true(count("/moved/") <= 2);
    check_image();
    drop();
    open_with(true); /* without a cache */
    check_image();
    for (int i = 0; i < 300; i++) {
        uint64_t off = (uint64_t)i * 3 * BLOCK;
        for (size_t k = 0; k < BLOCK; k++)
            world->image[off + k] = (uint8_t)next_random();
        request(BD_WRITE, BD_FUA, off, BLOCK, world->image + off);
    }
    close_it();
    c.cache_size = 4096; /* from the store */
    ok(volume_open(&c, &world->v, &e), &e);
    collect();
    assert_true(count("/log/") < 10);
    check_image();
    close_it();
}

/* A write that is not stored yet must not come back with what GC moves: a crash may lose it. */
static void unstored_write(void *arg) {
    (void)arg;
    create();
    struct volume_config c = {.env = world->f.env,
                              .store = world->f.store,
                              .key = world->key,
                              .publish_epoch = 1,
                              .journal_size = 4 * 1024 * 1024,
                              .cache_size = 2 * VOLUME_SIZE,
                              .gc_move_bytes = 4096,
                              .gc_off = true};
    struct err e;
    ok(volume_open(&c, &world->v, &e), &e);
    for (int i = 0; i < 64; i++) {
        memset(world->image + (size_t)i * BLOCK, i, BLOCK);
        request(BD_WRITE, BD_FUA, (uint64_t)i * BLOCK, BLOCK, world->image + (size_t)i * BLOCK);
    }
    checkpoint();
    struct fault_rule hang = {.kind = FAULT_HANG, .verbs = 1u << OBJ_PUT, .key_part = "/log/"};
    objstore_fault_add(world->f.delays, &hang);
    static uint8_t lost[BLOCK];
    memset(lost, 0xee, sizeof lost);
    for (int i = 0; i < 64; i += 2)
        request(BD_WRITE, 0, (uint64_t)i * BLOCK, BLOCK, lost);
    collect();
    assert_true(status().gc_moves > 0);
    drop(); /* dies: the writes above are gone */
    objstore_fault_clear(world->f.delays);
    open_with(true);
    check_image();
    close_it();
}

/* A read that looked things up keeps them until it has them. */
static void slow_read(void *arg) {
    (void)arg;
    create();
    open_with(true);
    overwrite();
    checkpoint();
    static uint8_t before[VOLUME_SIZE];
    memcpy(before, world->image, sizeof before);
    struct fault_rule rule = {.kind = FAULT_DELAY,
                              .verbs = 1u << OBJ_GET,
                              .key_part = "/log/",
                              .delay_us_min = 60000000,
                              .delay_us_max = 60000000};
    objstore_fault_add(world->f.delays, &rule);
    struct call c;
    call_start(&c, BD_READ, 0, 0, VOLUME_SIZE, world->found);
    rest(1000);
    objstore_fault_clear(world->f.delays);
    assert_false(c.done.done);
    for (int i = 0; i < 3; i++)
        overwrite();
    checkpoint();
    collect();
    assert_true(c.done.done);
    assert_int_equal(c.req.rc, 0);
    assert_true(status().gc_objects_deleted > 0);
    check_image();
    close_it();
}

/* --- frame --- */

static int setup(void **state) {
    (void)state;
    world = NEW(struct world);
    pool_fixture_init(&world->f, 3);
    world->seed = 7;
    world->live_percent = 1;
    char hash[33];
    name_hash(hash, "v");
    id_format_key(&world->key, ID_VOLUME, hash, 1);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    pool_fixture_release(&world->f);
    free(world);
    return 0;
}

#define SCENARIO(name)                                                                             \
    static void test_##name(void **state) {                                                        \
        (void)state;                                                                               \
        pool_fixture_run(&world->f, name, NULL);                                                   \
    }
SCENARIO(background)
SCENARIO(pinned)
SCENARIO(two_pins)
SCENARIO(claim_blocks)
SCENARIO(scrubbed)
SCENARIO(long_list)
SCENARIO(fenced)
SCENARIO(fenced_in_a_hole)
SCENARIO(overtaken)
SCENARIO(moved)
SCENARIO(repacked)
SCENARIO(unstored_write)
SCENARIO(slow_read)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_background, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pinned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_two_pins, setup, teardown),
        cmocka_unit_test_setup_teardown(test_claim_blocks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_scrubbed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fenced, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fenced_in_a_hole, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overtaken, setup, teardown),
        cmocka_unit_test_setup_teardown(test_moved, setup, teardown),
        cmocka_unit_test_setup_teardown(test_repacked, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unstored_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_read, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
