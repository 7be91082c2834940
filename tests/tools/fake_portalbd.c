/* Stands in for `portalbd attach` in tests of the node agent: keeps the agent's contract
 * (node-agent/supervisor.h) over memory instead of a volume.
 *
 * A file <run dir>/fake says how it behaves, a word a line:
 *     refuse       says {"error":...,"code":"fenced"} and exits with 3
 *     die          exits with 5 without a word
 *     wait         does not serve until the word is gone
 *     linger       does not end, however it is told, until the word is gone
 *     fail-close   exits with 7 where a clean close was wanted */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/loop.h"
#include "portalbd/fuse/server.h"
#include "tests/support/ram_device.h"

enum { SIZE = 256 << 20, LOOK_US = 20 * 1000 };

struct fake {
    struct loop *loop;
    struct ram_device *ram;
    struct fuse_server *server;
    struct loop_signal term;
    const char *run_dir;
    int device_fd, ready_fd;
    bool ending;
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

static void say(struct fake *f, const char *line) {
    CHECK(write(f->ready_fd, line, strlen(line)) == (ssize_t)strlen(line));
    close(f->ready_fd);
}

static void on_term(struct loop_signal *sig, int signum) {
    struct fake *f = container_of(sig, struct fake, term);
    (void)signum;
    f->ending = true;
    waitq_wake_all(&f->events);
}

static void on_ended(void *arg, int rc, const char *text) {
    struct fake *f = arg;
    (void)rc;
    (void)text;
    f->ending = true;
    waitq_wake_all(&f->events);
}

static void serve(struct fake *f) {
    struct env *env = loop_env(f->loop);
    const struct fuse_server_config config = {
        .loop = f->loop, .dev = &f->ram->dev, .fd = f->device_fd, .ended = on_ended, .arg = f};
    while (told(f, "wait") && !f->ending)
        fiber_sleep_us(env, LOOK_US);
    CHECK(fuse_server_new(&config, &f->server, NULL) == 0);
    char line[64];
    snprintf(line, sizeof line, "{\"ready\":true,\"size_bytes\":%d}\n", SIZE);
    say(f, line);
    while (!f->ending)
        waitq_wait(env, &f->events);
    fuse_server_drain(f->server);
    fuse_server_free(f->server);
    while (told(f, "linger"))
        fiber_sleep_us(env, LOOK_US);
    f->exit_code = told(f, "fail-close") ? 7 : 0;
}

static void run(void *arg) {
    struct fake *f = arg;
    if (told(f, "refuse")) {
        say(f, "{\"error\":\"a newer writer has the volume\",\"code\":\"fenced\"}\n");
        f->exit_code = 3;
    } else if (told(f, "die")) {
        f->exit_code = 5;
    } else {
        serve(f);
    }
    loop_stop(f->loop);
}

static const char *option(int argc, char **argv, const char *name) {
    for (int i = 2; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    fprintf(stderr, "fake_portalbd: %s is missing\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    struct fake f = {.run_dir = option(argc, argv, "--run-dir")};
    f.device_fd = atoi(option(argc, argv, "--fuse-fd"));
    f.ready_fd = atoi(option(argc, argv, "--ready-fd"));
    option(argc, argv, "--publish-epoch");
    option(argc, argv, "--node-id");
    if (access(option(argc, argv, "--pools"), R_OK) < 0)
        return 2;
    f.loop = loop_new(1);
    waitq_init(&f.events);
    f.ram = ram_device_new(SIZE, NULL);
    f.term.fn = on_term;
    CHECK(loop_signal_start(f.loop, &f.term, SIGTERM, NULL) == 0);
    fiber_start(loop_env(f.loop), run, &f);
    loop_run(f.loop);
    signal(SIGTERM, SIG_IGN); /* it may still come, and is no reason to fail */
    loop_signal_stop(&f.term);
    f.ram->dev.ops->close(&f.ram->dev);
    loop_free(f.loop);
    return f.exit_code;
}
