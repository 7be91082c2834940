/* The ways to write a unix socket's address. */
#include "csi/rpc/endpoint.h"

#include <string.h>
#include <sys/un.h>

int endpoint_path(const char *endpoint, const char **ret_path, struct err *e) {
    const char *path = endpoint;
    if (strncmp(endpoint, "unix://", 7) == 0)
        path = endpoint + 7;
    else if (strncmp(endpoint, "unix:", 5) == 0)
        path = endpoint + 5;
    if (path[0] != '/' || path[1] == '\0')
        return err_set(e, -ERR_INVALID,
                       "endpoint '%s' is not a unix socket with an absolute path, such as "
                       "unix:///csi/csi.sock",
                       endpoint);
    size_t max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
    if (strlen(path) > max)
        return err_set(e, -ERR_INVALID, "endpoint '%s' is longer than the %zu bytes of a socket",
                       endpoint, max);
    *ret_path = path;
    return 0;
}
