/* A process under a file system: when memory is short the kernel writes through us, so we must not
 * wait for memory ourselves, be swapped out, or be the first to be killed. */
#include <fcntl.h>
#include <linux/capability.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "common/log.h"
#include "portalbd/daemon/daemon.h"

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif
#ifndef MCL_ONFAULT
#define MCL_ONFAULT 4
#endif

static bool has_capability(unsigned capability) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data) < 0)
        return false;
    return data[capability / 32].effective & 1u << capability % 32;
}

/* A limit would make allocations fail later: then rather not at all. */
static bool lock_memory(void) {
    struct rlimit limit;
    bool unlimited = getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY;
    if (!unlimited && !has_capability(CAP_IPC_LOCK))
        return false;
    return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0;
}

static bool protect_from_oom(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    static const char score[] = "-999";
    bool written = write(fd, score, strlen(score)) == (ssize_t)strlen(score);
    close(fd);
    return written;
}

enum { STACK_SIZE = 512 * 1024 }; /* of threads that libraries start; getaddrinfo needs some */

enum {
    BLOCK_BYTES_MAX = 2 * 1024 * 1024, /* of the heap; larger ones are mappings of their own */
    SPARE_BYTES_MAX = 32 * 1024 * 1024,
};

/* Bodies of flushes and GETs come and go: kept in the heap, their pages are not faulted in anew
 * each time. Bodies of whole segments would leave holes there that nothing else fills, and that a
 * locked heap never gives back: as much again as is in use. What is free at the heap's end beyond
 * the second figure goes back to the kernel. One arena: what one thread frees is there for all
 * (docs/decisions/0009-libcurl-by-malloc.md). */
void process_tune_memory(void) {
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, BLOCK_BYTES_MAX);
    mallopt(M_TRIM_THRESHOLD, SPARE_BYTES_MAX);
    pthread_attr_t attr;
    CHECK(pthread_attr_init(&attr) == 0);
    CHECK(pthread_attr_setstacksize(&attr, STACK_SIZE) == 0);
    CHECK(pthread_setattr_default_np(&attr) == 0);
    pthread_attr_destroy(&attr);
}

void process_harden(void) {
    if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0)
        log_warn("PR_SET_IO_FLUSHER is refused (it needs CAP_SYS_RESOURCE): when memory is short, "
                 "the kernel may wait for this device to get memory for it",
                 LOG_ERRNO(errno));
    if (!lock_memory())
        log_warn("locking memory is refused (it needs CAP_IPC_LOCK): when memory is short, this "
                 "process may be swapped out under its device");
    if (!protect_from_oom())
        log_warn("oom_score_adj is refused (it needs CAP_SYS_RESOURCE): when memory is short, this "
                 "process may be killed first");
}
