/* The S3 client against a server that follows a script: what it sends, and what it makes of servers
 * that real ones do not show on demand. */
#include "tests/support/test.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/loop.h"
#include "portalbd/objstore/objstore_fiber.h"
#include "portalbd/objstore/s3.h"
#include "tests/support/temp.h"

enum { STEPS_MAX = 8, REQUEST_MAX = 64 * 1024 };

struct step {
    const char *answer; /* NULL: close without one */
    bool close;         /* after the answer */
    unsigned delay_ms;
};

/* One connection after the other, requests one after the other. */
struct server {
    int fd;
    uint16_t port;
    pthread_t thread;
    const struct step *steps;
    size_t step_count;
    size_t next;
    char *requests[STEPS_MAX]; /* owned: headers and body as they came */
    bool stop;                 /* atomic */
};

static size_t content_length(const char *request) {
    const char *h = strcasestr(request, "\r\ncontent-length:");
    return h ? strtoul(h + strlen("\r\ncontent-length:"), NULL, 10) : 0;
}

/* A whole request, or NULL when the client has closed. */
static char *read_request(int fd) {
    char *text = xcalloc(1, REQUEST_MAX);
    size_t len = 0;
    for (;;) {
        char *end = strstr(text, "\r\n\r\n");
        if (end && len >= (size_t)(end + 4 - text) + content_length(text))
            return text;
        ssize_t n = read(fd, text + len, REQUEST_MAX - 1 - len);
        if (n <= 0) {
            free(text);
            return NULL;
        }
        len += (size_t)n;
    }
}

static void serve(struct server *s, int fd) {
    char *request;
    while (s->next < s->step_count && (request = read_request(fd))) {
        const struct step *step = &s->steps[s->next];
        s->requests[s->next++] = request;
        usleep(step->delay_ms * 1000);
        if (step->answer)
            assert_true(send(fd, step->answer, strlen(step->answer), MSG_NOSIGNAL) >= 0);
        if (!step->answer || step->close)
            return;
    }
}

static void *server_main(void *arg) {
    struct server *s = arg;
    for (;;) {
        int fd = accept(s->fd, NULL, NULL);
        if (fd < 0 || __atomic_load_n(&s->stop, __ATOMIC_ACQUIRE))
            return NULL;
        serve(s, fd);
        close(fd);
    }
}

static void server_start(struct server *s, const struct step *steps, size_t count) {
    *s = (struct server){.steps = steps, .step_count = count};
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(s->fd, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(s->fd, 16), 0);
    assert_int_equal(getsockname(s->fd, (struct sockaddr *)&a, &len), 0);
    s->port = ntohs(a.sin_port);
    assert_int_equal(pthread_create(&s->thread, NULL, server_main, s), 0);
}

/* The client's connections are closed by then. */
static void server_join(struct server *s) {
    __atomic_store_n(&s->stop, true, __ATOMIC_RELEASE);
    shutdown(s->fd, SHUT_RDWR);
    pthread_join(s->thread, NULL);
    close(s->fd);
}

static void server_release(struct server *s) {
    for (size_t i = 0; i < s->next; i++)
        free(s->requests[i]);
}

struct fixture {
    struct server server;
    struct loop *loop;
    struct objstore *s;
    void (*body)(struct fixture *f);
    uint64_t stall_timeout_ms;
    bool web_identity;
};

static void run_body(void *arg) {
    struct fixture *f = arg;
    struct s3_credentials_source source;
    struct secret secret = {0}, token = {0};
    struct err e;
    secret_set(&secret, view_of_str("topsecret"));
    secret_set(&token, view_of_str("session-token"));
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "http://127.0.0.1:%u", f->server.port);
    if (f->web_identity) {
        setenv("AWS_ENDPOINT_URL_STS", endpoint, 1);
        assert_int_equal(s3_credentials_source_init(&source, NULL, NULL, NULL, "r", &e), 0);
    } else {
        assert_int_equal(s3_credentials_source_init(&source, "AK", &secret, &token, "r", &e), 0);
    }
    secret_release(&secret);
    secret_release(&token);
    f->s = objstore_s3_open(loop_env(f->loop),
                            &(struct s3_config){.endpoint = endpoint,
                                                .path_style = true,
                                                .bucket = "bucket",
                                                .prefix = "pool/",
                                                .region = "eu-west-1",
                                                .source = &source,
                                                .stall_timeout_ms = f->stall_timeout_ms});
    f->body(f);
    objstore_close(f->s);
}

static void run_script(struct fixture *f, const struct step *steps, size_t count,
                       void (*body)(struct fixture *f)) {
    f->body = body;
    f->loop = loop_new(1);
    server_start(&f->server, steps, count);
    loop_thread_start(f->loop, "test");
    loop_call(f->loop, run_body, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    server_join(&f->server);
    assert_int_equal(f->server.next, count);
}

static int put(struct fixture *f, const char *body) {
    struct err e;
    return objstore_put(f->s, "k y", view_of_str(body), NULL, &e);
}

static int get(struct fixture *f, const char *want) {
    CLEANUP_BUF struct buf b = {0};
    struct err e;
    int rc = objstore_get(f->s, "key", 100, &b, &e);
    if (rc == 0)
        assert_true(view_equal(buf_view(&b), view_of_str(want)));
    else
        assert_int_equal(b.len, 0);
    return rc;
}

static bool has(const struct fixture *f, size_t request, const char *text) {
    return strcasestr(f->server.requests[request], text) != NULL;
}

#define OK_EMPTY "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
#define OK_HELLO "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

static void put_ok(struct fixture *f) {
    assert_int_equal(put(f, "123456789"), 0);
}

static void test_what_a_put_sends(void **state) {
    (void)state;
    struct fixture f = {0};
    run_script(&f, (const struct step[]){{.answer = OK_EMPTY}}, 1, put_ok);
    assert_true(has(&f, 0, "PUT /bucket/pool/k%20y HTTP/1.1\r\n"));
    assert_true(has(&f, 0, "\r\nif-none-match: *\r\n"));
    assert_true(has(&f, 0, "\r\nx-amz-checksum-crc32c: 4waSgw==\r\n"));
    assert_true(has(&f, 0, "\r\nx-amz-content-sha256: UNSIGNED-PAYLOAD\r\n"));
    assert_true(has(&f, 0, "\r\nx-amz-security-token: session-token\r\n"));
    assert_true(has(&f, 0, "Credential=AK/"));
    assert_true(has(&f, 0,
                    "/eu-west-1/s3/aws4_request, SignedHeaders=content-type;host;"
                    "if-none-match;x-amz-checksum-crc32c;x-amz-content-sha256;x-amz-date;"
                    "x-amz-security-token, Signature="));
    assert_true(has(&f, 0, "\r\n\r\n123456789"));
    assert_false(has(&f, 0, "expect:"));
    assert_false(has(&f, 0, "topsecret"));
    server_release(&f.server);
}

static void put_twice(struct fixture *f) {
    assert_int_equal(put(f, "a"), -ERR_TRANSIENT);
    assert_int_equal(put(f, "a"), 0);
}

static void test_clock_skew_is_corrected(void **state) {
    (void)state;
    struct fixture f = {0};
    static const char skewed[] =
        "HTTP/1.1 403 Forbidden\r\nDate: Fri, 01 Jan 2038 00:00:00 GMT\r\nContent-Length: 54\r\n"
        "\r\n<Error><Code>RequestTimeTooSkewed</Code></Error>      ";
    run_script(&f, (const struct step[]){{.answer = skewed}, {.answer = OK_EMPTY}}, 2, put_twice);
    assert_true(has(&f, 1, "\r\nx-amz-date: 20380101T0000"));
    server_release(&f.server);
}

static void bad_gets(struct fixture *f) {
    assert_int_equal(get(f, ""), -ERR_TRANSIENT); /* cut */
    assert_int_equal(get(f, ""), -ERR_TRANSIENT); /* no answer */
    assert_int_equal(get(f, ""), -ERR_CORRUPT);   /* larger than 100 bytes */
    assert_int_equal(get(f, ""), -ERR_TRANSIENT); /* a redirect is not followed */
    assert_int_equal(get(f, "hello"), 0);
}

static void test_bad_answers_to_get(void **state) {
    (void)state;
    struct fixture f = {0};
    run_script(&f,
               (const struct step[]){
                   {.answer = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", .close = true},
                   {.answer = NULL},
                   {.answer = "HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\nhello", .close = true},
                   {.answer = "HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\n"
                              "Content-Length: 0\r\n\r\n"},
                   {.answer = OK_HELLO}},
               5, bad_gets);
    server_release(&f.server);
}

static void slow_get(struct fixture *f) {
    uint64_t start = env_now_us(f->s->env);
    assert_int_equal(get(f, ""), -ERR_TIMEOUT);
    assert_true(env_now_us(f->s->env) - start < 2900000);
}

static void test_a_stalled_server_times_out(void **state) {
    (void)state;
    struct fixture f = {.stall_timeout_ms = 1000};
    run_script(&f, (const struct step[]){{.answer = OK_HELLO, .delay_ms = 3000}}, 1, slow_get);
    server_release(&f.server);
}

static void get_after_dead_connection(struct fixture *f) {
    assert_int_equal(get(f, "hello"), 0);
    fiber_sleep_us(f->s->env, 50000); /* the server's close arrives */
    assert_int_equal(get(f, "hello"), 0);
    assert_int_equal(put(f, "body"), 0);
}

static void test_a_kept_connection_may_die(void **state) {
    (void)state;
    struct fixture f = {0};
    run_script(&f,
               (const struct step[]){
                   {.answer = OK_HELLO, .close = true}, {.answer = OK_HELLO}, {.answer = OK_EMPTY}},
               3, get_after_dead_connection);
    server_release(&f.server);
}

static void refused_twice_then_ok(struct fixture *f) {
    assert_int_equal(get(f, ""), -ERR_DENIED); /* STS says no */
    fiber_sleep_us(f->s->env, 5200000);        /* it is not asked more often than every 5 s */
    assert_int_equal(get(f, "hello"), 0);
    assert_int_equal(get(f, "hello"), 0);
}

static void test_web_identity(void **state) {
    (void)state;
    char *folder = temp_folder_new();
    char *path = xasprintf("%s/token", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("jwt", file);
    fclose(file);
    setenv("AWS_WEB_IDENTITY_TOKEN_FILE", path, 1);
    setenv("AWS_ROLE_ARN", "role", 1);
    unsetenv("AWS_ACCESS_KEY_ID");
    static const char xml[] =
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
        "<AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>tok"
        "</SessionToken><Expiration>2099-01-02T03:04:05Z</Expiration></Credentials>"
        "</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>";
    char *answer =
        xasprintf("HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", sizeof xml - 1, xml);
    struct fixture f = {.web_identity = true};
    run_script(&f,
               (const struct step[]){{.answer = "HTTP/1.1 403 No\r\nContent-Length: 62\r\n\r\n"
                                                "<ErrorResponse><Error><Code>X</Code></Error>"
                                                "</ErrorResponse>  "},
                                     {.answer = answer},
                                     {.answer = OK_HELLO},
                                     {.answer = OK_HELLO}},
               4, refused_twice_then_ok);
    assert_true(has(&f, 1, "WebIdentityToken=jwt"));
    assert_true(has(&f, 2, "Credential=ASIA/"));
    assert_true(has(&f, 2, "\r\nx-amz-security-token: tok\r\n"));
    server_release(&f.server);
    free(answer);
    free(path);
    temp_folder_free(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_a_put_sends),
        cmocka_unit_test(test_clock_skew_is_corrected),
        cmocka_unit_test(test_bad_answers_to_get),
        cmocka_unit_test(test_a_stalled_server_times_out),
        cmocka_unit_test(test_a_kept_connection_may_die),
        cmocka_unit_test(test_web_identity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
