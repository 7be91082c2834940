/* Where the control socket is. */
#pragma once

#include <sys/un.h>

#include "common/err.h"

#define CONTROL_SOCKET_SUFFIX ".sock"

/* The address of <run_dir>/<volume>.sock, however long that path is: it goes through a descriptor
 * of the folder, which is returned and has to be open while the address is used. -ERR_NOT_FOUND:
 * there is no such folder. -ERR_INVALID: not a volume's id. */
int control_address(const char *run_dir, const char *volume, struct sockaddr_un *ret_addr,
                    int *ret_dir_fd, struct err *e);
