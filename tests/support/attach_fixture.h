/* What tests of attach backends share: a volume, its device, its daemon (attach_server.h), and
 * clients of the device. Each program runs its cases on one backend:
 *
 *     test_x [fuse|nbd [RUN_DIR]]
 *
 * Needs root and what the backend's probe asks for; without it every case is skipped. */
#pragma once

#include "tests/support/test.h"

#include "common/base.h"
#include "node-agent/attach/attach.h"
#include "tests/support/attach_server.h"

#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)
#define TIB (UINT64_C(1) << 40)

enum {
    FIXTURE_BLOCK = 4096,
    FIXTURE_BUFFER = 2 * 1024 * 1024,
    FIXTURE_SOON_MS = 5000, /* "in bounded time" */
};

/* Shared with the clients. */
struct fixture_traffic {
    _Atomic bool stop;
    _Atomic uint64_t rounds;
};

struct attach_fixture {
    struct attach_backend *backend;
    struct served_memory *memory;
    struct fixture_traffic *traffic;
    struct attach_server server;
    struct attach_link link;
    struct attach_how how;
    struct attach_device device;
    char volume[ATTACH_VOLUME_MAX];
    pid_t client; /* 0: none */
};

extern uint8_t fixture_buffer[FIXTURE_BUFFER]; /* aligned for direct I/O */

#define OK(call)                                                                                   \
    do {                                                                                           \
        struct err why = {0};                                                                      \
        if ((call) < 0)                                                                            \
            fail_msg("%s: %s", #call, why.text);                                                   \
    } while (0)

/* --- the program --- */

/* False: bad arguments, said. */
bool fixture_begin(int argc, char **argv);
void fixture_end(void);
bool fixture_is_fuse(void);
const char *fixture_run_dir(void);

/* --- a case --- */

/* *state: a fixture that is not attached; NULL when the backend cannot be used. */
int fixture_setup_of(void **state, uint64_t size_bytes, uint64_t room_bytes);
int fixture_setup(void **state);       /* 64 MiB, room for 256 */
int fixture_setup_large(void **state); /* a terabyte, or as much as this kernel maps */
int fixture_teardown(void **state);
void fixture_need(void **state); /* skips the case where there is none */
/* Another volume; the backend is the caller's. */
struct attach_fixture *fixture_new(struct attach_backend *b, uint64_t size_bytes,
                                   uint64_t room_bytes);
void fixture_free(struct attach_fixture *f);

/* Another agent's view. */
struct attach_backend *fixture_open_backend(void);
uint64_t fixture_now_ms(void);
void fixture_pause_ms(unsigned ms);

/* --- its device --- */

void fixture_prepare(struct attach_fixture *f); /* the daemon is started */
void fixture_attach(struct attach_fixture *f);  /* that, and the device appears */
void fixture_start_server(struct attach_fixture *f, bool resume);
void fixture_recover(struct attach_fixture *f); /* a next daemon, after the last one's end */
void fixture_fail(struct attach_fixture *f);
/* What nobody uses; the daemon ends by itself, whoever has copies of its descriptor. */
void fixture_detach(struct attach_fixture *f);
bool fixture_is_there(struct attach_backend *b, const char *volume, struct attach_device *ret);

/* --- clients: other processes, as an application is --- */

void fixture_fill(uint8_t *bytes, size_t len, uint64_t seed);
int fixture_open_device(const struct attach_fixture *f); /* for direct I/O; -1: errno */
/* A child that has no descriptors but the first three. */
pid_t fixture_start_client(struct attach_fixture *f, int (*fn)(struct attach_fixture *f));
int fixture_expect_client_ends(struct attach_fixture *f, int timeout_ms); /* its exit code */
void fixture_await_received(struct attach_fixture *f, enum bd_op op, uint64_t more_than);
/* Writes one block, fixture_fill of 1, at 1 MiB. */
int fixture_write_one(struct attach_fixture *f);
/* A client whose write a daemon has read, and keeps. */
void fixture_start_stuck_write(struct attach_fixture *f);
