/* A process under a file system: when memory is short the kernel writes through us, so we must not
 * wait for memory ourselves, be swapped out, or be the first to be killed. */
#include <fcntl.h>
#include <linux/capability.h>
#include <malloc.h>
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

/* Bodies of segments and GETs are megabytes that come and go: kept in the heap, their pages are not
 * faulted in anew each time. What is free beyond the second figure goes back to the kernel. */
void process_tune_memory(void) {
    mallopt(M_MMAP_THRESHOLD, 32 * 1024 * 1024);
    mallopt(M_TRIM_THRESHOLD, 32 * 1024 * 1024);
}

void process_harden(void) {
    bool flusher = prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) == 0;
    bool locked = lock_memory();
    bool protected_from_oom = protect_from_oom();
    if (!flusher || !locked || !protected_from_oom)
        log_warn("this process is not fully protected against memory pressure: it lacks "
                 "CAP_SYS_RESOURCE or CAP_IPC_LOCK",
                 LOG_BOOL("io_flusher", flusher), LOG_BOOL("memory_locked", locked),
                 LOG_BOOL("oom_protected", protected_from_oom));
}
