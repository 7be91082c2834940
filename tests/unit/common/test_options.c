/* Options: values, layers, commands, the words of errors, what is printed. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "common/options.h"
#include "common/options_internal.h"

struct config {
    char *name;
    struct option_strings listen;
    bool fast;
    uint64_t depth, size, delay;
    int level;
    char *key_file;
};

#define AT(member) offsetof(struct config, member)
static const struct option_spec specs[] = {
    {.name = "name",
     .type = OPTION_STRING,
     .off = AT(name),
     .letter = 'n',
     .group = "Basics",
     .help = "The name."},
    {.name = "listen",
     .type = OPTION_STRINGS,
     .off = AT(listen),
     .arg = "ADDR",
     .def = "127.0.0.1",
     .help = "Where to listen."},
    {.name = "fast",
     .type = OPTION_BOOL,
     .off = AT(fast),
     .letter = 'f',
     .def = "false",
     .help = "Be fast."},
    {.name = "depth",
     .type = OPTION_U64,
     .off = AT(depth),
     .def = "8",
     .min = 1,
     .max = 64,
     .group = "Limits",
     .help = "Requests in flight."},
    {.name = "journal-size",
     .type = OPTION_SIZE,
     .off = AT(size),
     .def = "64Mi",
     .min = 1 << 20,
     .max = UINT64_C(1) << 40,
     .help = "The journal | its size."},
    {.name = "delay",
     .type = OPTION_DURATION,
     .off = AT(delay),
     .def = "20ms",
     .help = "How long to wait."},
    {.name = "log-level",
     .type = OPTION_ENUM,
     .off = AT(level),
     .def = "info",
     .choices = log_level_names,
     .help = "What to print."},
    {.name = "key-file",
     .type = OPTION_SECRET_FILE,
     .off = AT(key_file),
     .env = "T_SECRET",
     .help = "Where the key is."},
    {0},
};
static const struct option_program plain = {.name = "prog",
                                            .summary = "Does things.",
                                            .description = "First.\n\nSecond.",
                                            .env_prefix = "T_",
                                            .options = specs,
                                            .args = "[FILE]",
                                            .args_max = 1};

enum { CREATE, LIST };
static const struct option_spec command_specs[] = {
    {.name = "journal-size",
     .type = OPTION_SIZE,
     .off = AT(size),
     .commands = OPTION_FOR(CREATE),
     .help = "Size."},
    {.name = "fast", .type = OPTION_BOOL, .off = AT(fast), .help = "Be fast."},
    {0},
};
static const struct option_command commands[] = {
    [CREATE] = {"volume create", "NAME", 1, 1, "Makes one."},
    [LIST] = {"volume list", NULL, 0, 0, "Shows all."},
    {0},
};
static const struct option_program with_commands = {.name = "ctl",
                                                    .summary = "Controls.",
                                                    .env_prefix = "T_",
                                                    .options = command_specs,
                                                    .commands = commands};

static struct config config;
static struct option_args args;
static struct err error;
static char *argv_copy[32];
static char file_path[] = "/tmp/portalbd-options-XXXXXX";

static int setup(void **state) {
    (void)state;
    config = (struct config){0};
    error = (struct err){0};
    return 0;
}

static int teardown(void **state) {
    (void)state;
    options_release(&plain, &config);
    unsetenv("T_DEPTH");
    unsetenv("T_LISTEN");
    unsetenv("T_CONFIG");
    unsetenv("T_SECRET");
    return 0;
}

static int parse(const struct option_program *p, const char *line) {
    static char words[512];
    snprintf(words, sizeof words, "%s", line);
    int argc = 0;
    argv_copy[argc++] = "prog";
    for (char *w = strtok(words, " "); w; w = strtok(NULL, " "))
        argv_copy[argc++] = w;
    argv_copy[argc] = NULL;
    return options_parse(p, argc, argv_copy, &config, &args, &error);
}

static void write_config(const char *text) {
    FILE *f = fopen(file_path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    setenv("T_CONFIG", file_path, 1);
}

static void test_defaults(void **state) {
    (void)state;
    assert_int_equal(parse(&plain, ""), 0);
    assert_null(config.name);
    assert_int_equal(config.listen.count, 1);
    assert_string_equal(config.listen.items[0], "127.0.0.1");
    assert_false(config.fast);
    assert_int_equal(config.depth, 8);
    assert_int_equal(config.size, 64 << 20);
    assert_int_equal(config.delay, 20000);
    assert_int_equal(config.level, LOG_LEVEL_INFO);
    assert_int_equal(args.argc, 0);
}

static void test_flags(void **state) {
    (void)state;
    assert_int_equal(parse(&plain, "-n vol --listen a --listen=b,c -f --depth=9 file "
                                   "--journal-size 2G --delay 1h --log-level debug"),
                     0);
    assert_string_equal(config.name, "vol");
    assert_int_equal(config.listen.count, 2);
    assert_string_equal(config.listen.items[1], "b,c");
    assert_true(config.fast);
    assert_int_equal(config.depth, 9);
    assert_true(config.size == UINT64_C(2) << 30);
    assert_true(config.delay == UINT64_C(3600000000));
    assert_int_equal(config.level, LOG_LEVEL_DEBUG);
    assert_int_equal(args.argc, 1);
    assert_string_equal(args.argv[0], "file");
}

static void test_bools(void **state) {
    (void)state;
    assert_int_equal(parse(&plain, "--fast --no-fast"), 0);
    assert_false(config.fast);
    assert_int_equal(parse(&plain, "--fast=yes"), 0);
    assert_true(config.fast);
    options_release(&plain, &config);
    assert_int_equal(parse(&plain, "--fast=maybe"), -ERR_INVALID);
    assert_string_equal(error.text, "--fast: 'maybe' is neither true nor false");
    assert_int_equal(parse(&plain, "--no-fast=1"), -ERR_INVALID);
    assert_string_equal(error.text, "--no-fast=1 takes no value; leave it out");
}

static void test_layers(void **state) {
    (void)state;
    write_config("; a comment\nname = from file\njournal_size = 2Mi\ndepth=2\nlisten = x,y\n");
    setenv("T_DEPTH", "3", 1);
    assert_int_equal(parse(&plain, ""), 0);
    assert_string_equal(config.name, "from file");
    assert_int_equal(config.size, 2 << 20);
    assert_int_equal(config.depth, 3);
    assert_int_equal(config.listen.count, 2);
    options_release(&plain, &config);
    setenv("T_LISTEN", "p,q,r", 1);
    setenv("T_SECRET", "/etc/key", 1);
    assert_int_equal(parse(&plain, "--depth 4"), 0);
    assert_int_equal(config.depth, 4);
    assert_int_equal(config.listen.count, 3);
    assert_string_equal(config.key_file, "/etc/key");
    options_release(&plain, &config);
    assert_int_equal(parse(&plain, "--config /nonexistent/x"), -ERR_CONFIG);
    assert_non_null(strstr(error.text, "/nonexistent/x"));
}

static void check_error(const char *line, const char *text) {
    config = (struct config){0};
    assert_int_equal(parse(&plain, line), -ERR_INVALID);
    assert_string_equal(error.text, text);
}

static void test_flag_errors(void **state) {
    (void)state;
    check_error("--dept 3 --depht 3", "unknown option --depht; did you mean --depth?");
    check_error("--wholly-unknown",
                "unknown option --wholly-unknown; see 'prog --help' for what there is");
    check_error("-x", "unknown option -x; see 'prog --help' for what there is");
    check_error("--depth", "--depth wants a value; see 'prog --help'");
    check_error("--depth 0", "--depth: 0 is too small; the minimum is 1");
    check_error("--depth 65", "--depth: 65 is too large; the maximum is 64");
    check_error("--depth 8x", "--depth: '8x' is not a whole number; write for example 8");
    check_error("--depth -1", "--depth: '-1' is not a whole number; write for example 8");
    check_error("--journal-size 4095", "--journal-size: 4095 is too small; the minimum is 1Mi");
    check_error("--journal-size 1X", "--journal-size: '1X' is not a size; write bytes, or for "
                                     "example 64Ki, 16M, 10Gi");
    check_error("--delay 5", "--delay: '5' is not a duration; write for example 500us, 20ms, 30s, "
                             "5m or 1h");
    check_error("--log-level loud", "--log-level: 'loud' is none of: debug, info, warn, error");
    check_error("a b", "too many arguments; the usage is: prog [FILE]");
}

static void test_file_and_environment_errors(void **state) {
    (void)state;
    char want[256];
    write_config("depth = 2\ndept = 3\n");
    assert_int_equal(parse(&plain, ""), -ERR_CONFIG);
    snprintf(want, sizeof want, "%s:2: unknown key 'dept'; did you mean 'depth'?", file_path);
    assert_string_equal(error.text, want);
    write_config("depth = 200\n");
    assert_int_equal(parse(&plain, ""), -ERR_CONFIG);
    snprintf(want, sizeof want, "%s:1: depth: 200 is too large; the maximum is 64", file_path);
    assert_string_equal(error.text, want);
    write_config("[a]\ndepth = 2\n");
    assert_int_equal(parse(&plain, ""), -ERR_CONFIG);
    assert_non_null(strstr(error.text, "this file has no sections; remove [a]"));
    write_config("what is this\n");
    assert_int_equal(parse(&plain, ""), -ERR_CONFIG);
    assert_non_null(strstr(error.text, ":1: neither [section] nor key = value"));
    unsetenv("T_CONFIG");
    setenv("T_DEPTH", "many", 1);
    assert_int_equal(parse(&plain, ""), -ERR_CONFIG);
    assert_string_equal(error.text, "environment variable T_DEPTH: 'many' is not a whole number; "
                                    "write for example 8");
}

static void test_commands(void **state) {
    (void)state;
    assert_int_equal(parse(&with_commands, "volume create v1 --journal-size 1M"), 0);
    assert_int_equal(args.command, CREATE);
    assert_int_equal(args.argc, 1);
    assert_string_equal(args.argv[0], "v1");
    assert_int_equal(config.size, 1 << 20);
    assert_int_equal(parse(&with_commands, "--fast volume list"), 0);
    assert_int_equal(args.command, LIST);
    assert_int_equal(parse(&with_commands, "volume list --journal-size 1M"), -ERR_INVALID);
    assert_string_equal(error.text,
                        "'volume list' has no option --journal-size; see 'ctl volume list --help'");
    assert_int_equal(parse(&with_commands, "volume create"), -ERR_INVALID);
    assert_string_equal(error.text, "too few arguments; the usage is: ctl volume create NAME");
    assert_int_equal(parse(&with_commands, "volume crate x"), -ERR_INVALID);
    assert_string_equal(error.text,
                        "unknown command 'volume crate'; did you mean 'volume create'?");
    assert_int_equal(parse(&with_commands, "explode"), -ERR_INVALID);
    assert_string_equal(error.text,
                        "unknown command 'explode'; see 'ctl --help' for what there is");
    assert_int_equal(parse(&with_commands, ""), -ERR_INVALID);
    assert_string_equal(error.text, "no command given; see 'ctl --help' for what there is");
}

static void test_values(void **state) {
    (void)state;
    uint64_t v = 0;
    assert_int_equal(option_parse_size("1Ei", &v, NULL), 0);
    assert_true(v == UINT64_C(1) << 60);
    assert_int_equal(option_parse_size("16Ei", &v, NULL), -ERR_INVALID);
    assert_int_equal(option_parse_size("4Ki", &v, NULL), 0);
    assert_int_equal(v, 4096);
    assert_int_equal(option_parse_size("4KiB", &v, NULL), -ERR_INVALID);
    assert_int_equal(option_parse_size("", &v, NULL), -ERR_INVALID);
    assert_int_equal(option_parse_size(" 1", &v, NULL), -ERR_INVALID);
    assert_int_equal(option_parse_u64("18446744073709551615", &v, NULL), 0);
    assert_true(v == UINT64_MAX);
    assert_int_equal(option_parse_u64("18446744073709551616", &v, NULL), -ERR_INVALID);
    assert_int_equal(option_parse_duration("0", &v, NULL), 0);
    assert_int_equal(option_parse_duration("1500us", &v, NULL), 0);
    assert_int_equal(v, 1500);
}

/* What is printed reads back as the same number. */
static void test_format_round_trip(void **state) {
    (void)state;
    const uint64_t values[] = {0, 1, 1023, 1024, 65536, 3 << 20, UINT64_C(5) << 40, UINT64_MAX};
    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        char printed[32];
        uint64_t back = 1;
        option_format(OPTION_SIZE, values[i], printed, sizeof printed);
        assert_int_equal(option_parse_size(printed, &back, NULL), 0);
        assert_true(back == values[i]);
        option_format(OPTION_DURATION, values[i], printed, sizeof printed);
        assert_int_equal(option_parse_duration(printed, &back, NULL), 0);
        assert_true(back == values[i]);
    }
}

static void test_texts(void **state) {
    (void)state;
    CLEANUP_BUF struct buf out = {0};
    options_print_help(&plain, -1, &out);
    assert_non_null(strstr(buf_cstr(&out), "Usage: prog [OPTION...] [FILE]\nDoes things.\n"
                                           "\nFirst.\n\nSecond.\n\nBasics:\n  -n, --name TEXT\n"));
    assert_non_null(strstr(buf_cstr(&out), "      Requests in flight. Allowed: from 1 to 64. "
                                           "Default: 8. (T_DEPTH)\n"));
    assert_non_null(strstr(buf_cstr(&out), "--[no-]fast"));
    buf_clear(&out);
    options_print_help(&with_commands, LIST, &out);
    assert_non_null(strstr(buf_cstr(&out), "Usage: ctl volume list"));
    assert_null(strstr(buf_cstr(&out), "journal-size"));
    buf_clear(&out);
    options_print_md(&plain, &out);
    assert_non_null(strstr(buf_cstr(&out), "| `--journal-size` | `T_JOURNAL_SIZE` | size | 64Mi | "
                                           "from 1Mi to 1Ti | The journal \\| its size. |\n"));
    assert_non_null(strstr(buf_cstr(&out), "| `--key-file` | `T_SECRET` | file |"));
    buf_clear(&out);
    options_print_man(&plain, &out);
    assert_non_null(strstr(buf_cstr(&out), ".TP\n\\fB\\-n\\fR, \\fB\\-\\-name\\fR \\fITEXT\\fR\n"));
}

static int group_setup(void **state) {
    (void)state;
    int fd = mkstemp(file_path);
    assert_true(fd >= 0);
    close(fd);
    return 0;
}

static int group_teardown(void **state) {
    (void)state;
    unlink(file_path);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_defaults, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bools, setup, teardown),
        cmocka_unit_test_setup_teardown(test_layers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flag_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_and_environment_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commands, setup, teardown),
        cmocka_unit_test_setup_teardown(test_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_format_round_trip, setup, teardown),
        cmocka_unit_test_setup_teardown(test_texts, setup, teardown),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
