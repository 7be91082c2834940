/* The real engine as a writer in a pool_fixture. */
#include "tests/support/engine_writer.h"

#include <string.h>

#include "common/fiber.h"

struct sync_request {
    struct bd_request req;
    struct fiber_done done;
};

static void on_done(struct bd_request *req) {
    fiber_done_set(&container_of(req, struct sync_request, req)->done);
}

static void submit(struct pool_fixture *f, struct volume *v, enum bd_op op, uint64_t off,
                   uint64_t len, const void *data) {
    struct sync_request s = {
        .req = {.op = op, .off = off, .len = len, .write_data = data, .done = on_done}};
    fiber_done_init(&s.done);
    if (!bd_submit(volume_blockdev(v), &s.req))
        fiber_done_wait_always(f->env, &s.done);
    CHECK(s.req.rc == 0);
}

struct volume *engine_open(struct pool_fixture *f, const struct volume_key *key,
                           uint64_t publish_epoch) {
    struct volume_config config = {.env = f->env,
                                   .store = f->store,
                                   .key = *key,
                                   .publish_epoch = (uint32_t)publish_epoch,
                                   .journal_size = 4 * 1024 * 1024,
                                   .cache_size = 256 * 1024,
                                   .segment_size = 16 * 1024,
                                   .checkpoint_segments = 6,
                                   .runs_max = 3};
    struct err e;
    struct volume *v;
    int rc = volume_open(&config, &v, &e);
    CHECK(rc == 0);
    return v;
}

void engine_write(struct pool_fixture *f, struct volume *v, uint64_t size_bytes, int writes) {
    uint8_t data[16 * 1024];
    for (int i = 0; i < writes; i++) {
        uint64_t sector = env_random_u64(f->env) % (size_bytes / SECTOR_SIZE - 32);
        uint64_t count = 1 + env_random_u64(f->env) % 32;
        env_random(f->env, data, count * SECTOR_SIZE);
        if (i % 3 == 0)
            memset(data, i, count * SECTOR_SIZE); /* compresses */
        enum bd_op op = i % 11 == 10 ? BD_TRIM : BD_WRITE;
        submit(f, v, op, sector * SECTOR_SIZE, count * SECTOR_SIZE, op == BD_TRIM ? NULL : data);
        if (i % 5 == 4)
            submit(f, v, BD_FLUSH, 0, 0, NULL);
    }
}

void engine_put(struct pool_fixture *f, struct volume *v, uint64_t off, uint64_t len,
                const void *data) {
    submit(f, v, BD_WRITE, off, len, data);
}

void engine_trim(struct pool_fixture *f, struct volume *v, uint64_t size_bytes) {
    submit(f, v, BD_TRIM, 0, size_bytes, NULL);
    submit(f, v, BD_FLUSH, 0, 0, NULL);
}

void engine_read(struct pool_fixture *f, struct volume *v, uint64_t off, uint64_t len, void *buf) {
    enum { AT_ONCE = 128 * 1024 };
    for (uint64_t done = 0; done < len; done += AT_ONCE) {
        struct sync_request s = {.req = {.op = BD_READ,
                                         .off = off + done,
                                         .len = MIN(len - done, (uint64_t)AT_ONCE),
                                         .read_buf = (uint8_t *)buf + done,
                                         .done = on_done}};
        fiber_done_init(&s.done);
        if (!bd_submit(volume_blockdev(v), &s.req))
            fiber_done_wait_always(f->env, &s.done);
        CHECK(s.req.rc == 0);
    }
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

void engine_end(struct pool_fixture *f, struct volume *v, bool close) {
    struct err e;
    struct fiber_done freed;
    int rc = close ? volume_close(v, &e) : 0;
    CHECK(rc == 0);
    fiber_done_init(&freed);
    volume_free(v, on_freed, &freed);
    fiber_done_wait_always(f->env, &freed);
}
