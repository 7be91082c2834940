/* The one message of sd_notify(3) that we send; a library for it would be one dependency more. */
#include "common/service.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/base.h"
#include "common/err.h"
#include "common/log.h"

static int send_to(const char *path, const char *message) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof addr.sun_path) {
        errno = EINVAL;
        return -1;
    }
    memcpy(addr.sun_path, path, len);
    if (path[0] == '@') /* an abstract socket */
        addr.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    ssize_t n = sendto(fd, message, strlen(message), MSG_NOSIGNAL, (struct sockaddr *)&addr,
                       (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len));
    int eno = errno;
    close(fd);
    errno = eno;
    return n < 0 ? -1 : 0;
}

void service_ready(void) {
    struct err e;
    const char *path = getenv("NOTIFY_SOCKET");
    if (!path)
        return;
    if (send_to(path, "READY=1") < 0) {
        err_from_errno(&e, errno, "notify socket %s", path);
        log_warn("the service manager is not told that this program serves", LOG_ERR(&e));
    }
    unsetenv("NOTIFY_SOCKET");
}
