/* Runs a program (mkfs, fsck, resize) from a process with many threads. */
#pragma once

#include "common/err.h"

enum {
    RUN_OUTPUT_MAX = 2048, /* bytes that are kept of a program's output, from its end */
    RUN_KILL_MS = 5000,    /* how long a killed program may take to die before it is left behind */
};

struct run_result {
    int exit_code;                   /* 0..255, or -1: ended by a signal */
    int signal;                      /* that one, or 0 */
    char output[RUN_OUTPUT_MAX + 1]; /* the end of stdout and stderr, NUL-terminated */
};

/* Runs argv[0] (found in PATH; argv ends with NULL) with no input, in a process group of its own,
 * and waits. Blocks; any thread. 0: it ended, ret says how. -ERR_TIMEOUT: it was killed after
 * timeout_ms (0: no limit). -ERR_CANCELLED: it was killed because run_stop_all was called.
 * -ERR_CONFIG: there is no such program. */
int run_program(const char *const *argv, uint32_t timeout_ms, struct run_result *ret,
                struct err *e);

/* The same, but an exit code other than 0 is -ERR_IO with the end of its output in the text. */
int run_checked(const char *const *argv, uint32_t timeout_ms, struct err *e);

/* Kills what runs, and refuses to run more: the process is about to end. Any thread. */
void run_stop_all(void);
