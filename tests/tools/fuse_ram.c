/* A RAM disk as a block device, through the FUSE front end and the agent's fuse backend in one
 * process: for tests of that path without a store.
 *
 *     fuse_ram RUN_DIR SIZE_BYTES [later|inline]
 *
 * Prints the device's path when it is there. SIGHUP doubles the size. SIGTERM and SIGINT detach and
 * end, with 1 when the device is in use, with a line of statistics otherwise. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/loop.h"
#include "node-agent/attach/attach.h"
#include "portalbd/fuse/server.h"
#include "tests/support/ram_device.h"

#define VOLUME "ram"

struct program {
    struct loop *loop;
    struct ram_device *ram;
    struct fuse_server *server;
    struct attach_backend *backend;
    struct loop_signal hup, term, interrupt;
    struct waitq signals;
    uint64_t size_wanted;
    bool ending;
    struct attach_link link;
    int rc; /* of the last job */
    struct err e;
    struct attach_device device;
    int exit_code;
};

static void attach_job(void *arg) {
    struct program *p = arg;
    const struct attach_how how = {.size_bytes = p->ram->size_bytes};
    p->rc = p->backend->ops->attach(p->backend, VOLUME, &how, &p->link, &p->device, &p->e);
}

static void grow_job(void *arg) {
    struct program *p = arg;
    p->rc = p->backend->ops->grow(p->backend, VOLUME, p->ram->size_bytes, &p->e);
}

static void detach_job(void *arg) {
    struct program *p = arg;
    p->rc = p->backend->ops->detach(p->backend, VOLUME, false, &p->e);
    if (p->rc < 0)
        p->backend->ops->detach(p->backend, VOLUME, true, NULL);
}

static bool run_job(struct program *p, void (*job)(void *arg)) {
    fiber_run_job(loop_env(p->loop), job, p);
    if (p->rc < 0) {
        fprintf(stderr, "fuse_ram: %s\n", p->e.text);
        p->exit_code = 1;
    }
    return p->rc == 0;
}

static void on_signal(struct loop_signal *sig, int signum) {
    struct program *p = signum == SIGHUP    ? container_of(sig, struct program, hup)
                        : signum == SIGTERM ? container_of(sig, struct program, term)
                                            : container_of(sig, struct program, interrupt);
    if (signum == SIGHUP)
        p->size_wanted *= 2;
    else
        p->ending = true;
    waitq_wake_all(&p->signals);
}

static void serve(struct program *p) {
    if (!run_job(p, attach_job))
        return;
    printf("%s\n", p->device.path);
    fflush(stdout);
    while (!p->ending) {
        if (p->ram->size_bytes < p->size_wanted) {
            ram_device_grow(p->ram, p->size_wanted);
            fuse_server_grew(p->server);
            if (run_job(p, grow_job))
                printf("grown %llu\n", (unsigned long long)p->size_wanted);
            fflush(stdout);
            continue;
        }
        waitq_wait(loop_env(p->loop), &p->signals);
    }
}

static void print_stats(const struct program *p) {
    struct fuse_server_stats s = fuse_server_stats(p->server);
    printf("reads=%llu writes=%llu flushes=%llu trims=%llu zeroes=%llu errors=%llu malformed=%llu "
           "waits=%llu resend=%d\n",
           (unsigned long long)s.requests[BD_READ], (unsigned long long)s.requests[BD_WRITE],
           (unsigned long long)s.requests[BD_FLUSH], (unsigned long long)s.requests[BD_TRIM],
           (unsigned long long)s.requests[BD_WRITE_ZEROES], (unsigned long long)s.errors,
           (unsigned long long)s.malformed, (unsigned long long)s.waits, s.resend);
}

static void run(void *arg) {
    struct program *p = arg;
    const struct fuse_server_config config = {
        .loop = p->loop, .dev = &p->ram->dev, .fd = p->link.daemon_fd};
    if (fuse_server_new(&config, &p->server, &p->e) < 0) {
        fprintf(stderr, "fuse_ram: %s\n", p->e.text);
        p->exit_code = 1;
    } else {
        serve(p);
        run_job(p, detach_job);
        fuse_server_drain(p->server);
        print_stats(p);
        fuse_server_free(p->server);
    }
    loop_stop(p->loop);
}

static void watch_signal(struct program *p, struct loop_signal *sig, int signum) {
    sig->fn = on_signal;
    CHECK(loop_signal_start(p->loop, sig, signum, NULL) == 0);
}

int main(int argc, char **argv) {
    struct program p = {0};
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: fuse_ram RUN_DIR SIZE_BYTES [later|inline]\n");
        return 2;
    }
    char note[ATTACH_NOTE_MAX];
    bool later = argc == 4 && strcmp(argv[3], "later") == 0;
    p.size_wanted = strtoull(argv[2], NULL, 0);
    p.loop = loop_new(2);
    waitq_init(&p.signals);
    p.ram = ram_device_new(p.size_wanted, later ? loop_env(p.loop) : NULL);
    if (attach_fuse_open(argv[1], &p.backend, &p.e) < 0 ||
        p.backend->ops->probe(p.backend, note, &p.e) < 0 ||
        p.backend->ops->prepare(p.backend, VOLUME, &p.link, &p.e) < 0) {
        fprintf(stderr, "fuse_ram: %s\n", p.e.text);
        return 1;
    }
    watch_signal(&p, &p.hup, SIGHUP);
    watch_signal(&p, &p.term, SIGTERM);
    watch_signal(&p, &p.interrupt, SIGINT);
    fiber_start(loop_env(p.loop), run, &p);
    loop_run(p.loop);
    loop_signal_stop(&p.hup);
    loop_signal_stop(&p.term);
    loop_signal_stop(&p.interrupt);
    p.ram->dev.ops->close(&p.ram->dev);
    p.backend->ops->close(p.backend);
    loop_free(p.loop);
    attach_link_close(&p.link);
    return p.exit_code;
}
