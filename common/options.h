/* A program's options: one table says everything, and flags, environment, configuration file,
 * --help, the manual page and the table in the documentation all come out of it.
 *
 *     struct config { uint64_t journal_size; char *listen; int log_level; };
 *
 *     static const struct option_spec options[] = {
 *         {"journal-size", OPTION_SIZE, offsetof(struct config, journal_size), .def = "64Mi",
 *          .min = 1 << 20, .max = 1ull << 40, .group = "Volume",
 *          .help = "Bytes of writes that may be acknowledged and not yet stored."},
 *         {"log-level", OPTION_ENUM, offsetof(struct config, log_level), .def = "info",
 *          .choices = log_level_names, .help = "The least important lines to print."},
 *         {0}};
 *
 * "journal-size" is --journal-size, the key journal_size (or journal-size) in the file, and
 * PORTALBD_JOURNAL_SIZE in the environment. Built-in defaults < file < environment < flags. Every
 * program also has --config FILE, --help, --version, --print-options-md and --print-man. */
#pragma once

#include "common/err.h"

enum option_type {
    OPTION_STRING,   /* char *: owned, NULL when there is no default */
    OPTION_STRINGS,  /* struct option_strings: the flag may be repeated; commas in the environment
                      * and in the file; a higher layer replaces the whole list */
    OPTION_BOOL,     /* bool: --x, --no-x; true/false, yes/no, on/off, 1/0 */
    OPTION_U64,      /* uint64_t */
    OPTION_SIZE,     /* uint64_t, bytes; 4096, 64K, 64Ki (both 1024), M, G, T */
    OPTION_DURATION, /* uint64_t, microseconds; 500us, 20ms, 30s, 5m, 1h */
    OPTION_ENUM,     /* int: index into choices */
    OPTION_SECRET_FILE, /* char *: the path of a file that holds the secret; secrets themselves are
                         * never given in a flag */
};

struct option_strings {
    char **items; /* owned */
    size_t count;
};
enum { OPTION_STRINGS_MAX = 256 }; /* items of one list */

struct option_spec {
    const char *name; /* a-z0-9 and '-'; NULL ends the table */
    enum option_type type;
    size_t off;                 /* offsetof the member in the program's config struct */
    char letter;                /* short flag, or 0 */
    const char *def;            /* as a user would write it; NULL: unset (0, false, NULL) */
    uint64_t min, max;          /* U64, SIZE, DURATION; max 0: no limit */
    const char *const *choices; /* ENUM: NULL at the end */
    const char *arg;            /* what --help calls the value; NULL: after the type */
    const char *env;            /* instead of the derived name; "" : none */
    const char *group; /* heading in --help and documentation; NULL: that of the line above */
    uint64_t commands; /* OPTION_FOR(index of command) | ...; 0: all */
    const char *help;  /* sentences */
};
#define OPTION_FOR(command) (UINT64_C(1) << (command))

/* "volume create NAME": words that come before the arguments. */
struct option_command {
    const char *name; /* one or more words; NULL ends the table */
    const char *args; /* as in the usage line, NULL: none */
    unsigned args_min, args_max;
    const char *help;
};

struct option_program {
    const char *name;
    const char *summary;     /* a line */
    const char *description; /* for --help and the manual page; paragraphs split by an empty line */
    const char *env_prefix;  /* "PORTALBD_" */
    const char
        *config_path; /* read if it exists; NULL: only what --config or <PREFIX>CONFIG says */
    const struct option_spec *options;
    const struct option_command *commands; /* NULL: the program has none; at most 64 */
    const char *args;                      /* of a program without commands; NULL: takes none */
    unsigned args_min, args_max;
};

struct option_args {
    bool done;        /* --help and the like was printed: exit with 0 */
    unsigned command; /* index into commands */
    char **argv;      /* what follows options and command; borrowed from main's argv */
    int argc;
};

/* Fills the zeroed config struct. -ERR_INVALID (the command line) or -ERR_CONFIG (file,
 * environment): the text is one sentence that says where, what and what to do; config is released.
 * Main thread. */
int options_parse(const struct option_program *p, int argc, char **argv, void *config,
                  struct option_args *ret_args, struct err *e);

/* The same for main(): prints the error and exits with 2; exits with 0 when `done`. */
void options_parse_or_exit(const struct option_program *p, int argc, char **argv, void *config,
                           struct option_args *ret_args);

/* Frees strings and lists of the config struct. */
void options_release(const struct option_program *p, void *config);

/* The rules for one value, for whoever reads such values elsewhere (StorageClass parameters,
 * portalctl's arguments). Text is at most OPTION_VALUE_MAX bytes. */
enum { OPTION_VALUE_MAX = 4096 };
int option_parse_u64(const char *text, uint64_t *ret_value, struct err *e);
int option_parse_size(const char *text, uint64_t *ret_bytes, struct err *e);
int option_parse_duration(const char *text, uint64_t *ret_us, struct err *e);
int option_parse_bool(const char *text, bool *ret_value, struct err *e);
