/* The volume rig: a volume, its stack of stores, requests that wait. */
#include "tests/support/volume_rig.h"

#include <stdlib.h>

#include "portalbd/objstore/retry.h"
#include "portalbd/volume/manifest_store.h"
#include "tests/support/test.h"

/* --- the volume --- */

static void create(struct volume_rig *r) {
    struct manifest m = {.number = 1, .size_bytes = r->size, .block_size = 4096};
    env_random(r->env, m.nonce.bytes, sizeof m.nonce.bytes);
    root_init(&m.root, &r->config.key);
    m.root.next_seq = 1;
    struct err e = {0};
    if (manifest_put(r->store, &r->config.key, &m, &e) < 0)
        fail_msg("%s", e.text);
    manifest_release(&m);
}

void rig_open(struct volume_rig *r) {
    struct err e = {0};
    if (volume_open(&r->config, &r->v, &e) < 0)
        fail_msg("%s", e.text);
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

void rig_drop(struct volume_rig *r) {
    struct fiber_done freed;
    fiber_done_init(&freed);
    volume_free(r->v, on_freed, &freed);
    fiber_done_wait_always(r->env, &freed);
    r->v = NULL;
}

void rig_close(struct volume_rig *r) {
    struct err e = {0};
    if (volume_close(r->v, &e) < 0)
        fail_msg("%s", e.text);
    rig_drop(r);
}

void rig_reopen(struct volume_rig *r) {
    rig_close(r);
    rig_open(r);
}

struct volume_status rig_status(struct volume_rig *r) {
    struct volume_status s;
    volume_status(r->v, &s);
    return s;
}

uint64_t rig_gets(struct volume_rig *r) {
    return objstore_stats_requests(objstore_stats(r->stats), OBJ_GET);
}

uint64_t rig_puts(struct volume_rig *r) {
    return objstore_stats_requests(objstore_stats(r->stats), OBJ_PUT);
}

/* --- requests --- */

static void on_done(struct bd_request *req) {
    struct rig_request *q = container_of(req, struct rig_request, req);
    q->end_us = env_now_us(q->env);
    fiber_done_set(&q->done);
}

void rig_submit(struct volume_rig *r, struct rig_request *q, enum bd_op op, unsigned flags,
                uint64_t off, uint64_t len, void *buf) {
    *q = (struct rig_request){
        .req = {.op = op, .flags = flags, .off = off, .len = len, .done = on_done},
        .env = r->env,
        .start_us = env_now_us(r->env)};
    if (op == BD_READ)
        q->req.read_buf = buf;
    else if (op == BD_WRITE)
        q->req.write_data = buf;
    fiber_done_init(&q->done);
    if (bd_submit(volume_blockdev(r->v), &q->req))
        on_done(&q->req);
}

int rig_wait(struct volume_rig *r, struct rig_request *q) {
    fiber_done_wait_always(r->env, &q->done);
    return q->req.rc;
}

int rig_do(struct volume_rig *r, enum bd_op op, unsigned flags, uint64_t off, uint64_t len,
           void *buf) {
    struct rig_request q;
    rig_submit(r, &q, op, flags, off, len, buf);
    return rig_wait(r, &q);
}

/* --- content --- */

void rig_fill(uint8_t *buf, uint64_t off, uint64_t len, unsigned version) {
    for (uint64_t i = 0; i < len; i += 8) {
        uint64_t x = (off + i + ((uint64_t)version << 50)) * UINT64_C(0x9e3779b97f4a7c15);
        x ^= x >> 31;
        x *= UINT64_C(0xbf58476d1ce4e5b9);
        x ^= x >> 29;
        memcpy(buf + i, &x, 8);
    }
}

enum { PIECE = 1024 * 1024 };

void rig_write(struct volume_rig *r, uint64_t off, uint64_t len, unsigned version) {
    uint8_t *buf = xmalloc(PIECE);
    for (uint64_t done = 0; done < len; done += PIECE) {
        uint64_t n = MIN(len - done, (uint64_t)PIECE);
        rig_fill(buf, off + done, n, version);
        assert_int_equal(rig_do(r, BD_WRITE, 0, off + done, n, buf), 0);
    }
    free(buf);
}

void rig_check(struct volume_rig *r, uint64_t off, uint64_t len, unsigned version) {
    uint8_t *buf = xmalloc(PIECE), *want = xmalloc(PIECE);
    for (uint64_t done = 0; done < len; done += PIECE) {
        uint64_t n = MIN(len - done, (uint64_t)PIECE);
        rig_fill(want, off + done, n, version);
        assert_int_equal(rig_do(r, BD_READ, 0, off + done, n, buf), 0);
        assert_memory_equal(buf, want, n);
    }
    free(buf);
    free(want);
}

/* --- running --- */

struct running {
    struct volume_rig rig;
    void (*test)(struct volume_rig *r);
    bool finished;
};

static void run_fiber(void *arg) {
    struct running *x = arg;
    create(&x->rig);
    rig_open(&x->rig);
    x->test(&x->rig);
    if (x->rig.v)
        rig_drop(&x->rig);
    x->finished = true;
}

void rig_run(uint64_t size, const struct volume_config *config,
             void (*test)(struct volume_rig *r)) {
    struct running x = {.rig = {.size = size, .seed = 1, .config = *config}, .test = test};
    struct volume_rig *r = &x.rig;
    virtual_env_init(&r->venv, 1);
    r->env = &r->venv.env;
    r->bucket = memory_store_new();
    r->fault = objstore_fault_new(objstore_memory_open(r->env, r->bucket));
    r->stats = objstore_stats_new(r->fault, NULL, NULL);
    r->store = objstore_retry_new(r->stats, NULL);
    r->config.env = r->env;
    r->config.store = r->store;
    r->config.publish_epoch = 1;
    id_format_key(&r->config.key, ID_VOLUME, "0123456789abcdef0123456789abcdef", 1);
    virtual_env_call(&r->venv, run_fiber, &x);
    assert_true(x.finished);
    objstore_close(r->store);
    memory_store_free(r->bucket);
    virtual_env_release(&r->venv);
}
