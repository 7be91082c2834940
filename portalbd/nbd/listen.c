/* Sockets that listen. A unix socket is never reachable by others than its owner, not even for a
 * moment: its mode is set before it is bound. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/options.h"
#include "portalbd/nbd/server_internal.h"

enum { BACKLOG = 128 };

/* Is there a socket file that nobody listens at? Then it is removed. */
static int remove_stale(const struct sockaddr_un *addr, struct err *e) {
    struct stat st;
    if (lstat(addr->sun_path, &st) < 0)
        return errno == ENOENT ? 0 : err_from_errno(e, errno, "socket %s", addr->sun_path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(e, -ERR_IN_USE, "socket %s: there is a file that is not a socket",
                       addr->sun_path);
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (probe < 0)
        return err_from_errno(e, errno, "socket %s", addr->sun_path);
    int rc = connect(probe, (const struct sockaddr *)addr, sizeof *addr), eno = errno;
    close(probe);
    if (rc == 0 || eno == EAGAIN)
        return err_set(e, -ERR_IN_USE, "socket %s: another process listens there", addr->sun_path);
    if (eno == ENOENT)
        return 0;
    if (eno != ECONNREFUSED)
        return err_from_errno(e, eno, "socket %s", addr->sun_path);
    if (unlink(addr->sun_path) < 0 && errno != ENOENT)
        return err_from_errno(e, errno, "remove stale socket %s", addr->sun_path);
    return 0;
}

int nbd_socket_unix(const char *path, struct err *e) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (path[0] == '\0' || strlen(path) >= sizeof addr.sun_path)
        return err_set(e, -ERR_INVALID, "socket '%s': a path has 1 to %zu bytes", path,
                       sizeof addr.sun_path - 1);
    strcpy(addr.sun_path, path);
    int rc = remove_stale(&addr, e);
    if (rc < 0)
        return rc;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_from_errno(e, errno, "socket %s", path);
    /* On Linux bind() gives the file the mode of the socket. */
    if (fchmod(fd, 0600) < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0 ||
        listen(fd, BACKLOG) < 0) {
        rc = errno == EADDRINUSE
                 ? err_set(e, -ERR_IN_USE, "socket %s: another process has it", path)
                 : err_from_errno(e, errno, "listen at socket %s", path);
        close(fd);
        return rc;
    }
    return fd;
}

/* "host:port", "[v6]:port" into an address of a loopback interface. */
static int parse_loopback(const char *text, struct sockaddr_storage *ret, socklen_t *ret_len,
                          struct err *e) {
    const char *colon = strrchr(text, ':');
    uint64_t port;
    if (!colon || colon == text || option_parse_u64(colon + 1, &port, NULL) < 0 || port > 65535)
        return err_set(e, -ERR_INVALID, "address '%s' is not host:port", text);
    char host[64];
    size_t len = (size_t)(colon - text);
    bool bracketed = len >= 2 && text[0] == '[' && colon[-1] == ']';
    snprintf(host, sizeof host, "%.*s", (int)MIN(bracketed ? len - 2 : len, sizeof host - 1),
             text + bracketed);
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;
    memset(ret, 0, sizeof *ret);
    bool loopback = false;
    if (strcmp(host, "localhost") == 0)
        strcpy(host, "127.0.0.1");
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)port);
        *ret_len = sizeof *v4;
        loopback = ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)port);
        *ret_len = sizeof *v6;
        loopback = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
    }
    if (!loopback)
        return err_set(e, -ERR_INVALID,
                       "address '%s' is not a loopback address: NBD here has no encryption and no "
                       "passwords, so TCP is for 127.0.0.0/8, [::1] and localhost only",
                       text);
    return 0;
}

int nbd_socket_tcp(const char *address, uint16_t *ret_port, struct err *e) {
    struct sockaddr_storage addr;
    socklen_t len;
    int rc = parse_loopback(address, &addr, &len, e);
    if (rc < 0)
        return rc;
    int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;
    if (fd < 0)
        return err_from_errno(e, errno, "listen at %s", address);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&addr, len) < 0 || listen(fd, BACKLOG) < 0 ||
        getsockname(fd, (struct sockaddr *)&addr, &len) < 0) {
        rc = errno == EADDRINUSE
                 ? err_set(e, -ERR_IN_USE, "%s: another process listens there", address)
                 : err_from_errno(e, errno, "listen at %s", address);
        close(fd);
        return rc;
    }
    if (ret_port)
        *ret_port = ntohs(addr.ss_family == AF_INET ? ((struct sockaddr_in *)&addr)->sin_port
                                                    : ((struct sockaddr_in6 *)&addr)->sin6_port);
    return fd;
}
