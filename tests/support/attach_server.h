/* Stand-ins for daemons, in tests of attach backends: processes that serve one device's descriptor
 * from memory which they share with the test, so that it outlives each of them. Forked: the test
 * has no threads. */
#pragma once

#include <stdatomic.h>
#include <sys/types.h>

#include "common/base.h"
#include "portalbd/blockdev/blockdev.h"

enum { ATTACH_SERVER_HANDED_OVER = 5 }; /* its exit code, as a daemon's */

/* What all of them serve. */
struct served_memory {
    _Atomic uint64_t size_bytes;
    _Atomic uint64_t received[BD_OPS]; /* requests that a server read */
    _Atomic uint64_t answered[BD_OPS];
    _Atomic bool held; /* requests are read and kept without an answer meanwhile */
    _Atomic bool read_only;
    _Atomic unsigned delay_us; /* before each answer */
    uint8_t *data;             /* shared too */
    uint64_t room_bytes;       /* that the size may grow to */
};
struct served_memory *served_memory_new(uint64_t size_bytes, uint64_t room_bytes);
void served_memory_free(struct served_memory *m);

struct attach_server {
    pid_t pid; /* 0: none */
    int control;
};

/* Starts one that serves a copy of fd, and returns when it does. flag: attach_ops.daemon_flag. The
 * caller closes its own fd. */
void attach_server_start(struct attach_server *s, struct served_memory *m, const char *flag, int fd,
                         bool resume);
/* It has noticed that the memory has grown. */
void attach_server_grow(struct attach_server *s);
void attach_server_kill(struct attach_server *s);
/* Reads no more requests, answers those that it has, and ends; a copy of its descriptor. */
int attach_server_hand_over(struct attach_server *s);
/* Its exit code: 0, the device ended; 128 + the signal; -1: it still runs when the time is over. */
int attach_server_wait(struct attach_server *s, int timeout_ms);

/* The exit code of a child, as above. */
int child_wait(pid_t pid, int timeout_ms);
