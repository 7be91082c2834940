/* Threads of this room: a name, a stack of a known size, and no signals (they are main's). */
#pragma once

#include <pthread.h>

#include "common/base.h"

enum { RPC_STACK_SIZE = 512 * 1024 }; /* bytes; handlers run on it */

/* The name is at most 15 bytes. No memory for a thread is fatal: threads are only started when the
 * program starts. */
void thread_start(pthread_t *thread, const char *name, void *(*fn)(void *arg), void *arg);
