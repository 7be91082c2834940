/* Files of sections, keys and values, and what is no such file. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/config_file.h"

static char path[] = "/tmp/portalbd-config-XXXXXX";
static struct buf seen;
static struct err error;

static int setup(void **state) {
    (void)state;
    buf_clear(&seen);
    error = (struct err){0};
    return 0;
}

static int note(void *arg, const char *section, const char *key, const char *value, struct err *e) {
    (void)arg;
    if (strcmp(key, "bad") == 0)
        return err_set(e, -ERR_CONFIG, "unknown key 'bad'");
    buf_printf(&seen, "%s/%s=%s;", section, key, value);
    return 0;
}

static int read_bytes(const char *bytes, size_t len) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fwrite(bytes, 1, len, f);
    fclose(f);
    return config_file_read(path, note, NULL, &error);
}

static int read_text(const char *text) {
    return read_bytes(text, strlen(text));
}

static void test_keys(void **state) {
    (void)state;
    assert_int_equal(
        read_text("a = 1\n# comment\n; another\n[fast]\n  url= s3://b/p \n"
                  "key=with = and : in it\n\t[slow]\nx:\n \n\ty = 2 ; not of y\n  # nor this\n"),
        0);
    assert_string_equal(buf_cstr(&seen),
                        "/a=1;fast/url=s3://b/p;fast/key=with = and : in it;slow/x=;slow/y=2;");
    buf_clear(&seen);
    assert_int_equal(read_text(""), 0);
    assert_int_equal(seen.len, 0);
}

static void test_errors_name_the_line(void **state) {
    (void)state;
    char want[128];
    assert_int_equal(read_text("a = 1\n\nbad = 1\nworse\n"), -ERR_CONFIG);
    snprintf(want, sizeof want, "%s:3: unknown key 'bad'", path);
    assert_string_equal(error.text, want);
    assert_int_equal(read_text("a = 1\nnothing\n"), -ERR_CONFIG);
    snprintf(want, sizeof want, "%s:2: neither [section] nor key = value; correct the line", path);
    assert_string_equal(error.text, want);
    assert_int_equal(config_file_read(path, note, NULL, NULL), -ERR_CONFIG);
}

static void test_what_is_no_such_file(void **state) {
    (void)state;
    assert_int_equal(config_file_read("/nonexistent/x", note, NULL, &error), -ERR_NOT_FOUND);
    assert_int_equal(config_file_read("/dev/zero", note, NULL, &error), -ERR_CONFIG);
    assert_int_equal(config_file_read("/tmp", note, NULL, &error), -ERR_CONFIG);
    assert_int_equal(read_bytes("a=1\0b=2\n", 8), -ERR_CONFIG);
}

/* Up to the limit a line arrives whole; beyond, it is refused rather than cut. */
static void test_long_lines(void **state) {
    (void)state;
    char text[CONFIG_LINE_MAX + 8] = "k=";
    memset(text + 2, 'x', CONFIG_LINE_MAX - 2);
    text[CONFIG_LINE_MAX] = '\0';
    assert_int_equal(read_text(text), 0);
    assert_int_equal(seen.len, strlen("/k=;") + CONFIG_LINE_MAX - 2);
    strcat(text, "x");
    assert_int_equal(read_text(text), -ERR_CONFIG);
    assert_non_null(strstr(error.text, ":1: longer than"));
    static char big[CONFIG_FILE_SIZE_MAX + 100];
    memset(big, '\n', sizeof big);
    assert_int_equal(read_bytes(big, sizeof big), -ERR_CONFIG);
    assert_non_null(strstr(error.text, "is larger than"));
}

static int group_setup(void **state) {
    (void)state;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    return 0;
}

static int group_teardown(void **state) {
    (void)state;
    unlink(path);
    buf_release(&seen);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_keys, setup),
        cmocka_unit_test_setup(test_errors_name_the_line, setup),
        cmocka_unit_test_setup(test_what_is_no_such_file, setup),
        cmocka_unit_test_setup(test_long_lines, setup),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
