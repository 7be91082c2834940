/* The daemons: started with the descriptors they need, watched by pidfd, told to end.
 *
 * A daemon is `portalbd attach`, in a process group of its own, with a cleared signal mask and no
 * descriptor of ours but those that are named here. It outlives the agent. The contract:
 *
 *   argv      portalbd attach --volume ID --pools FILE --publish-epoch N --node-id ID --run-dir DIR
 *                 [--fuse-fd 3 | --nbd-fd 3] --ready-fd 4 [--resume] [--state-dir DIR]
 *                 [--read-only] [--cache-size N] [--journal-size N]
 *                 [--disk-cache DIR --disk-cache-size N]
 *   fd 3      the device's descriptor. Without one: upload only, which is to open the volume,
 *             replay the journal, store everything, close and exit
 *   --resume  an earlier daemon of this attachment has owned the volume
 *   fd 4      a pipe for lines of JSON: {"waits":"text"} when it waits for the store, with "" when
 * it does not any more, {"opened":true} once the volume is its own, then at last
 *             {"ready":true,"size_bytes":N,"nbd_flags":N,"journal":"shm"|"memory"|"none"} once it
 *             serves, or {"error":"text","code":"fenced"} before it exits
 *   secrets   only in FILE (mode 0600)
 *   the end   of the device, which fd 3 shows, the verb "shutdown" of its control socket, or
 *             SIGTERM: drain, flush, clean close; a second signal: give up
 *   exit      enum daemon_exit
 *
 * All functions on the loop's owner thread. */
#pragma once

#include "common/fiber.h"
#include "common/loop.h"

enum {
    DAEMON_LINE_MAX = 2048, /* bytes of what it says on its pipe */
    DAEMON_WAITS_MAX = 256,
};

/* What --disk-cache-size may be. */
#define DAEMON_DISK_CACHE_MIN (UINT64_C(64) << 20)
#define DAEMON_DISK_CACHE_MAX (UINT64_C(1) << 42)

enum daemon_exit {
    DAEMON_EXIT_CLEAN = 0,       /* everything is in the store */
    DAEMON_EXIT_UNSAVED = 3,     /* something is not; it is in the journal */
    DAEMON_EXIT_FENCED = 4,      /* another writer has the volume */
    DAEMON_EXIT_HANDED_OVER = 5, /* the device goes on; a successor resumes */
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
    const char *state_dir;  /* "" or NULL: its default */
    const char *disk_cache; /* a folder; NULL: no disk cache */
    uint64_t disk_cache_bytes;
    bool read_only;
    bool resume;
    const char *device_flag; /* how it gets device_fd; NULL: upload only */
    int device_fd;           /* borrowed for the call */
};

struct daemon {
    struct env *env;
    int64_t pid;
    uint64_t pid_start; /* see attach_state */
    bool opened;        /* the volume is its own */
    bool ready;
    uint64_t size_bytes; /* once ready, like what follows */
    uint16_t nbd_flags;
    bool journal_memory; /* its journal dies with it */
    bool exited;
    bool ours;       /* a child of this process */
    int exit_code;   /* exited, ours: its exit code; 128 + signal when a signal ended it */
    struct err said; /* code < 0: what it said before it ended */
    char waits[DAEMON_WAITS_MAX]; /* until it is ready: what for, in words; "": for nothing */
    struct waitq *changed;        /* borrowed: woken at each change of the above */

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
/* One that an earlier agent started. pid_start 0: it has just answered, it is the process that has
 * this pid. -ERR_NOT_FOUND: it has ended. */
int daemon_adopt(struct loop *loop, int64_t pid, uint64_t pid_start, struct waitq *changed,
                 struct daemon **ret, struct err *e);
/* The process, if it lives, goes on. NULL is fine. */
void daemon_free(struct daemon *d);

/* 0: it serves. -ERR_BUSY: not yet. Else what it said before it ended, or how it ended. */
int daemon_is_ready(const struct daemon *d, struct err *e);
/* It said, or its exit code says, that another writer has the volume. */
bool daemon_is_fenced(const struct daemon *d);
/* fiber. 0: it has ended; -ERR_TIMEOUT, -ERR_CANCELLED. */
int daemon_wait_exit(struct daemon *d, uint64_t limit_us);
void daemon_signal(struct daemon *d, int signum); /* of one that has ended: nothing */
/* "exited with code 3", "was killed by signal 9". */
void daemon_describe_end(const struct daemon *d, char *text, size_t size);
