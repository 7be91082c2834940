/* mountinfo lines: real ones, escaped ones, broken ones. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "node-agent/attach/mountinfo.h"

static bool parse(const char *line, struct mountinfo_entry *ret) {
    return mountinfo_parse(view_of_str(line), ret);
}

static void test_lines(void **state) {
    (void)state;
    struct mountinfo_entry m;
    assert_true(
        parse("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=c", &m));
    assert_int_equal(m.major, 98);
    assert_int_equal(m.minor, 0);
    assert_string_equal(m.point, "/mnt2");
    assert_string_equal(m.type, "ext3");
    assert_string_equal(m.source, "/dev/root");
    assert_true(
        parse("1 2 0:50 / /run/x/devices/pv-1.p rw - fuse.portalbd portalbd:pv-1.p rw", &m));
    assert_string_equal(m.source, "portalbd:pv-1.p");
    assert_true(parse("1 2 0:50 / /a rw shared:1 master:2 propagate_from:3 - tmpfs none rw", &m));
    assert_string_equal(m.type, "tmpfs");
    assert_true(parse("1 2 0:50 / /a\\040b\\011\\134c rw - tmpfs \\0431 rw", &m));
    assert_string_equal(m.point, "/a b\t\\c");
    assert_string_equal(m.source, "#1");
}

static void test_broken_lines(void **state) {
    (void)state;
    static const char *const lines[] = {
        "",
        "1",
        "1 2 0:50 / /a rw",
        "1 2 0:50 / /a rw -",
        "1 2 0-50 / /a rw - tmpfs none rw",
        "1 2 0:50x / /a rw - tmpfs none rw",
        "1 2 0:50 / a rw - tmpfs none rw",
        "1 2 0:50 / /a rw shared:1 tmpfs none rw",
        "          ",
    };
    struct mountinfo_entry m;
    for (size_t i = 0; i < ARRAY_LEN(lines); i++)
        assert_false(parse(lines[i], &m));
}

static void test_prefixes_are_bounded(void **state) {
    (void)state;
    const char *line = "36 35 98:0 /mnt1 /mn\\0402 rw,noatime master:1 - ext3 /dev/\\040 rw";
    struct mountinfo_entry m;
    for (size_t len = 0; len <= strlen(line); len++) {
        uint8_t *exact = malloc(len ? len : 1);
        memcpy(exact, line, len);
        (void)mountinfo_parse(view_of(exact, len), &m);
        free(exact);
    }
    char long_line[MOUNTINFO_PATH_MAX + 200];
    memset(long_line, 'x', sizeof long_line);
    memcpy(long_line, "1 2 0:50 / /", 12);
    memcpy(long_line + sizeof long_line - 22, " rw - tmpfs none rw 1", 22);
    assert_false(parse(long_line, &m));
}

static bool count(void *arg, const struct mountinfo_entry *m) {
    unsigned *n = arg;
    (*n)++;
    return strcmp(m->point, "/stop") != 0;
}

static void test_each(void **state) {
    (void)state;
    unsigned n = 0;
    mountinfo_each(view_of_str("1 2 0:1 / /a rw - t s o\nnonsense\n\n1 2 0:1 / /b rw - t s o"),
                   count, &n);
    assert_int_equal(n, 2);
    n = 0;
    mountinfo_each(view_of_str("1 2 0:1 / /stop rw - t s o\n1 2 0:1 / /b rw - t s o\n"), count, &n);
    assert_int_equal(n, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_broken_lines),
        cmocka_unit_test(test_prefixes_are_bounded),
        cmocka_unit_test(test_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
