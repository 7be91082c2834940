/* A pool in memory on a virtual env. */
#include "tests/support/pool_fixture.h"

#include <stdio.h>

#include "portalbd/objstore/retry.h"

void pool_fixture_init(struct pool_fixture *f, uint64_t seed) {
    *f = (struct pool_fixture){0};
    virtual_env_init(&f->venv, seed);
    f->env = &f->venv.env;
    f->memory = memory_store_new();
    f->delays = objstore_fault_new(objstore_memory_open(f->env, f->memory));
    f->answers = objstore_fault_new(f->delays);
    f->faults = objstore_fault_new(f->answers);
    f->store = objstore_retry_new(f->faults, NULL);
    /* By hand: tests of rooms below the catalog are linked without it. */
    f->catalog = (struct catalog){.env = f->env, .store = f->store, .pool = "pool"};
}

void pool_fixture_release(struct pool_fixture *f) {
    if (!list_empty(&f->env->fibers))
        return; /* a failed assertion has jumped out of one: let its message be seen */
    objstore_close(f->store);
    virtual_env_run(&f->venv);
    memory_store_free(f->memory);
    virtual_env_release(&f->venv);
}

void pool_fixture_run(struct pool_fixture *f, void (*fn)(void *arg), void *arg) {
    virtual_env_call(&f->venv, fn, arg);
}

void pool_fixture_jitter(struct pool_fixture *f) {
    struct fault_rule lose = {.kind = FAULT_LOSE, .verbs = 1u << OBJ_PUT, .chance = 30000};
    struct fault_rule before = {.kind = FAULT_DELAY, .delay_us_min = 0, .delay_us_max = 1000};
    struct fault_rule after = {.kind = FAULT_DELAY_ANSWER, .delay_us_min = 0, .delay_us_max = 1000};
    struct fault_rule slow = {
        .kind = FAULT_DELAY, .chance = 50000, .delay_us_min = 1000, .delay_us_max = 30000};
    objstore_fault_add(f->delays, &slow);
    objstore_fault_add(f->delays, &before);
    objstore_fault_add(f->faults, &lose);
    objstore_fault_add(f->answers, &after);
}

uint64_t pool_fixture_requests(const struct pool_fixture *f) {
    return objstore_fault_requests(f->faults);
}

size_t pool_fixture_count(const struct pool_fixture *f, const char *part) {
    size_t count = 0;
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        count += strstr(key, part) != NULL;
    return count;
}

void pool_fixture_print(const struct pool_fixture *f) {
    const char *key;
    struct view body;
    for (size_t i = 0; memory_store_at(f->memory, i, &key, &body); i++)
        printf("%6zu %s\n", body.len, key);
}

int pool_fixture_put_segment(struct pool_fixture *f, const struct volume_key *v,
                             const struct manifest *m, uint64_t seq, struct err *e) {
    uint8_t body[1024] = {0};
    struct segment_meta meta = {
        .kind = SEGMENT_DATA, .epoch = m->epoch, .seq = seq, .nonce = m->nonce};
    segment_volume_hash(meta.volume_hash, v);
    segment_encode_header(body, &meta);
    char key[KEY_MAX];
    key_log(key, v, seq);
    return objstore_put(f->store, key, view_of(body, sizeof body), NULL, e);
}

void pool_fixture_write(struct pool_fixture *f, const struct volume_key *v, uint32_t publish_epoch,
                        size_t segments, bool close) {
    struct err e;
    struct takeover t;
    int rc = volume_takeover(f->env, f->store, v, publish_epoch, NULL, false, &t, &e);
    CHECK(rc == 0);
    for (size_t i = 0; i < segments; i++) {
        rc = pool_fixture_put_segment(f, v, &t.manifest, t.first_seq + i, &e);
        CHECK(rc == 0);
    }
    if (close) {
        struct manifest *m = &t.manifest;
        uint64_t next = t.first_seq + segments;
        rc = log_walk_to_root(&t.walk, &m->root, t.first_seq, &e);
        CHECK(rc == 0);
        if (segments > 0) {
            m->root.tail = xrealloc(m->root.tail, (m->root.tail_count + 1) * sizeof *m->root.tail);
            m->root.tail[m->root.tail_count++] =
                (struct root_tail){.first = t.first_seq, .count = segments};
        }
        m->root.next_seq = next;
        m->number++;
        m->closed = true;
        rc = manifest_put(f->store, v, m, &e);
        CHECK(rc == 0);
    }
    takeover_release(&t);
}
