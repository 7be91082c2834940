/* portalctl: results as a table or as JSON, on stdout; questions on the terminal. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/daemon/portalctl_internal.h"

/* --- results --- */

void ctl_format_bytes(uint64_t bytes, char *text, size_t size) {
    static const char *const units[] = {"", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"};
    unsigned unit = 0;
    double value = (double)bytes;
    while (value >= 1024 && unit + 1 < ARRAY_LEN(units)) {
        value /= 1024;
        unit++;
    }
    snprintf(text, size, value == (double)(uint64_t)value ? "%.0f%s" : "%.1f%s", value,
             units[unit]);
}

void ctl_format_time(uint64_t unix_ms, char *text, size_t size) {
    time_t seconds = (time_t)(unix_ms / 1000);
    struct tm tm;
    strftime(text, size, "%Y-%m-%d %H:%M:%S", gmtime_r(&seconds, &tm));
}

static bool ends_with(const char *text, const char *end) {
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* Names and damaged texts may hold line ends, and what terminals obey. */
static void make_printable(char *text) {
    for (; *text; text++)
        if ((unsigned char)*text < ' ' || *text == 0x7f)
            *text = '?';
}

/* A value as a table shows it. */
static void format_value(const char *name, const json_t *value, char *text, size_t size) {
    uint64_t number = (uint64_t)json_integer_value(value);
    if (json_is_string(value)) {
        snprintf(text, size, "%s", json_string_value(value)[0] ? json_string_value(value) : "-");
        make_printable(text);
    } else if (json_is_boolean(value)) {
        snprintf(text, size, "%s", json_is_true(value) ? "yes" : "no");
    } else if (json_is_integer(value) && ends_with(name, "bytes")) {
        ctl_format_bytes(number, text, size);
    } else if (json_is_integer(value) && ends_with(name, "_ms")) {
        ctl_format_time(number, text, size);
    } else {
        char *dump = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
        snprintf(text, size, "%s", dump ? dump : "?");
        free(dump);
    }
}

enum { CELL = 160, COLUMNS_MAX = 16 };

static void print_rows(const json_t *rows) {
    const char *names[COLUMNS_MAX];
    int widths[COLUMNS_MAX] = {0};
    size_t columns = 0;
    json_t *value;
    const char *name;
    char cell[CELL];
    json_object_foreach(json_array_get(rows, 0), name, value) {
        if (columns < COLUMNS_MAX)
            names[columns++] = name;
    }
    for (size_t c = 0; c < columns; c++) {
        widths[c] = (int)strlen(names[c]);
        for (size_t r = 0; r < json_array_size(rows); r++) {
            format_value(names[c], json_object_get(json_array_get(rows, r), names[c]), cell, CELL);
            widths[c] = MAX(widths[c], (int)strlen(cell));
        }
    }
    for (size_t c = 0; c < columns; c++)
        printf("%-*s%s", c + 1 < columns ? widths[c] : 0, names[c], c + 1 < columns ? "  " : "\n");
    for (size_t r = 0; r < json_array_size(rows); r++) {
        for (size_t c = 0; c < columns; c++) {
            format_value(names[c], json_object_get(json_array_get(rows, r), names[c]), cell, CELL);
            printf("%-*s%s", c + 1 < columns ? widths[c] : 0, cell, c + 1 < columns ? "  " : "\n");
        }
    }
}

static void print_members(const json_t *object, int indent) {
    const char *name;
    json_t *value;
    char cell[1024];
    json_object_foreach((json_t *)object, name, value) {
        if (json_is_object(value)) {
            printf("%*s%s:\n", indent, "", name);
            print_members(value, indent + 2);
        } else if (json_is_object(json_array_get(value, 0))) {
            printf("%*s%s:\n", indent, "", name);
            print_rows(value);
        } else {
            format_value(name, value, cell, sizeof cell);
            printf("%*s%-*s %s\n", indent, "", 20 - indent, name, cell);
        }
    }
}

void ctl_print_result(const struct ctl *c) {
    if (!c->result)
        return;
    if (c->config.output == OUTPUT_JSON) {
        json_dumpf(c->result, stdout, JSON_INDENT(2));
        printf("\n");
    } else if (c->only) {
        printf("%s\n", json_string_value(json_object_get(c->result, c->only)));
    } else if (json_is_array(c->result)) {
        print_rows(c->result);
    } else {
        print_members(c->result, 0);
    }
}

int ctl_check_output(struct err *e) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    return err_set(e, -ERR_IO, "the result could not be printed: %s",
                   errno ? strerror(errno) : "an earlier write failed");
}

/* --- questions --- */

int ctl_confirm(const struct ctl *c, struct err *e, const char *format, ...) {
    char what[ERR_TEXT_MAX / 2], answer[16] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    if (c->config.yes)
        return 0;
    if (!isatty(STDIN_FILENO))
        return err_set(e, -ERR_INVALID, "%s; say --yes", what);
    fprintf(stderr, "%s. Go on? [y/N] ", what);
    if (fgets(answer, sizeof answer, stdin) && (answer[0] == 'y' || answer[0] == 'Y'))
        return 0;
    return err_set(e, -ERR_INVALID, "nothing was done");
}
