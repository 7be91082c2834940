/* The control protocol: lines decoded and encoded, and a server asked by clients good and bad. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/control/client.h"
#include "portalbd/control/server.h"
#include "tests/support/temp.h"

#define VOLUME "pv-0123456789abcdef0123456789abcdef-1.pool"

/* --- lines --- */

static void test_requests_that_are_none(void **state) {
    (void)state;
    static const struct {
        const char *line;
        int rc;
        int id;
    } cases[] = {
        {"", -ERR_INVALID, -1},
        {"x", -ERR_INVALID, -1},
        {"[]", -ERR_INVALID, -1},
        {"{}", -ERR_UNSUPPORTED, -1},
        {"{\"id\":3}", -ERR_UNSUPPORTED, 3},
        {"{\"v\":2,\"id\":3,\"verb\":\"status\"}", -ERR_UNSUPPORTED, 3},
        {"{\"v\":1,\"verb\":\"status\"}", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":-3,\"verb\":\"status\"}", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":1.5,\"verb\":\"status\"}", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":\"1\",\"verb\":\"status\"}", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":1}", -ERR_INVALID, 1},
        {"{\"v\":1,\"id\":1,\"verb\":7}", -ERR_INVALID, 1},
        {"{\"v\":1,\"id\":1,\"verb\":\"0123456789012345678901234567890123\"}", -ERR_INVALID, 1},
        {"{\"v\":1,\"id\":1,\"verb\":\"status\",\"args\":[]}", -ERR_INVALID, 1},
        {"{\"v\":1,\"id\":1,\"id\":2,\"verb\":\"status\"}", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":1,\"verb\":\"status\"} x", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":1,\"verb\":\"a\\u0000b\"}", -ERR_INVALID, -1},
        {"{\"v\":1,\"id\":1,\"verb\":\"\xff\"}", -ERR_INVALID, -1},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct control_request r;
        struct err e = {0};
        assert_int_equal(control_request_decode(&r, view_of_str(cases[i].line), &e), cases[i].rc);
        assert_true(e.text[0] != '\0');
        assert_int_equal(r.id, cases[i].id);
        assert_null(r.args);
    }
}

static void test_requests_go_round(void **state) {
    (void)state;
    struct buf b = {0};
    json_t *args = json_pack("{s:I,s:s}", "size_bytes", (json_int_t)4096, "name", "n");
    assert_int_equal(control_request_encode(&b, 7, "grow", args, NULL), 0);
    static const char want[] =
        "{\"v\":1,\"id\":7,\"verb\":\"grow\",\"args\":{\"size_bytes\":4096,\"name\":\"n\"}}\n";
    assert_true(view_equal(buf_view(&b), view_of_str(want)));
    struct control_request r;
    struct err e;
    assert_int_equal(control_request_decode(&r, view_of(b.data, b.len - 1), &e), 0);
    assert_int_equal(r.id, 7);
    assert_string_equal(r.verb, "grow");
    uint64_t size;
    const char *name;
    assert_int_equal(control_arg_u64(r.args, "size_bytes", &size, &e), 0);
    assert_int_equal(size, 4096);
    assert_int_equal(control_arg_string(r.args, "name", &name, &e), 0);
    assert_int_equal(control_arg_u64(r.args, "name", &size, &e), -ERR_INVALID);
    assert_int_equal(control_arg_string(r.args, "none", &name, &e), -ERR_INVALID);
    control_request_release(&r);
    json_decref(args);

    char *long_text = xmalloc(CONTROL_LINE_MAX + 1);
    memset(long_text, 'a', CONTROL_LINE_MAX);
    long_text[CONTROL_LINE_MAX] = '\0';
    args = json_pack("{s:s}", "name", long_text);
    buf_clear(&b);
    assert_int_equal(control_request_encode(&b, 7, "grow", args, &e), -ERR_INVALID);
    assert_int_equal(b.len, 0);
    control_reply_encode(&b, 7, args); /* too long: becomes an error */
    json_t *result = NULL;
    assert_int_equal(control_reply_decode(view_of(b.data, b.len - 1), 7, &result, &e),
                     -ERR_OVERLOAD);
    json_decref(args);
    free(long_text);
    buf_release(&b);
}

static void test_replies(void **state) {
    (void)state;
    struct buf b = {0};
    struct err e = {0}, back = {0};
    json_t *result = NULL;
    /* Every code of the table arrives as itself. */
    static const int codes[] = {
#define ERR_CODE(name, eno, retryable, nbd, grpc) -ERR_##name,
#include "common/err_codes.def"
#undef ERR_CODE
    };
    for (size_t i = 0; i < ARRAY_LEN(codes); i++) {
        buf_clear(&b);
        err_set_text(&e, codes[i], "text %zu", i);
        control_error_encode(&b, 3, &e);
        assert_int_equal(control_reply_decode(view_of(b.data, b.len - 1), 3, &result, &back),
                         codes[i]);
        assert_string_equal(back.text, e.text);
    }
    static const char *const bad[] = {"",
                                      "{}",
                                      "{\"id\":3}",
                                      "{\"id\":4,\"result\":{}}",
                                      "{\"id\":3,\"result\":[]}",
                                      "{\"id\":3,\"error\":{}}",
                                      "{\"id\":3,\"error\":\"x\"}"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(control_reply_decode(view_of_str(bad[i]), 3, &result, &back),
                         -ERR_CORRUPT);
    buf_clear(&b); /* a text that is not UTF-8 */
    strcpy(e.text, "\xff");
    control_error_encode(&b, 3, &e);
    assert_int_equal(control_reply_decode(view_of(b.data, b.len - 1), 3, &result, &back), e.code);
    assert_null(result);
    buf_release(&b);
}

/* --- the server --- */

struct fixture {
    struct loop *loop;
    struct control_server *server;
    char *dir;
    int handled;
    int given_fd; /* what the verb "descriptor" hands over */
};

static int handle(void *arg, const char *verb, const json_t *args, json_t **ret_result, int *ret_fd,
                  struct err *e) {
    struct fixture *f = arg;
    f->handled++;
    if (strcmp(verb, "echo") == 0) {
        *ret_result = json_deep_copy(args);
        return 0;
    }
    if (strcmp(verb, "sleep") == 0) {
        if (fiber_sleep_us(loop_env(f->loop), 300 * 1000) < 0)
            return err_set(e, -ERR_CANCELLED, "cancelled");
        *ret_result = json_object();
        return 0;
    }
    if (strcmp(verb, "large") == 0) {
        char text[60000];
        memset(text, 'b', sizeof text - 1);
        text[sizeof text - 1] = '\0';
        *ret_result = json_pack("{s:s}", "text", text);
        return 0;
    }
    if (strncmp(verb, "descriptor", 10) == 0) {
        if (strcmp(verb, "descriptor.late") == 0)
            CHECK(fiber_sleep_us(loop_env(f->loop), 100 * 1000) == 0);
        *ret_fd = f->given_fd;
        *ret_result = json_deep_copy(args);
        return 0;
    }
    return err_set(e, -ERR_UNSUPPORTED, "there is no verb '%s'", verb);
}

static void start_fiber(void *arg) {
    struct fixture *f = arg;
    struct err e;
    struct control_server_config config = {
        .loop = f->loop, .run_dir = f->dir, .volume = VOLUME, .handle = handle, .arg = f};
    CHECK(control_server_start(&config, &f->server, &e) == 0);
}

static void stop_fiber(void *arg) {
    struct fixture *f = arg;
    control_server_stop(f->server);
}

static void start(struct fixture *f) {
    *f = (struct fixture){.loop = loop_new(1), .dir = temp_folder_new()};
    loop_thread_start(f->loop, "control");
    loop_call(f->loop, start_fiber, f);
}

static void stop(struct fixture *f) {
    struct err e;
    loop_call(f->loop, stop_fiber, f);
    loop_thread_stop(f->loop);
    loop_free(f->loop);
    assert_false(control_is_live(f->dir, VOLUME));
    json_t *result = NULL;
    assert_int_equal(control_call(f->dir, VOLUME, "echo", NULL, 1000000, &result, &e),
                     -ERR_NOT_FOUND);
    char **volumes;
    size_t count;
    assert_int_equal(control_list(f->dir, &volumes, &count, &e), 0);
    assert_int_equal(count, 0);
    free(volumes);
    temp_folder_free(f->dir);
}

static void test_calls(void **state) {
    (void)state;
    struct fixture f;
    struct err e;
    start(&f);
    assert_true(control_is_live(f.dir, VOLUME));
    char *path = xasprintf("%s/%s.sock", f.dir, VOLUME);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    free(path);
    char **volumes;
    size_t count;
    char *agent = xasprintf("%s/" CONTROL_AGENT_NAME ".sock", f.dir); /* stands beside */
    int made = open(agent, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_true(made >= 0);
    close(made);
    assert_int_equal(control_list(f.dir, &volumes, &count, &e), 0);
    assert_int_equal(unlink(agent), 0);
    free(agent);
    assert_int_equal(count, 1);
    assert_string_equal(volumes[0], VOLUME);
    free(volumes[0]);
    free(volumes);

    json_t *args = json_pack("{s:s}", "a", "\xc3\xa9"), *result = NULL;
    for (unsigned i = 0; i < 100; i++) { /* more than may be connected at once */
        assert_int_equal(control_call(f.dir, VOLUME, "echo", args, 5000000, &result, &e), 0);
        assert_true(json_equal(args, result));
        json_decref(result);
    }
    json_decref(args);
    assert_int_equal(control_call(f.dir, VOLUME, "none", NULL, 5000000, &result, &e),
                     -ERR_UNSUPPORTED);
    assert_string_equal(e.text, "there is no verb 'none'");
    assert_int_equal(control_call(f.dir, VOLUME, "sleep", NULL, 20000, &result, &e), -ERR_TIMEOUT);
    assert_int_equal(control_call(f.dir, VOLUME, "sleep", NULL, 5000000, &result, &e), 0);
    json_decref(result);
    assert_int_equal(control_call(f.dir, VOLUME, "large", NULL, 5000000, &result, &e), 0);
    assert_int_equal(json_string_length(json_object_get(result, "text")), 59999);
    json_decref(result);
    assert_int_equal(control_call(f.dir, "../x", "echo", NULL, 1000, &result, &e), -ERR_INVALID);
    stop(&f);
}

static int dial(struct fixture *f) {
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    assert_true(snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s.sock", f->dir, VOLUME) <
                (int)sizeof addr.sun_path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    return fd;
}

static void say(int fd, const char *text) {
    size_t len = strlen(text);
    assert_int_equal(send(fd, text, len, MSG_NOSIGNAL), (ssize_t)len);
}

/* A line, which must begin like this. */
static void expect_line(int fd, const char *prefix) {
    char line[4096];
    size_t n = 0;
    while (n < sizeof line - 1) {
        assert_int_equal(recv(fd, line + n, 1, 0), 1);
        if (line[n++] == '\n')
            break;
    }
    line[n] = '\0';
    if (strncmp(line, prefix, strlen(prefix)) != 0)
        print_error("heard %s", line);
    assert_memory_equal(line, prefix, strlen(prefix));
}

/* A pipe's write end, handed over: the read end sees its end once every copy is closed. */
static int give_pipe(struct fixture *f) {
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    f->given_fd = ends[1];
    return ends[0];
}

static void expect_all_copies_closed(int read_end) {
    char c;
    struct pollfd p = {.fd = read_end};
    assert_int_equal(poll(&p, 1, 5000), 1);
    assert_int_equal(read(read_end, &c, 1), 0);
    close(read_end);
}

static void test_descriptors(void **state) {
    (void)state;
    struct fixture f;
    struct err e;
    json_t *result = NULL;
    start(&f);
    int read_end = give_pipe(&f), fd = -1;
    assert_int_equal(control_call_fd(f.dir, VOLUME, "descriptor", NULL, 5000000, &result, &fd, &e),
                     0);
    json_decref(result);
    assert_true(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    char c;
    assert_int_equal(write(fd, "x", 1), 1);
    assert_int_equal(read(read_end, &c, 1), 1);
    close(fd);
    expect_all_copies_closed(read_end); /* the server's too */

    /* Who does not ask for it gets the answer, and keeps no descriptor. */
    read_end = give_pipe(&f);
    assert_int_equal(control_call(f.dir, VOLUME, "descriptor", NULL, 5000000, &result, &e), 0);
    json_decref(result);
    expect_all_copies_closed(read_end);
    read_end = give_pipe(&f);
    int plain = dial(&f);
    say(plain, "{\"v\":1,\"id\":1,\"verb\":\"descriptor\"}\n"
               "{\"v\":1,\"id\":2,\"verb\":\"echo\"}\n");
    expect_line(plain, "{\"v\":1,\"id\":1,\"result\":{}}\n");
    expect_line(plain, "{\"v\":1,\"id\":2,\"result\":{}}\n");
    expect_all_copies_closed(read_end);
    close(plain);

    /* A verb without one, and one that fails. */
    assert_int_equal(control_call_fd(f.dir, VOLUME, "echo", NULL, 5000000, &result, &fd, &e), 0);
    assert_int_equal(fd, -1);
    json_decref(result);
    fd = 77;
    assert_int_equal(control_call_fd(f.dir, VOLUME, "none", NULL, 5000000, &result, &fd, &e),
                     -ERR_UNSUPPORTED);
    assert_int_equal(fd, 77);
    stop(&f);
}

/* The client has gone when the answer is due. */
static void test_descriptor_nobody_waits_for(void **state) {
    (void)state;
    struct fixture f;
    start(&f);
    int read_end = give_pipe(&f);
    int fd = dial(&f);
    say(fd, "{\"v\":1,\"id\":1,\"verb\":\"descriptor.late\"}\n");
    close(fd);
    expect_all_copies_closed(read_end);
    stop(&f);
}

/* What is no request gets an error, and the requests around it their answers, in order. */
static void test_malformed_lines_lose_nothing(void **state) {
    (void)state;
    struct fixture f;
    start(&f);
    int fd = dial(&f);
    say(fd, "{\"v\":1,\"id\":1,\"verb\":\"echo\"}\nrubbish\n\n"
            "{\"v\":1,\"id\":2,\"verb\":\"sleep\"}\n{\"v\":9,\"id\":3}\n"
            "{\"v\":1,\"id\":4,\"verb\":\"echo\",\"args\":{\"x\":1}}\n");
    expect_line(fd, "{\"v\":1,\"id\":1,\"result\":{}}\n");
    expect_line(fd, "{\"v\":1,\"id\":-1,\"error\":{\"code\":\"INVALID\"");
    expect_line(fd, "{\"v\":1,\"id\":-1,\"error\":{\"code\":\"INVALID\"");
    expect_line(fd, "{\"v\":1,\"id\":2,\"result\":{}}\n");
    expect_line(fd, "{\"v\":1,\"id\":3,\"error\":{\"code\":\"UNSUPPORTED\"");
    expect_line(fd, "{\"v\":1,\"id\":4,\"result\":{\"x\":1}}\n");
    char *much = xmalloc(3 * CONTROL_LINE_MAX);
    memset(much, 'x', 3 * CONTROL_LINE_MAX - 1);
    much[3 * CONTROL_LINE_MAX - 1] = '\0';
    say(fd, much);
    say(fd, "\n{\"v\":1,\"id\":5,\"verb\":\"echo\"}\n");
    expect_line(fd, "{\"v\":1,\"id\":-1,\"error\":{\"code\":\"INVALID\",\"text\":\"a line has");
    expect_line(fd, "{\"v\":1,\"id\":5,\"result\":{}}\n");
    free(much);
    /* In pieces. */
    const char *line = "{\"v\":1,\"id\":6,\"verb\":\"echo\"}\n";
    for (size_t i = 0; line[i]; i++) {
        assert_int_equal(send(fd, line + i, 1, 0), 1);
        usleep(200);
    }
    expect_line(fd, "{\"v\":1,\"id\":6,\"result\":{}}\n");
    close(fd);
    stop(&f);
}

/* Clients that go away, do not read, or are many. */
static void test_rude_clients(void **state) {
    (void)state;
    struct fixture f;
    struct err e;
    start(&f);
    int fds[CONTROL_CONNECTIONS_MAX + 8];
    for (size_t i = 0; i < ARRAY_LEN(fds); i++)
        fds[i] = dial(&f);
    for (size_t i = 0; i < CONTROL_CONNECTIONS_MAX; i++)
        say(fds[i], i % 2 ? "{\"v\":1,\"id\":1,\"verb\":\"sleep\"}\n" : "half a line");
    for (unsigned i = 0; i < 20; i++) /* nobody reads these */
        say(fds[1], "{\"v\":1,\"id\":1,\"verb\":\"large\"}\n");
    for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
        if (i != 1)
            close(fds[i]);
    }
    json_t *result = NULL;
    assert_int_equal(control_call(f.dir, VOLUME, "echo", NULL, 5000000, &result, &e), 0);
    json_decref(result);
    stop(&f); /* with one that is stuck in an answer */
    close(fds[1]);
}

/* A socket that a dead process left is replaced. */
static void test_stale_socket(void **state) {
    (void)state;
    struct fixture f = {.dir = temp_folder_new()};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof addr.sun_path, "%s/%s.sock", f.dir, VOLUME);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof addr), 0);
    close(fd);
    assert_false(control_is_live(f.dir, VOLUME));
    f.loop = loop_new(1);
    loop_thread_start(f.loop, "control");
    loop_call(f.loop, start_fiber, &f);
    assert_true(control_is_live(f.dir, VOLUME));
    stop(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_requests_that_are_none),
        cmocka_unit_test(test_requests_go_round),
        cmocka_unit_test(test_replies),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_descriptor_nobody_waits_for),
        cmocka_unit_test(test_malformed_lines_lose_nothing),
        cmocka_unit_test(test_rude_clients),
        cmocka_unit_test(test_stale_socket),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
