/* libFuzzer: a program's configuration file, and what stands in it as values of options. Each input
 * is taken as the file, and each of its lines as a value. */
#include "tests/fuzz/file_input.h"

#include <stdlib.h>
#include <string.h>

#include "common/options.h"
#include "portalbd/objstore/url.h"

struct config {
    char *listen;
    struct option_strings volumes;
    bool once;
    uint64_t count, size, delay;
    int level;
    char *secret;
};
static const char *const levels[] = {"debug", "info", NULL};
static const struct option_spec options[] = {
    {"listen", OPTION_STRING, offsetof(struct config, listen), .def = "here", .help = "Where."},
    {"volume", OPTION_STRINGS, offsetof(struct config, volumes), .help = "Which."},
    {"once", OPTION_BOOL, offsetof(struct config, once), .help = "Whether."},
    {"count", OPTION_U64, offsetof(struct config, count), .min = 3, .max = 70, .def = "5",
     .help = "How many."},
    {"size", OPTION_SIZE, offsetof(struct config, size), .help = "How large."},
    {"delay", OPTION_DURATION, offsetof(struct config, delay), .help = "How long."},
    {"level", OPTION_ENUM, offsetof(struct config, level), .def = "info", .choices = levels,
     .help = "How much."},
    {"secret", OPTION_SECRET_FILE, offsetof(struct config, secret), .help = "Where it is."},
    {0},
};
static const struct option_program program = {
    .name = "fuzz", .summary = "s", .description = "d", .env_prefix = "FUZZ_", .options = options};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void as_file(struct view in) {
    struct config c = {0};
    struct option_args args = {0};
    struct err e = {0};
    char flag[96], name[] = "fuzz";
    snprintf(flag, sizeof flag, "--config=%s", file_input(in));
    char *argv[] = {name, flag, NULL};
    if (options_parse(&program, 2, argv, &c, &args, &e) < 0) {
        CHECK(e.code == -ERR_CONFIG);
        return;
    }
    CHECK(c.count >= 3 && c.count <= 70 && c.level >= 0 && c.level < 2);
    CHECK(c.volumes.count <= OPTION_STRINGS_MAX);
    options_release(&program, &c);
}

static void as_value(const char *text) {
    uint64_t value;
    bool yes;
    struct objstore_url url;
    struct err e = {0};
    CHECK(option_parse_u64(text, &value, &e) == 0 || e.code < 0);
    CHECK(option_parse_size(text, &value, &e) == 0 || e.code < 0);
    CHECK(option_parse_duration(text, &value, &e) == 0 || e.code < 0);
    CHECK(option_parse_bool(text, &yes, &e) == 0 || e.code < 0);
    CHECK(objstore_url_parse(text, &url, &e) == 0 || e.code == -ERR_CONFIG);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    as_file(view_of(data, size));
    CLEANUP_FREE char *text = xmalloc(size + 1);
    memcpy(text, data, size);
    text[size] = '\0';
    for (char *at = text, *line; (line = strsep(&at, "\n"));)
        if (strlen(line) <= OPTION_VALUE_MAX)
            as_value(line);
    return 0;
}
