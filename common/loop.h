/* The real env: one thread's event loop (libuv), watched file descriptors, signals and a pool of
 * workers.
 *
 * The thread that calls loop_run is the owner thread of loop_env(). Unless a function says
 * otherwise it is called on the owner thread, or before loop_run. */
#pragma once

#include "common/env.h"
#include "common/err.h"

struct loop;

/* workers: threads for env jobs, 1..LOOP_WORKERS_MAX. */
enum { LOOP_WORKERS_MAX = 64 };
struct loop *loop_new(unsigned workers);
/* After loop_run has returned and everything that was started is stopped; ends the workers. */
void loop_free(struct loop *loop);

struct env *loop_env(struct loop *loop);

/* Runs until loop_stop. May be called again afterwards. */
void loop_run(struct loop *loop);
/* Any thread. */
void loop_stop(struct loop *loop);

/* A watched file descriptor (borrowed). fn is called again and again while the condition holds.
 * Zero-initialised is stopped. */
enum { LOOP_READABLE = 1, LOOP_WRITABLE = 2 };
struct loop_watch {
    void (*fn)(struct loop_watch *watch,
               int events); /* LOOP_x bits; errors and hang-ups show as all that was asked */
    void *handle;           /* loop's own */
};
int loop_watch_start(struct loop *loop, struct loop_watch *watch, int fd, int events,
                     struct err *e); /* or change events */
void loop_watch_stop(
    struct loop_watch *watch); /* before the fd is closed; fn is not called any more */

/* fn(signum) on the owner thread whenever the signal comes. */
struct loop_signal {
    void (*fn)(struct loop_signal *sig, int signum);
    void *handle; /* loop's own */
};
int loop_signal_start(struct loop *loop, struct loop_signal *sig, int signum, struct err *e);
void loop_signal_stop(struct loop_signal *sig);

/* Runs fn(arg) in a fiber of the loop and waits for it: how other threads do something on the owner
 * thread. Any other thread, while the loop runs. */
void loop_call(struct loop *loop, void (*fn)(void *arg), void *arg);

/* Runs the loop on a thread of its own until loop_thread_stop, which also joins it. The thread's
 * name is at most 15 bytes. */
void loop_thread_start(struct loop *loop, const char *name);
void loop_thread_stop(struct loop *loop);
