/* Stands in for `portalbd attach` in tests of the node agent: keeps the agent's contract
 * (node-agent/supervisor.h) over a file instead of a volume. What was written to <run dir>/<volume>
 * .memory stays there for the next; <run dir>/journals/<volume>.journal is there from its opening
 * to its clean close. It adds a line about itself to <run dir>/starts: "<pid> [resume] [upload]".
 *
 * A file <run dir>/fake says how it behaves, a word a line:
 *     refuse       says {"error":...,"code":"fenced"} and exits as fenced
 *     die          exits with 1 without a word
 *     wait         does not open the volume until the word is gone
 *     die-opened   exits with 1 once it has opened the volume
 *     wait-opened  does not serve until the word is gone
 *     memory       its journal dies with it
 *     fence        while it serves: exits as fenced
 *     old          is of another version
 *     deaf         does not say how it is, nor hands anything over
 *     linger       does not end, however it is told, until the word is gone
 *     fade         ends, and is silent, but its process stays until the word is gone
 *     fail-close   exits with 3 where a clean close was wanted */
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/loop.h"
#include "common/mem.h"
#include "portalbd/control/server.h"
#include "portalbd/fuse/server.h"
#include "tests/support/ram_device.h"

enum {
    SIZE = 256 << 20,
    LOOK_US = 20 * 1000,
    EXIT_UNSAVED = 3,
    EXIT_FENCED = 4,
    EXIT_HANDED_OVER = 5,
};

struct fake {
    struct loop *loop;
    struct ram_device *ram;
    struct fuse_server *server;
    struct control_server *control;
    struct loop_signal term;
    const char *run_dir, *volume;
    char *journal;
    int device_fd; /* -1: upload only */
    int ready_fd;
    bool resume, old;
    bool ending, handed_over;
    struct waitq events;
    int exit_code;
};

static bool told(const struct fake *f, const char *word) {
    char path[512], line[64];
    bool found = false;
    snprintf(path, sizeof path, "%s/fake", f->run_dir);
    FILE *file = fopen(path, "re");
    while (file && !found && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        found = strcmp(line, word) == 0;
    }
    if (file)
        fclose(file);
    return found;
}

/* An agent that has gone does not matter. */
static void say(struct fake *f, const char *line) {
    CHECK(write(f->ready_fd, line, strlen(line)) == (ssize_t)strlen(line) || errno == EPIPE);
}

static void end(struct fake *f) {
    f->ending = true;
    waitq_wake_all(&f->events);
}

static void on_term(struct loop_signal *sig, int signum) {
    (void)signum;
    end(container_of(sig, struct fake, term));
}

static void on_ended(void *arg, int rc, const char *text) {
    (void)rc, (void)text;
    end(arg);
}

/* --- what outlives it --- */

static const struct blockdev_ops *ram_ops;

static bool submit(struct blockdev *dev, struct bd_request *req) {
    struct ram_device *ram = container_of(dev, struct ram_device, dev);
    if (req->op != BD_TRIM && req->op != BD_WRITE_ZEROES)
        return ram_ops->submit(dev, req);
    memset(ram->data + req->off, 0, req->len);
    req->rc = 0;
    return true;
}

static uint64_t size_bytes(struct blockdev *dev) {
    return ram_ops->size_bytes(dev);
}

static void close_ram(struct blockdev *dev) {
    ram_ops->close(dev);
}

static const struct blockdev_ops memory_ops = {
    .submit = submit, .size_bytes = size_bytes, .close = close_ram};

static void open_memory(struct fake *f) {
    CLEANUP_FREE char *path = xasprintf("%s/%s.memory", f->run_dir, f->volume);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    f->ram = ram_device_new(SIZE, NULL);
    CHECK(mmap(f->ram->data, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
          f->ram->data);
    close(fd);
    ram_ops = f->ram->dev.ops;
    f->ram->dev.ops = &memory_ops;
}

static void open_journal(struct fake *f) {
    CLEANUP_FREE char *dir = xasprintf("%s/journals", f->run_dir);
    (void)mkdir(dir, 0700);
    int fd = open(f->journal, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    close(fd);
}

static void note_start(struct fake *f) {
    CLEANUP_FREE char *path = xasprintf("%s/starts", f->run_dir);
    FILE *file = fopen(path, "ae");
    CHECK(file);
    fprintf(file, "%d%s%s\n", getpid(), f->resume ? " resume" : "",
            f->device_fd < 0 ? " upload" : "");
    fclose(file);
}

/* --- its control socket --- */

static int on_control(void *arg, const char *verb, const json_t *args, json_t **ret_result,
                      int *ret_fd, struct err *e) {
    struct fake *f = arg;
    (void)args;
    if (told(f, "deaf"))
        return err_set(e, -ERR_UNSUPPORTED, "not this one");
    if (strcmp(verb, "status") == 0) {
        *ret_result = json_pack("{s:i, s:s, s:s, s:s, s:s}", "pid", getpid(), "health",
                                told(f, "linger") ? "waiting" : "ok", "why", "the store is away",
                                "version", f->old ? "0.0.1" : PORTALBD_VERSION, "unsaved",
                                f->ending ? "writes 3 to 5 are not in the store" : "");
        return 0;
    }
    *ret_result = json_pack("{s:s}", "kind", "fuse");
    if (strcmp(verb, "shutdown") == 0) {
        end(f);
        return 0;
    }
    if (strcmp(verb, "handover") == 0) {
        fuse_server_drain(f->server);
        f->handed_over = true;
        end(f);
    }
    *ret_fd = fcntl(f->device_fd, F_DUPFD_CLOEXEC, 0);
    return 0;
}

/* --- life --- */

static void serve(struct fake *f) {
    struct env *env = loop_env(f->loop);
    const struct fuse_server_config config = {.loop = f->loop,
                                              .dev = &f->ram->dev,
                                              .fd = f->device_fd,
                                              .resume = f->resume,
                                              .ended = on_ended,
                                              .arg = f};
    const struct control_server_config control = {.loop = f->loop,
                                                  .run_dir = f->run_dir,
                                                  .volume = f->volume,
                                                  .handle = on_control,
                                                  .arg = f};
    CHECK(control_server_start(&control, &f->control, NULL) == 0);
    CHECK(fuse_server_new(&config, &f->server, NULL) == 0);
    char line[128];
    snprintf(line, sizeof line,
             "{\"ready\":true,\"size_bytes\":%d,\"nbd_flags\":1,\"journal\":\"%s\"}\n", SIZE,
             told(f, "memory") ? "memory" : "shm");
    say(f, line);
    close(f->ready_fd);
    while (!f->ending && !told(f, "fence"))
        waitq_wait_for(env, &f->events, LOOK_US);
    bool fenced = !f->ending;
    fuse_server_drain(f->server);
    fuse_server_free(f->server);
    while (told(f, "linger") && !fenced && !f->handed_over)
        fiber_sleep_us(env, LOOK_US);
    f->exit_code = fenced ? EXIT_FENCED : f->handed_over ? EXIT_HANDED_OVER : 0;
    control_server_stop(f->control);
    while (told(f, "fade"))
        fiber_sleep_us(env, LOOK_US);
}

static void open_volume(struct fake *f) {
    struct env *env = loop_env(f->loop);
    while (told(f, "wait") && !f->ending)
        fiber_sleep_us(env, LOOK_US);
    say(f, "{\"opened\":true}\n");
    open_journal(f);
    while (told(f, "wait-opened") && !f->ending)
        fiber_sleep_us(env, LOOK_US);
    if (told(f, "die-opened"))
        f->exit_code = 1;
    else if (f->device_fd >= 0)
        serve(f);
    while (told(f, "linger") && f->device_fd < 0)
        fiber_sleep_us(env, LOOK_US);
    if (f->exit_code == 0 && told(f, "fail-close"))
        f->exit_code = EXIT_UNSAVED;
    if (f->exit_code == 0)
        unlink(f->journal);
}

static void run(void *arg) {
    struct fake *f = arg;
    note_start(f);
    if (told(f, "refuse")) {
        say(f, "{\"error\":\"a newer writer has the volume\",\"code\":\"fenced\"}\n");
        f->exit_code = EXIT_FENCED;
    } else if (told(f, "die")) {
        f->exit_code = 1;
    } else {
        open_volume(f);
    }
    loop_stop(f->loop);
}

static const char *option(int argc, char **argv, const char *name, bool needed) {
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return i + 1 < argc ? argv[i + 1] : "";
    if (!needed)
        return NULL;
    fprintf(stderr, "fake_portalbd: %s is missing\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    struct fake f = {.run_dir = option(argc, argv, "--run-dir", true),
                     .volume = option(argc, argv, "--volume", true)};
    const char *device = option(argc, argv, "--fuse-fd", false);
    f.device_fd = device ? atoi(device) : -1;
    f.ready_fd = atoi(option(argc, argv, "--ready-fd", true));
    f.resume = option(argc, argv, "--resume", false) != NULL;
    f.old = told(&f, "old");
    f.journal = xasprintf("%s/journals/%s.journal", f.run_dir, f.volume);
    option(argc, argv, "--publish-epoch", true);
    option(argc, argv, "--node-id", true);
    if (access(option(argc, argv, "--pools", true), R_OK) < 0)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    f.loop = loop_new(1);
    waitq_init(&f.events);
    open_memory(&f);
    f.term.fn = on_term;
    CHECK(loop_signal_start(f.loop, &f.term, SIGTERM, NULL) == 0);
    fiber_start(loop_env(f.loop), run, &f);
    loop_run(f.loop);
    signal(SIGTERM, SIG_IGN); /* it may still come, and is no reason to fail */
    loop_signal_stop(&f.term);
    f.ram->dev.ops->close(&f.ram->dev);
    loop_free(f.loop);
    free(f.journal);
    return f.exit_code;
}
