/* What a service manager is told: on a socket in the file system, on an abstract one, on none. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/mem.h"
#include "common/service.h"
#include "tests/support/temp.h"

static int listen_at(const char *name) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    memcpy(addr.sun_path, name, strlen(name));
    if (name[0] == '@')
        addr.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr,
                          (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name))),
                     0);
    return fd;
}

static void check_told(const char *name) {
    char message[64] = "";
    int fd = listen_at(name);
    setenv("NOTIFY_SOCKET", name, 1);
    service_ready();
    assert_int_equal(recv(fd, message, sizeof message - 1, 0), strlen("READY=1"));
    assert_string_equal(message, "READY=1");
    assert_null(getenv("NOTIFY_SOCKET"));
    service_ready(); /* once */
    assert_int_equal(recv(fd, message, sizeof message - 1, 0), -1);
    close(fd);
}

static void test_told(void **state) {
    (void)state;
    char *folder = temp_folder_new();
    CLEANUP_FREE char *path = xasprintf("%s/notify", folder);
    CLEANUP_FREE char *abstract = xasprintf("@portalbd-test-%d", (int)getpid());
    check_told(path);
    check_told(abstract);
    temp_folder_free(folder);
}

static void test_nobody(void **state) {
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    service_ready();
    setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1);
    service_ready();
    assert_null(getenv("NOTIFY_SOCKET"));
    setenv("NOTIFY_SOCKET", "", 1);
    service_ready();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_told),
        cmocka_unit_test(test_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
