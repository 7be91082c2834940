/* Threads of this room. */
#include "csi/rpc/thread.h"

#include <signal.h>

void thread_start(pthread_t *thread, const char *name, void *(*fn)(void *arg), void *arg) {
    pthread_attr_t attr;
    sigset_t all, before;
    sigfillset(&all);
    CHECK(pthread_attr_init(&attr) == 0);
    CHECK(pthread_attr_setstacksize(&attr, RPC_STACK_SIZE) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
    CHECK(pthread_create(thread, &attr, fn, arg) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
    CHECK(pthread_setname_np(*thread, name) == 0);
    pthread_attr_destroy(&attr);
}
