/* An NBD server over devices in memory: the server room with other people's clients, without a
 * volume.
 *
 *   nbd_memory [--size BYTES] [--delay-us N] [--read-only] [--single] SOCKET | host:port
 *
 * Exports: "mem" (also the default ""), "ro" (the same bytes, read-only) and "slow", which answers
 * up to --delay-us later and in any order. A line "ready [port]" on stdout; SIGTERM drains and ends
 * it. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/blockdev/delay.h"
#include "portalbd/blockdev/stats.h"
#include "portalbd/nbd/server.h"
#include "tests/support/memory_blockdev.h"

struct program {
    struct nbd_exports exports;
    struct loop *loop;
    struct nbd_server *server;
    struct blockdev *memory, *slow;
    struct blockdev read_only; /* the memory device with another face */
    bool single;
};

struct turn {
    struct env_event event;
    struct nbd_lookup *lookup;
    struct nbd_listing *listing;
};

static struct program program;

static uint64_t forward_size(struct blockdev *dev) {
    (void)dev;
    return bd_size_bytes(program.memory);
}
static bool forward_submit(struct blockdev *dev, struct bd_request *req) {
    (void)dev;
    return bd_submit(program.memory, req);
}
static const struct blockdev_ops forward_ops = {.submit = forward_submit,
                                                .size_bytes = forward_size};

static void on_turn(struct env_event *event) {
    struct turn *t = container_of(event, struct turn, event);
    struct turn copy = *t;
    free(t);
    if (copy.lookup)
        copy.lookup->done(copy.lookup);
    else
        copy.listing->done(copy.listing);
}

static void later(struct nbd_lookup *lookup, struct nbd_listing *listing) {
    struct turn *t = NEW(struct turn);
    *t = (struct turn){.event = {.fn = on_turn}, .lookup = lookup, .listing = listing};
    env_post(loop_env(program.loop), &t->event);
}

static void op_open(struct nbd_exports *x, struct nbd_lookup *l) {
    (void)x;
    l->rc = 0;
    l->description = "bytes in memory";
    if (strcmp(l->name, "") == 0 || strcmp(l->name, "mem") == 0)
        l->dev = program.memory;
    else if (strcmp(l->name, "ro") == 0)
        l->dev = &program.read_only;
    else if (strcmp(l->name, "slow") == 0)
        l->dev = program.slow;
    else
        l->rc = err_set(&l->err, -ERR_NOT_FOUND, "there is no export '%s'", l->name);
    l->handle = l->dev;
    later(l, NULL);
}

static void op_list(struct nbd_exports *x, struct nbd_listing *l) {
    (void)x;
    l->rc = 0;
    nbd_listing_add(l, "mem", "bytes in memory");
    nbd_listing_add(l, "ro", "the same, read-only");
    nbd_listing_add(l, "slow", NULL);
    later(NULL, l);
}

static void op_close(struct nbd_exports *x, void *handle) {
    (void)x;
    CHECK(handle);
}

static const struct nbd_exports_ops exports_ops = {
    .open = op_open, .list = op_list, .close = op_close};

static void on_closed(void *arg) {
    (void)arg;
    loop_stop(program.loop);
}

static void on_drained(void *arg) {
    (void)arg;
    nbd_server_close(program.server, on_closed, NULL);
}

static void on_signal(struct loop_signal *sig, int signum) {
    (void)signum;
    loop_signal_stop(sig);
    nbd_server_drain(program.server, on_drained, NULL);
}

static void on_idle(void *arg) {
    (void)arg;
    if (program.single)
        nbd_server_close(program.server, on_closed, NULL);
}

static int start(const char *address, struct err *e) {
    uint16_t port = 0;
    if (program.single)
        return nbd_server_serve(program.server, dup(0), e);
    int rc = strchr(address, '/') ? nbd_server_listen_unix(program.server, address, e)
                                  : nbd_server_listen_tcp(program.server, address, &port, e);
    if (rc == 0) {
        printf("ready %u\n", port);
        fflush(stdout);
    }
    return rc;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"size", required_argument, NULL, 's'},
                                            {"delay-us", required_argument, NULL, 'd'},
                                            {"read-only", no_argument, NULL, 'r'},
                                            {"single", no_argument, NULL, '1'},
                                            {0}};
    uint64_t size = 64 << 20, delay_us = 1000;
    bool read_only = false;
    int opt;
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (opt) {
        case 's':
            size = strtoull(optarg, NULL, 0);
            break;
        case 'd':
            delay_us = strtoull(optarg, NULL, 0);
            break;
        case 'r':
            read_only = true;
            break;
        case '1':
            program.single = true;
            break;
        default:
            return 2;
        }
    }
    if (!program.single && optind + 1 != argc)
        return 2;
    program.loop = loop_new(1);
    struct env *env = loop_env(program.loop);
    struct blockdev *raw = memory_blockdev_open(size);
    program.memory = bd_stats_open(raw, env, NULL, NULL);
    program.memory->read_only = read_only;
    program.slow = bd_delay_open(memory_blockdev_open(size), env, 0, delay_us);
    program.read_only = *program.memory;
    program.read_only.ops = &forward_ops;
    program.read_only.read_only = true;
    program.exports.ops = &exports_ops;
    program.server = nbd_server_new(&(struct nbd_server_config){
        .loop = program.loop, .exports = &program.exports, .on_idle = on_idle});
    struct err e;
    struct loop_signal term = {.fn = on_signal};
    if (start(argv[optind], &e) < 0 || loop_signal_start(program.loop, &term, SIGTERM, &e) < 0) {
        fprintf(stderr, "nbd_memory: %s\n", e.text);
        return 1;
    }
    loop_run(program.loop);
    loop_signal_stop(&term);
    program.memory->ops->close(program.memory);
    program.slow->ops->close(program.slow);
    loop_free(program.loop);
    return 0;
}
