/* The log's lines, read back through a pipe. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"

static int pipe_fds[2];
static char line[2 * LOG_LINE_MAX];

static int setup(void **state) {
    (void)state;
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    log_set_context(NULL, NULL);
    log_init(&(struct log_config){.level = LOG_LEVEL_INFO});
    return 0;
}

static void start(enum log_format format) {
    log_init(&(struct log_config){.program = "prog", .format = format, .fd = pipe_fds[1]});
}

/* What was written since the last time; NULL when nothing was. */
static const char *written(void) {
    ssize_t n = read(pipe_fds[0], line, sizeof line - 1);
    if (n <= 0)
        return NULL;
    line[n] = '\0';
    return line;
}

/* The line without its time, which comes first in logfmt. */
static const char *written_after_time(void) {
    const char *text = written();
    assert_non_null(text);
    assert_int_equal(strncmp(text, "time=20", 7), 0);
    assert_int_equal(text[5 + 26], 'Z');
    return strchr(text, ' ') + 1;
}

static void test_logfmt(void **state) {
    (void)state;
    start(LOG_FORMAT_LOGFMT);
    log_info("segment stored", LOG_U64("seq", 7), LOG_STR("key", "a b"), LOG_I64("delta", -1),
             LOG_X64("epoch", 255), LOG_BOOL("fua", true), LOG_F64("ratio", 0.5),
             LOG_STR("none", NULL));
    assert_string_equal(written_after_time(),
                        "level=info program=prog msg=\"segment stored\" seq=7 key=\"a b\" delta=-1 "
                        "epoch=00000000000000ff fua=true ratio=0.5 none=\"\"\n");
    struct err e = {0};
    (void)err_set(&e, -ERR_NOT_FOUND, "no such volume: 'a'");
    log_warn("gave up", LOG_ERR(&e));
    assert_string_equal(
        written_after_time(),
        "level=warn program=prog msg=\"gave up\" error=\"no such volume: 'a'\" code=NOT_FOUND\n");
    log_error("plain");
    assert_string_equal(written_after_time(), "level=error program=prog msg=plain\n");
}

static void test_levels(void **state) {
    (void)state;
    start(LOG_FORMAT_LOGFMT);
    log_set_level(LOG_LEVEL_WARN);
    log_info("hidden");
    assert_null(written());
    log_warn("shown");
    assert_non_null(written());
}

static void test_context(void **state) {
    (void)state;
    start(LOG_FORMAT_LOGFMT);
    log_set_context("volume", "pv 1");
    log_info("x");
    assert_string_equal(written_after_time(), "level=info program=prog volume=\"pv 1\" msg=x\n");
    log_set_context(NULL, NULL);
    log_info("x");
    assert_string_equal(written_after_time(), "level=info program=prog msg=x\n");
}

static void test_odd_bytes_are_escaped(void **state) {
    (void)state;
    start(LOG_FORMAT_LOGFMT);
    log_info("x", LOG_STR("v", "a\"b\\c\nd\te\x01\x7f"));
    assert_non_null(strstr(written(), " v=\"a\\\"b\\\\c\\nd\\te\\u0001\\u007f\"\n"));
    /* A lone continuation byte, an overlong '/', a surrogate, a cut sequence. */
    log_info("x", LOG_VIEW("v", view_of("\x80-\xc0\xaf-\xed\xa0\x80-\xe2\x82", 11)));
    assert_non_null(strstr(written(), " v=\"\\ufffd-\\ufffd\\ufffd-\\ufffd\\ufffd\\ufffd-"
                                      "\\ufffd\\ufffd\"\n"));
    log_info("x", LOG_STR("v", "grün"));
    assert_non_null(strstr(written(), " v=\"grün\"\n"));
}

static json_t *written_json(void) {
    const char *text = written();
    assert_non_null(text);
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    assert_non_null(root);
    return root;
}

static void test_json(void **state) {
    (void)state;
    start(LOG_FORMAT_JSON);
    log_info("segment stored", LOG_U64("seq", 7), LOG_STR("key", "a \"b\"\n\x02\xff"),
             LOG_F64("nan", 0.0 / 0.0), LOG_BOOL("ok", false), LOG_X64("id", 16));
    json_t *root = written_json();
    assert_string_equal(json_string_value(json_object_get(root, "msg")), "segment stored");
    assert_string_equal(json_string_value(json_object_get(root, "level")), "info");
    assert_int_equal(json_integer_value(json_object_get(root, "seq")), 7);
    assert_string_equal(json_string_value(json_object_get(root, "key")), "a \"b\"\n\x02\uFFFD");
    assert_string_equal(json_string_value(json_object_get(root, "id")), "0000000000000010");
    json_decref(root);
}

static void test_long_values_and_lines_are_cut(void **state) {
    (void)state;
    static char big[3 * LOG_VALUE_MAX];
    memset(big, 'x', sizeof big - 1);
    start(LOG_FORMAT_JSON);
    log_info("one", LOG_STR("v", big));
    json_t *root = written_json();
    assert_int_equal(json_string_length(json_object_get(root, "v")), LOG_VALUE_MAX + 3);
    assert_null(json_object_get(root, "truncated"));
    json_decref(root);
    log_info("many", LOG_STR("a", big), LOG_STR("b", big), LOG_STR("c", big), LOG_STR("d", big),
             LOG_U64("e", 1));
    assert_true(strlen(written()) <= LOG_LINE_MAX);
    root = json_loads(line, 0, NULL);
    assert_non_null(json_object_get(root, "c"));
    assert_null(json_object_get(root, "d"));
    assert_null(json_object_get(root, "e"));
    assert_true(json_is_true(json_object_get(root, "truncated")));
    json_decref(root);
}

static void test_limited(void **state) {
    (void)state;
    start(LOG_FORMAT_LOGFMT);
    struct log_limit limit = {.interval_ms = 60};
    log_warn_limited(&limit, "again");
    assert_null(strstr(written(), "suppressed"));
    for (int i = 0; i < 5; i++)
        log_warn_limited(&limit, "again");
    assert_null(written());
    usleep(70 * 1000);
    log_warn_limited(&limit, "again", LOG_U64("n", 1));
    assert_non_null(strstr(written(), " msg=again suppressed=5 n=1\n"));
}

enum { THREADS = 4, LINES = 200 };

static void *write_lines(void *arg) {
    log_set_context("thread", arg);
    for (int i = 0; i < LINES; i++)
        log_info("a line that is long enough to be torn apart if it could be", LOG_U64("i", i));
    return NULL;
}

static void test_lines_of_threads_do_not_mix(void **state) {
    (void)state;
    start(LOG_FORMAT_LOGFMT);
    fcntl(pipe_fds[1], F_SETFL, 0);
    fcntl(pipe_fds[1], F_SETPIPE_SZ, 1 << 20);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, write_lines, "t");
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    static char all[1 << 20];
    size_t len = 0;
    ssize_t n;
    while ((n = read(pipe_fds[0], all + len, sizeof all - len)) > 0)
        len += (size_t)n;
    int lines = 0;
    for (char *at = all; at < all + len; lines++) {
        char *end = memchr(at, '\n', (size_t)(all + len - at));
        assert_non_null(end);
        assert_memory_equal(at, "time=", 5);
        assert_non_null(memmem(at, (size_t)(end - at), " thread=t msg=", 14));
        assert_null(memmem(at + 1, (size_t)(end - at - 1), "time=", 5));
        at = end + 1;
    }
    assert_int_equal(lines, THREADS * LINES);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_logfmt, setup, teardown),
        cmocka_unit_test_setup_teardown(test_levels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_context, setup, teardown),
        cmocka_unit_test_setup_teardown(test_odd_bytes_are_escaped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_json, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_values_and_lines_are_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_limited, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lines_of_threads_do_not_mix, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
