/* Where the control socket is. A sun_path has 108 bytes; run folders of tests and long ids do not
 * fit, /proc/self/fd/N/<volume>.sock always does. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "portalbd/control/socket_internal.h"

int control_address(const char *run_dir, const char *volume, struct sockaddr_un *ret_addr,
                    int *ret_dir_fd, struct err *e) {
    if (volume[0] == '\0' || volume[0] == '.' || strchr(volume, '/'))
        return err_set(e, -ERR_INVALID, "'%s' is not a volume's id", volume);
    int fd = open(run_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "run folder %s", run_dir);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int n = snprintf(addr.sun_path, sizeof addr.sun_path, "/proc/self/fd/%d/%s%s", fd, volume,
                     CONTROL_SOCKET_SUFFIX);
    if (n >= (int)sizeof addr.sun_path) {
        close(fd);
        return err_set(e, -ERR_INVALID, "'%s' is longer than a volume's id", volume);
    }
    *ret_addr = addr;
    *ret_dir_fd = fd;
    return 0;
}
