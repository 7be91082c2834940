/* The HTTP server, spoken to over a plain socket. */
#include "tests/support/test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/http.h"

static char answer[64 * 1024];

static const char *request(uint16_t port, const char *text) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    size_t len = 0;
    ssize_t n;
    while ((n = read(fd, answer + len, sizeof answer - 1 - len)) > 0)
        len += (size_t)n;
    answer[len] = '\0';
    close(fd);
    return answer;
}

static bool healthy(void *arg, struct buf *text) {
    buf_append_str(text, "volume a: waiting for the store\n");
    return *(bool *)arg;
}

#define GET(path) "GET " path " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

static void test_answers(void **state) {
    (void)state;
    struct metrics *m = metrics_new();
    struct metrics_counter c = {5};
    struct metrics_group *g = metrics_group_new(m, NULL);
    metrics_counter_register(g, &c, "portalbd_x_total", "X.", NULL);
    bool health = true;
    struct http_server *s = NULL;
    struct err e = {0};
    struct http_config config = {.metrics = m, .healthy = healthy, .arg = &health};
    assert_int_equal(http_server_start(&config, &s, &e), 0);
    uint16_t port = http_server_port(s);
    assert_int_not_equal(port, 0);

    assert_non_null(strstr(request(port, GET("/metrics")), "HTTP/1.1 200 "));
    assert_non_null(strstr(answer, "\r\n\r\n# HELP portalbd_x_total X.\n"));
    assert_non_null(strstr(answer, "\nportalbd_x_total 5\n"));
    assert_non_null(strcasestr(answer, "content-type: text/plain; version=0.0.4"));
    assert_non_null(strstr(request(port, GET("/healthz")), "HTTP/1.1 200 "));
    health = false;
    assert_non_null(strstr(request(port, GET("/healthz")), "HTTP/1.1 503 "));
    assert_non_null(strstr(answer, "waiting for the store\n"));
    assert_non_null(strstr(request(port, GET("/")), "HTTP/1.1 404 "));
    assert_non_null(
        strstr(request(port, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
                             "Connection: close\r\n\r\nabc"),
               "HTTP/1.1 405 "));
    assert_null(strstr(request(port, "nonsense\r\n\r\n"), " 200 "));

    struct http_server *second = NULL;
    config.port = port;
    assert_int_equal(http_server_start(&config, &second, &e), -ERR_IN_USE);
    assert_non_null(strstr(e.text, "is taken"));
    config.addr = "localhost";
    assert_int_equal(http_server_start(&config, &second, &e), -ERR_INVALID);
    http_server_stop(s);
    metrics_group_free(g);
    metrics_free(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_answers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
