/* The daemons: started with the descriptors they need, watched by pidfd, told to end.
 *
 * A daemon is `portalbd attach`, in a process group of its own, with a cleared signal mask and no
 * descriptor of ours but those that are named here. It outlives the agent. The contract:
 *
 *   argv      portalbd attach --volume ID --pools FILE --publish-epoch N --node-id ID --run-dir DIR
 *                 --fuse-fd 3 --ready-fd 4 [--read-only] [--cache-size N] [--journal-size N]
 *   fd 3      the kernel's side of the device
 *   fd 4      a pipe: the daemon writes one line of JSON and closes it:
 * {"ready":true,"size_bytes":N} once it serves, or {"error":"text","code":"fenced"} before it exits
 *   secrets   only in FILE (mode 0600)
 *   the end   of the device, which fd 3 shows, the verb "shutdown" of its control socket, or
 * SIGTERM: drain, flush, clean close; a second signal: give up exit      0 everything is in the
 * store; DAEMON_EXIT_FENCED another writer has the volume
 *
 * All functions on the loop's owner thread. */
#pragma once

#include "common/fiber.h"
#include "common/loop.h"

enum {
    DAEMON_LINE_MAX = 2048, /* bytes of what it says on its pipe */
    DAEMON_EXIT_FENCED = 4,
};

struct daemon_spec {
    const char *program; /* path of portalbd */
    const char *volume;
    const char *pool_file;
    const char *node_id;
    const char *run_dir;
    uint64_t publish_epoch;
    uint64_t cache_bytes;   /* 0: its default */
    uint64_t journal_bytes; /* 0: its default */
    bool read_only;
    int device_fd; /* borrowed for the call */
};

struct daemon {
    struct env *env;
    int64_t pid;
    uint64_t pid_start;  /* see attach_state */
    uint64_t size_bytes; /* once ready */
    bool ready;
    bool exited;
    bool ours;             /* a child of this process */
    int exit_code;         /* exited, ours: its exit code; 128 + signal when a signal ended it */
    struct err said;       /* code < 0: what it said before it ended */
    struct waitq *changed; /* borrowed: woken at each change of the above */

    /* supervisor.c's own */
    int pidfd, ready_fd;
    struct loop_watch pid_watch, ready_watch;
    char line[DAEMON_LINE_MAX];
    size_t line_len;
};

/* changed: woken when the daemon says something or ends; borrowed until daemon_free. -ERR_CONFIG:
 * the program cannot be run. */
int daemon_spawn(struct loop *loop, const struct daemon_spec *spec, struct waitq *changed,
                 struct daemon **ret, struct err *e);
/* One that an earlier agent started. -ERR_NOT_FOUND: it has ended. */
int daemon_adopt(struct loop *loop, int64_t pid, uint64_t pid_start, struct waitq *changed,
                 struct daemon **ret, struct err *e);
/* The process, if it lives, goes on. NULL is fine. */
void daemon_free(struct daemon *d);

/* 0: it serves. -ERR_BUSY: not yet. Else what it said before it ended, or how it ended. */
int daemon_is_ready(const struct daemon *d, struct err *e);
/* fiber. 0: it has ended; -ERR_TIMEOUT, -ERR_CANCELLED. */
int daemon_wait_exit(struct daemon *d, uint64_t limit_us);
void daemon_signal(struct daemon *d, int signum); /* of one that has ended: nothing */
/* "exited with code 3", "was killed by signal 9". */
void daemon_describe_end(const struct daemon *d, char *text, size_t size);
