/* One suite for every object store and every stack of layers: what objstore.h promises.
 *
 * With PORTALBD_TEST_S3=s3://bucket/prefix (and the usual AWS_* variables) it runs against that
 * store too. Every test has keys of its own, and deletes them. */
#include "tests/support/test.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/loop.h"
#include "portalbd/objstore/fault.h"
#include "portalbd/objstore/file.h"
#include "portalbd/objstore/limit.h"
#include "portalbd/objstore/memory.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "portalbd/objstore/retry.h"
#include "portalbd/objstore/s3.h"
#include "portalbd/objstore/stats.h"
#include "portalbd/objstore/url.h"
#include "tests/support/temp.h"

struct fixture;

struct backend {
    const char *name;
    struct objstore *(*open)(struct fixture *f);
    bool settles; /* a retry layer is on top */
};

struct fixture {
    const struct backend *backend;
    struct loop *loop;
    struct env *env;
    struct objstore *s;
    char *folder;    /* owned; of file stores */
    char prefix[64]; /* of the test's keys, with a slash at the end */
    void (*body)(struct fixture *f);
    bool ran;
};

/* --- backends --- */

static struct objstore *open_memory(struct fixture *f) {
    return objstore_memory_new(f->env);
}

static struct objstore *open_file(struct fixture *f) {
    return objstore_file_open(f->env, f->folder);
}

static struct objstore *with_layers(struct objstore *base) {
    struct limit_options limit = {.requests_max = 6, .body_bytes_max = 1024 * 1024};
    return objstore_retry_new(objstore_stats_new(objstore_limit_new(base, &limit), NULL, NULL),
                              NULL);
}

static struct objstore *open_memory_layers(struct fixture *f) {
    return with_layers(objstore_memory_new(f->env));
}

static struct objstore *open_file_layers(struct fixture *f) {
    return with_layers(objstore_file_open(f->env, f->folder));
}

/* A store that often fails, or carries out and does not tell, and is slow in no order. */
static struct objstore *open_bad_memory(struct fixture *f) {
    struct objstore *bad = objstore_fault_new(objstore_memory_new(f->env));
    objstore_fault_add(bad, &(struct fault_rule){.kind = FAULT_FAIL, .chance = 200000});
    objstore_fault_add(bad, &(struct fault_rule){.kind = FAULT_LOSE, .chance = 200000});
    objstore_fault_add(
        bad, &(struct fault_rule){.kind = FAULT_DELAY, .chance = 300000, .delay_us_max = 2000});
    objstore_fault_add(
        bad,
        &(struct fault_rule){.kind = FAULT_DELAY_ANSWER, .chance = 500000, .delay_us_max = 2000});
    return objstore_retry_new(bad,
                              &(struct retry_options){.pause_us_min = 100, .pause_us_max = 5000});
}

static const char *s3_url(void) {
    return getenv("PORTALBD_TEST_S3");
}

/* The client itself, without a layer. */
static struct objstore *open_s3(struct fixture *f) {
    struct objstore_url url;
    struct err e;
    struct s3_credentials_source source;
    const char *endpoint = getenv("AWS_ENDPOINT_URL");
    CHECK(objstore_url_parse(s3_url(), &url, &e) == 0);
    CHECK(s3_credentials_source_init(&source, NULL, NULL, NULL, "us-east-1", &e) == 0);
    return objstore_s3_open(
        f->env,
        &(struct s3_config){.endpoint = endpoint ? endpoint : "https://s3.us-east-1.amazonaws.com",
                            .path_style = endpoint != NULL,
                            .bucket = url.bucket,
                            .prefix = url.prefix,
                            .region = "us-east-1",
                            .source = &source});
}

/* Without hedging: a second copy may come late, and what is deleted here must stay away. */
static struct objstore *open_s3_layers(struct fixture *f) {
    struct objstore *s;
    struct err e;
    struct objstore_config config = {.url = s3_url(), .no_hedging = true};
    CHECK(objstore_open(f->loop, &config, &s, &e) == 0);
    return s;
}

#define BACKENDS_MAX 8
static struct backend backends[BACKENDS_MAX] = {
    {"memory", open_memory, false},
    {"file", open_file, false},
    {"retry(stats(limit(memory)))", open_memory_layers, true},
    {"retry(stats(limit(file)))", open_file_layers, true},
    {"retry(fault(memory))", open_bad_memory, true},
};
static size_t backend_count = 5;

/* --- helpers, in fibers --- */

/* Keys are made from the test's prefix; valid until the test ends. */
static const char *key(struct fixture *f, const char *name) {
    static char keys[4096][OBJ_KEY_MAX + 1];
    static unsigned next;
    char *k = keys[next++ % ARRAY_LEN(keys)];
    snprintf(k, sizeof keys[0], "%s%s", f->prefix, name);
    return k;
}

static const char *numbered(struct fixture *f, const char *name, unsigned n) {
    char text[64];
    snprintf(text, sizeof text, "%s%05u", name, n);
    return key(f, text);
}

/* A bare client passes on what a busy server answers now and then: versitygw a 409 when the folder
 * of the key goes with its last object in that moment. */
static int put(struct fixture *f, const char *k, const char *body) {
    struct err e;
    int rc;
    do
        rc = objstore_put(f->s, k, view_of_str(body), NULL, &e);
    while (rc == -ERR_TRANSIENT && !f->backend->settles);
    return rc;
}

static void assert_body(struct fixture *f, const char *k, const char *body) {
    CLEANUP_BUF struct buf b = {0};
    struct err e = {0};
    int rc = objstore_get(f->s, k, 0, &b, &e);
    if (rc < 0)
        fail_msg("get %s: %s", k, e.text);
    assert_true(view_equal(buf_view(&b), view_of_str(body)));
}

static int get_code(struct fixture *f, const char *k) {
    CLEANUP_BUF struct buf b = {0};
    struct err e;
    return objstore_get(f->s, k, 0, &b, &e);
}

static void assert_range(struct fixture *f, const char *k, uint64_t off, size_t len,
                         const char *body) {
    CLEANUP_BUF struct buf b = {0};
    struct err e = {0};
    assert_int_equal(objstore_get_range(f->s, k, off, len, &b, &e), 0);
    assert_true(view_equal(buf_view(&b), view_of_str(body)));
}

static void assert_suffix(struct fixture *f, const char *k, size_t len, const char *body,
                          uint64_t size) {
    CLEANUP_BUF struct buf b = {0};
    uint64_t object_size = UINT64_MAX;
    struct err e = {0};
    assert_int_equal(objstore_get_suffix(f->s, k, len, &b, &object_size, &e), 0);
    assert_true(view_equal(buf_view(&b), view_of_str(body)));
    assert_int_equal(object_size, size);
}

/* Deletes all keys of the test; how many there were. */
static size_t delete_all(struct fixture *f) {
    struct obj_list list = {0};
    struct err e = {0};
    assert_int_equal(objstore_list(f->s, f->prefix, NULL, 100000, &list, &e), 0);
    size_t count = list.count;
    const char **keys = xcalloc(count, sizeof keys[0]);
    for (size_t i = 0; i < count; i++)
        keys[i] = list.entries[i].key;
    assert_int_equal(objstore_delete(f->s, keys, count, &e), 0);
    free(keys);
    obj_list_release(&list);
    return count;
}

/* --- tests --- */

static void absent(struct fixture *f) {
    CLEANUP_BUF struct buf b = {0};
    struct obj_list list = {0};
    struct err e = {0};
    const char *k = key(f, "not/there");
    assert_int_equal(objstore_get(f->s, k, 100, &b, &e), -ERR_NOT_FOUND);
    assert_non_null(strstr(e.text, k));
    assert_int_equal(objstore_get_range(f->s, k, 5, 5, &b, &e), -ERR_NOT_FOUND);
    assert_int_equal(objstore_get_suffix(f->s, k, 5, &b, NULL, &e), -ERR_NOT_FOUND);
    assert_int_equal(objstore_list(f->s, f->prefix, NULL, 10, &list, &e), 0);
    assert_int_equal(list.count, 0);
    assert_false(list.more);
    obj_list_release(&list);
    assert_int_equal(objstore_delete_one(f->s, k, &e), 0);
}

static void put_and_get(struct fixture *f) {
    const char *k = key(f, "a/b/c");
    assert_int_equal(put(f, k, "hello"), 0);
    assert_body(f, k, "hello");
    assert_int_equal(get_code(f, key(f, "a/b")), -ERR_NOT_FOUND);
    assert_int_equal(get_code(f, key(f, "a/b/c1")), -ERR_NOT_FOUND);
}

static void put_if_absent(struct fixture *f) {
    const char *k = key(f, "once");
    CLEANUP_BUF struct buf existing = {0};
    struct err e = {0};
    assert_int_equal(put(f, k, "first"), 0);
    assert_int_equal(objstore_put(f->s, k, view_of_str("second"), &existing, &e), -ERR_EXISTS);
    if (f->backend->settles)
        assert_true(view_equal(buf_view(&existing), view_of_str("first")));
    assert_body(f, k, "first");
    assert_int_equal(objstore_delete_one(f->s, k, &e), 0);
    assert_int_equal(get_code(f, k), -ERR_NOT_FOUND);
    assert_int_equal(put(f, k, "third"), 0);
    assert_body(f, k, "third");
}

enum { RACERS = 32, RACES = 8 };

struct racer {
    struct fixture *f;
    const char *key;
    unsigned number;
    int rc;
};

static void race(void *arg) {
    struct racer *r = arg;
    char body[64];
    snprintf(body, sizeof body, "racer %u of %u, with a nonce", r->number, RACERS);
    do
        r->rc = put(r->f, r->key, body);
    while (r->rc == -ERR_TRANSIENT); /* 409 of a store without a retry layer */
}

static void one_winner(struct fixture *f) {
    for (unsigned round = 0; round < RACES; round++) {
        struct racer racers[RACERS];
        struct fiber_group g;
        fiber_group_init(&g, f->env);
        for (unsigned i = 0; i < RACERS; i++) {
            racers[i] = (struct racer){.f = f, .key = numbered(f, "race", round), .number = i};
            fiber_group_start(&g, race, &racers[i]);
        }
        assert_int_equal(fiber_group_wait(&g), 0);
        unsigned winners = 0, winner = 0;
        for (unsigned i = 0; i < RACERS; i++) {
            assert_true(racers[i].rc == 0 || racers[i].rc == -ERR_EXISTS);
            if (racers[i].rc == 0) {
                winners++;
                winner = i;
            }
        }
        assert_int_equal(winners, 1);
        char body[64];
        snprintf(body, sizeof body, "racer %u of %u, with a nonce", winner, RACERS);
        assert_body(f, racers[0].key, body);
    }
}

static void ranges(struct fixture *f) {
    const char *k = key(f, "digits");
    CLEANUP_BUF struct buf b = {0};
    struct err e = {0};
    assert_int_equal(put(f, k, "0123456789"), 0);
    assert_range(f, k, 0, 10, "0123456789");
    assert_range(f, k, 0, 1, "0");
    assert_range(f, k, 9, 1, "9");
    assert_range(f, k, 3, 4, "3456");
    assert_range(f, k, 8, 100, "89");
    assert_range(f, k, 0, 100, "0123456789");
    assert_suffix(f, k, 1, "9", 10);
    assert_suffix(f, k, 10, "0123456789", 10);
    assert_suffix(f, k, 4, "6789", 10);
    assert_suffix(f, k, 1000, "0123456789", 10);
    assert_int_equal(objstore_get_range(f->s, k, 10, 1, &b, &e), -ERR_CORRUPT);
    assert_int_equal(objstore_get_range(f->s, k, 11, 5, &b, &e), -ERR_CORRUPT);
    assert_int_equal(b.len, 0);
}

static void empty_object(struct fixture *f) {
    const char *k = key(f, "empty");
    CLEANUP_BUF struct buf b = {0};
    struct err e = {0};
    struct obj_list list = {0};
    assert_int_equal(objstore_put_parts(f->s, k, NULL, 0, &e), 0);
    assert_body(f, k, "");
    assert_suffix(f, k, 100, "", 0);
    assert_range(f, k, 0, 5, "");
    assert_int_equal(objstore_get_range(f->s, k, 1, 5, &b, &e), -ERR_CORRUPT);
    assert_int_equal(put(f, k, "more"), -ERR_EXISTS);
    assert_int_equal(objstore_list(f->s, f->prefix, NULL, 10, &list, &e), 0);
    assert_int_equal(list.count, 1);
    assert_int_equal(list.entries[0].size, 0);
    obj_list_release(&list);
}

static void assert_list(struct fixture *f, const char *prefix, const char *after, size_t max,
                        const char *const *names, bool more) {
    struct obj_list list = {0};
    struct err e = {0};
    const char *start_after = after ? key(f, after) : NULL;
    assert_int_equal(objstore_list(f->s, key(f, prefix), start_after, max, &list, &e), 0);
    size_t count = 0;
    for (; names[count]; count++) {
        if (count >= list.count)
            fail_msg("list '%s' after '%s': '%s' is missing", prefix, after ? after : "",
                     names[count]);
        assert_string_equal(list.entries[count].key + strlen(f->prefix), names[count]);
        assert_int_equal(list.entries[count].size, strlen(names[count]));
    }
    assert_int_equal(list.count, count);
    assert_int_equal(list.more, more);
    obj_list_release(&list);
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

static void list_order(struct fixture *f) {
    static const char *const names[] = {"ab/1", "a/2", "a-b/1",   "a/10", "a/1", "a0",
                                        "b",    "a.x", "a/b/c/d", "a/b!", "ab/", NULL};
    for (size_t i = 0; names[i] && strcmp(names[i], "ab/") != 0; i++)
        assert_int_equal(put(f, key(f, names[i]), names[i]), 0);
    assert_list(f, "", NULL, 100,
                NAMES("a-b/1", "a.x", "a/1", "a/10", "a/2", "a/b!", "a/b/c/d", "a0", "ab/1", "b"),
                false);
    assert_list(f, "a/", NULL, 100, NAMES("a/1", "a/10", "a/2", "a/b!", "a/b/c/d"), false);
    assert_list(f, "a/1", NULL, 100, NAMES("a/1", "a/10"), false);
    assert_list(f, "a", NULL, 3, NAMES("a-b/1", "a.x", "a/1"), true);
    assert_list(f, "a", "a/1", 3, NAMES("a/10", "a/2", "a/b!"), true);
    assert_list(f, "a", "a/1", 100, NAMES("a/10", "a/2", "a/b!", "a/b/c/d", "a0", "ab/1"), false);
    assert_list(f, "a/", "a/b", 1, NAMES("a/b!"), true);
    assert_list(f, "a/", "a/b/", 1, NAMES("a/b/c/d"), false);
    assert_list(f, "a/", "a/b/c/d", 1, (const char *const[]){NULL}, false);
    assert_list(f, "a/", "0", 2, NAMES("a/1", "a/10"), true);
    assert_list(f, "a/", "z", 2, (const char *const[]){NULL}, false);
    assert_list(f, "c", NULL, 2, (const char *const[]){NULL}, false);
    assert_list(f, "b", NULL, 1, NAMES("b"), false);
}

struct putter {
    struct fixture *f;
    unsigned from, to;
};

static void put_many(void *arg) {
    struct putter *p = arg;
    for (unsigned i = p->from; i < p->to; i++)
        assert_int_equal(put(p->f, numbered(p->f, "many/", i), "x"), 0);
}

enum { MANY = 1100, PUTTERS = 11 };

static void put_1100(struct fixture *f) {
    struct putter putters[PUTTERS];
    struct fiber_group g;
    fiber_group_init(&g, f->env);
    for (unsigned i = 0; i < PUTTERS; i++) {
        putters[i] = (struct putter){f, i * (MANY / PUTTERS), (i + 1) * (MANY / PUTTERS)};
        fiber_group_start(&g, put_many, &putters[i]);
    }
    assert_int_equal(fiber_group_wait(&g), 0);
}

static void many_keys(struct fixture *f) {
    put_1100(f);
    struct obj_list list = {0};
    struct err e = {0};
    assert_int_equal(objstore_list(f->s, key(f, "many/"), NULL, 5000, &list, &e), 0);
    assert_int_equal(list.count, MANY);
    assert_false(list.more);
    for (unsigned i = 0; i < MANY; i++)
        assert_string_equal(list.entries[i].key, numbered(f, "many/", i));
    obj_list_release(&list);
    assert_int_equal(
        objstore_list(f->s, key(f, "many/"), numbered(f, "many/", 41), 1002, &list, &e), 0);
    assert_int_equal(list.count, 1002);
    assert_true(list.more);
    assert_string_equal(list.entries[0].key, numbered(f, "many/", 42));
    obj_list_release(&list);
    /* Every second of them, and as many that do not exist. */
    const char *keys[MANY];
    for (unsigned i = 0; i < MANY; i++)
        keys[i] = i % 2 ? numbered(f, "many/", i) : numbered(f, "none/", i);
    assert_int_equal(objstore_delete(f->s, keys, MANY, &e), 0);
    assert_int_equal(objstore_list(f->s, key(f, "many/"), NULL, 5000, &list, &e), 0);
    assert_int_equal(list.count, MANY / 2);
    assert_string_equal(list.entries[1].key, numbered(f, "many/", 2));
    obj_list_release(&list);
    assert_int_equal(delete_all(f), MANY / 2);
    assert_int_equal(delete_all(f), 0);
}

static void size_limits(struct fixture *f) {
    const char *k = key(f, "limited");
    CLEANUP_BUF struct buf b = {0};
    struct err e = {0};
    assert_int_equal(put(f, k, "0123456789"), 0);
    assert_int_equal(objstore_get(f->s, k, 9, &b, &e), -ERR_CORRUPT);
    assert_int_equal(b.len, 0);
    assert_int_equal(objstore_get(f->s, k, 10, &b, &e), 0);
    assert_int_equal(b.len, 10);
}

static void large_bodies(struct fixture *f) {
    enum { SIZE = 8 * 1024 * 1024, PARTS = OBJ_PUT_PARTS_MAX };
    CLEANUP_BUF struct buf body = {0};
    CLEANUP_BUF struct buf got = {0};
    struct err e = {0};
    uint8_t *data = buf_extend(&body, SIZE);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (uint8_t)(i * 2654435761u >> 13);
    struct view *parts = xcalloc(PARTS, sizeof parts[0]);
    for (size_t i = 0, at = 0; i < PARTS; i++) {
        /* Odd lengths, some empty; the last takes what is left. */
        size_t n = i == PARTS - 1 ? SIZE - at : i % 7 == 0 ? 0 : 2047 + i % 3;
        parts[i] = view_part(buf_view(&body), at, n);
        at += n;
    }
    const char *k = key(f, "large");
    int rc = objstore_put_parts(f->s, k, parts, PARTS, &e);
    free(parts);
    if (rc < 0)
        fail_msg("%s", e.text);
    assert_int_equal(objstore_get(f->s, k, SIZE, &got, &e), 0);
    assert_true(view_equal(buf_view(&got), buf_view(&body)));
    buf_clear(&got);
    assert_int_equal(objstore_get_range(f->s, k, 3000001, 1234567, &got, &e), 0);
    assert_true(view_equal(buf_view(&got), view_part(buf_view(&body), 3000001, 1234567)));
    assert_int_equal(put(f, k, "small"), -ERR_EXISTS);
    body.data[0] ^= 1;
    struct view whole = buf_view(&body);
    assert_int_equal(objstore_put_parts(f->s, k, &whole, 1, &e), -ERR_EXISTS);
}

static void odd_keys(struct fixture *f) {
    static const char *const names[] = {
        "with space",        "plus+plus",  "per%cent",   "per%2Fcent",
        "amp&<>\"'",         "eq=a?b#c",   "star*(x)~!", "\xc3\xa9t\xc3\xa9",
        "co:lon;semi,comma", "at@$|^`",    ".dot",       "..dots",
        "back\\slash",       "{brace}[b]", "UPPER",      "upper",
    };
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        char text[128];
        snprintf(text, sizeof text, "odd %%&/%s/x", names[i]);
        assert_int_equal(put(f, key(f, text), names[i]), 0);
        assert_body(f, key(f, text), names[i]);
    }
    struct obj_list list = {0};
    struct err e = {0};
    assert_int_equal(objstore_list(f->s, key(f, "odd %&/"), NULL, 100, &list, &e), 0);
    assert_int_equal(list.count, ARRAY_LEN(names));
    for (size_t i = 1; i < list.count; i++)
        assert_true(strcmp(list.entries[i - 1].key, list.entries[i].key) < 0);
    obj_list_release(&list);
    assert_int_equal(delete_all(f), ARRAY_LEN(names));
}

struct cancelled_call {
    struct obj_request req;
    struct fiber_done done;
};

static void on_cancelled_done(struct obj_request *req) {
    fiber_done_set(&container_of(req, struct cancelled_call, req)->done);
}

static void cancel(struct fixture *f) {
    enum { CALLS = 24 };
    struct cancelled_call *calls = xcalloc(CALLS, sizeof calls[0]);
    struct view body = view_of_str("cancelled");
    for (unsigned i = 0; i < CALLS; i++) {
        calls[i].req = (struct obj_request){.verb = i % 3 == 0 ? OBJ_GET : OBJ_PUT,
                                            .key = numbered(f, "cancel", i % 3 == 0 ? i + 1 : i),
                                            .parts = &body,
                                            .part_count = 1,
                                            .done = on_cancelled_done};
        fiber_done_init(&calls[i].done);
        objstore_submit(f->s, &calls[i].req);
        if (i % 2 == 0)
            objstore_cancel(f->s, &calls[i].req);
    }
    for (unsigned i = 1; i < CALLS; i += 4) {
        assert_false(calls[i].done.done); /* never inside submit or cancel */
        objstore_cancel(f->s, &calls[i].req);
        objstore_cancel(f->s, &calls[i].req);
    }
    for (unsigned i = 0; i < CALLS; i++) {
        assert_int_equal(fiber_done_wait(f->env, &calls[i].done), 0);
        int rc = calls[i].req.rc;
        bool was_cancelled = i % 2 == 0 || i % 4 == 1;
        if (!was_cancelled || rc != -ERR_CANCELLED)
            assert_true(rc == 0 || rc == -ERR_NOT_FOUND);
        obj_request_release(&calls[i].req);
    }
    free(calls);
    assert_int_equal(put(f, key(f, "after"), "usable"), 0);
    assert_body(f, key(f, "after"), "usable");
}

static void do_nothing_cancelled(void *arg) {
    struct fixture *f = arg;
    assert_int_equal(put(f, key(f, "never"), "x"), -ERR_CANCELLED);
}

static void cancelled_fiber(struct fixture *f) {
    fiber_cancel(fiber_start(f->env, do_nothing_cancelled, f));
    for (int i = 0; i < 3; i++)
        assert_int_equal(fiber_yield(f->env), 0);
    assert_int_equal(get_code(f, key(f, "never")), -ERR_NOT_FOUND);
}

struct mixer {
    struct fixture *f;
    unsigned number;
};

static void mix(void *arg) {
    struct mixer *m = arg;
    struct fixture *f = m->f;
    char body[32];
    struct err e;
    for (unsigned i = 0; i < 4; i++) {
        const char *k = numbered(f, "mix/a", m->number * 10 + i);
        snprintf(body, sizeof body, "body %u %u", m->number, i);
        assert_int_equal(put(f, k, body), 0);
        assert_body(f, k, body);
        assert_int_equal(objstore_delete_one(f->s, k, &e), 0);
        assert_int_equal(get_code(f, k), -ERR_NOT_FOUND);
    }
}

/* Many at once; folders of a file store come and go under each other. */
static void many_at_once(struct fixture *f) {
    enum { MIXERS = 64 };
    struct mixer mixers[MIXERS];
    struct fiber_group g;
    fiber_group_init(&g, f->env);
    for (unsigned i = 0; i < MIXERS; i++) {
        mixers[i] = (struct mixer){f, i};
        fiber_group_start(&g, mix, &mixers[i]);
    }
    assert_int_equal(fiber_group_wait(&g), 0);
}

/* --- running --- */

static void run_body(void *arg) {
    struct fixture *f = arg;
    f->s = f->backend->open(f);
    uint64_t random = env_random_u64(f->env);
    snprintf(f->prefix, sizeof f->prefix, "conformance-%016" PRIx64 "/", random);
    f->body(f);
    delete_all(f);
    objstore_close(f->s);
    f->ran = true;
}

struct test {
    const struct backend *backend;
    void (*body)(struct fixture *f);
};

static void run_one(void **state) {
    const struct test *t = *state;
    struct fixture f = {.backend = t->backend, .body = t->body};
    f.folder = temp_folder_new();
    f.loop = loop_new(4);
    f.env = loop_env(f.loop);
    loop_thread_start(f.loop, "test");
    loop_call(f.loop, run_body, &f);
    loop_thread_stop(f.loop);
    loop_free(f.loop);
    temp_folder_free(f.folder);
    assert_true(f.ran);
}

static const struct {
    const char *name;
    void (*body)(struct fixture *f);
} bodies[] = {
    {"absent", absent},
    {"put and get", put_and_get},
    {"put if absent", put_if_absent},
    {"32 racers, one winner", one_winner},
    {"ranges", ranges},
    {"empty object", empty_object},
    {"list order", list_order},
    {"1100 keys", many_keys},
    {"size limits", size_limits},
    {"large bodies", large_bodies},
    {"odd keys", odd_keys},
    {"cancel", cancel},
    {"cancelled fiber", cancelled_fiber},
    {"many at once", many_at_once},
};

int main(void) {
    /* Behind a proxy that fails requests only the stack with a retry layer can pass. */
    if (s3_url() && !getenv("PORTALBD_TEST_S3_FAULTY"))
        backends[backend_count++] = (struct backend){"s3", open_s3, false};
    if (s3_url())
        backends[backend_count++] =
            (struct backend){"retry(stats(limit(s3)))", open_s3_layers, true};
    static struct test tests[BACKENDS_MAX * ARRAY_LEN(bodies)];
    static struct CMUnitTest units[ARRAY_LEN(tests)];
    size_t count = 0;
    for (size_t b = 0; b < backend_count; b++) {
        for (size_t i = 0; i < ARRAY_LEN(bodies); i++, count++) {
            tests[count] = (struct test){&backends[b], bodies[i].body};
            units[count] =
                (struct CMUnitTest){.name = xasprintf("%s: %s", backends[b].name, bodies[i].name),
                                    .test_func = run_one,
                                    .initial_state = &tests[count]};
        }
    }
    int failed = _cmocka_run_group_tests("objstore conformance", units, count, NULL, NULL);
    for (size_t i = 0; i < count; i++)
        free((char *)(uintptr_t)units[i].name);
    return failed;
}
