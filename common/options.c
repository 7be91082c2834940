/* Options: the layers (defaults, file, environment, flags) put over each other, by one table.
 *
 * getopt_long does the scanning. (argp would print its own help and its own errors; ours come out
 * of the table, in the words of the table.) Flags are scanned first, because one of them names the
 * file, and applied last.
 *
 * I1 A list is replaced by the first value of a higher layer and extended by later ones of the
 * same. I2 A default passes the same checks as a user's value; a table with a bad one aborts. */
#include "common/options.h"

#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/config_file.h"
#include "common/options_internal.h"

enum layer { LAYER_NONE, LAYER_DEFAULT, LAYER_FILE, LAYER_ENV, LAYER_FLAG };
enum { OPTIONS_MAX = 128, COMMANDS_MAX = 64, EXIT_USAGE = 2, SUGGEST_DISTANCE_MAX = 2 };

/* Flags that every program has; getopt's val. Those of the table are FLAG_TABLE + 2 * index, and
 * one more for --no-x. */
enum { FLAG_CONFIG = 1000, FLAG_HELP, FLAG_VERSION, FLAG_MD, FLAG_MAN, FLAG_TABLE };

struct flag {
    size_t index; /* into the table */
    const char *value;
};

struct parser {
    const struct option_program *program;
    void *config;
    size_t count;
    enum layer set_by[OPTIONS_MAX];
    const char *config_path; /* of --config or the environment */
    int print;               /* FLAG_HELP, ... or 0 */
    struct flag *flags;      /* owned */
    size_t flag_count;
    size_t flag_cap;
};

void option_env_name(const struct option_program *p, const struct option_spec *o,
                     char name[OPTION_ENV_MAX]) {
    int n = snprintf(name, OPTION_ENV_MAX, "%s%s", o->env ? o->env : p->env_prefix,
                     o->env ? "" : o->name);
    CHECK(n >= 0 && n < OPTION_ENV_MAX);
    for (char *c = name; !o->env && *c; c++)
        *c = (char)(*c == '-' ? '_' : toupper((unsigned char)*c));
}

const char *option_group(const struct option_program *p, const struct option_spec *o) {
    while (o > p->options && !o->group)
        o--;
    return o->group ? o->group : "Options";
}

const char *option_arg(const struct option_spec *o) {
    static const char *const names[] = {
        [OPTION_STRING] = "TEXT",     [OPTION_STRINGS] = "TEXT",      [OPTION_U64] = "N",
        [OPTION_SIZE] = "SIZE",       [OPTION_DURATION] = "DURATION", [OPTION_ENUM] = "WORD",
        [OPTION_SECRET_FILE] = "FILE"};
    return o->type == OPTION_BOOL ? NULL : o->arg ? o->arg : names[o->type];
}

bool option_applies(const struct option_program *p, const struct option_spec *o, int command) {
    return command < 0 || !p->commands || o->commands == 0 ||
           (o->commands & OPTION_FOR(command)) != 0;
}

/* --- did you mean ----------------------------------------------------------------------------- */

enum { SUGGEST_LEN_MAX = 48 };

static size_t edit_distance(const char *a, const char *b) {
    size_t la = strlen(a), lb = strlen(b);
    if (la > SUGGEST_LEN_MAX || lb > SUGGEST_LEN_MAX)
        return SIZE_MAX;
    size_t row[SUGGEST_LEN_MAX + 1];
    for (size_t j = 0; j <= lb; j++)
        row[j] = j;
    for (size_t i = 1; i <= la; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= lb; j++) {
            size_t replace = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            row[j] = MIN(replace, MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[lb];
}

static const char *suggest_option(const struct option_program *p, const char *word, size_t len) {
    char name[SUGGEST_LEN_MAX + 1];
    snprintf(name, sizeof name, "%.*s", (int)len, word);
    const char *best = NULL;
    size_t best_distance = SUGGEST_DISTANCE_MAX + 1;
    for (const struct option_spec *o = p->options; o->name; o++) {
        size_t distance = edit_distance(name, o->name);
        if (distance < best_distance) {
            best_distance = distance;
            best = o->name;
        }
    }
    return best;
}

/* --- layers ----------------------------------------------------------------------------------- */

static int apply(struct parser *s, size_t index, const char *text, enum layer layer,
                 struct err *e) {
    const struct option_spec *o = &s->program->options[index];
    if (o->type == OPTION_STRINGS && s->set_by[index] != layer)
        option_strings_release((void *)((char *)s->config + o->off));
    s->set_by[index] = layer;
    return option_set(o, text, layer != LAYER_FLAG, s->config, e);
}

static void apply_defaults(struct parser *s) {
    for (size_t i = 0; i < s->count; i++) {
        const struct option_spec *o = &s->program->options[i];
        CHECK(o->help && (o->type != OPTION_ENUM || (o->choices && o->choices[0])));
        struct err e = {0};
        if (o->def && apply(s, i, o->def, LAYER_DEFAULT, &e) < 0) {
            fprintf(stderr, "default of --%s: %s\n", o->name, e.text);
            CHECK(e.code == 0);
        }
    }
}

/* File keys may be written with '_' or '-'. */
static bool key_matches(const char *key, const char *name) {
    for (; *key && *name; key++, name++)
        if (*key != *name && !(*key == '_' && *name == '-'))
            return false;
    return *key == *name;
}

static int on_file_key(void *arg, const char *section, const char *key, const char *value,
                       struct err *e) {
    struct parser *s = arg;
    if (*section)
        return err_set(e, -ERR_CONFIG, "this file has no sections; remove [%.64s]", section);
    for (size_t i = 0; i < s->count; i++) {
        if (!key_matches(key, s->program->options[i].name))
            continue;
        if (apply(s, i, value, LAYER_FILE, e) == 0)
            return 0;
        e->code = -ERR_CONFIG;
        return err_wrap(e, "%s", key);
    }
    const char *near = suggest_option(s->program, key, strlen(key));
    return err_set(e, -ERR_CONFIG, "unknown key '%.64s'; %s%s%s", key,
                   near ? "did you mean '" : "see --help for what there is", near ? near : "",
                   near ? "'?" : "");
}

static int apply_file(struct parser *s, struct err *e) {
    const char *path = s->config_path ? s->config_path : s->program->config_path;
    if (!path)
        return 0;
    struct err own = {0};
    int rc = config_file_read(path, on_file_key, s, &own);
    if (rc == -ERR_NOT_FOUND && !s->config_path)
        return 0;
    if (rc < 0)
        return err_set(e, -ERR_CONFIG, "%s", own.text);
    return 0;
}

static int apply_env(struct parser *s, struct err *e) {
    for (size_t i = 0; i < s->count; i++) {
        char name[OPTION_ENV_MAX];
        option_env_name(s->program, &s->program->options[i], name);
        const char *value = *name ? getenv(name) : NULL;
        if (!value || !*value)
            continue;
        struct err own = {0};
        if (apply(s, i, value, LAYER_ENV, &own) < 0)
            return err_set(e, -ERR_CONFIG, "environment variable %s: %s", name, own.text);
    }
    return 0;
}

static int apply_flags(struct parser *s, int command, struct err *e) {
    const struct option_program *p = s->program;
    for (size_t i = 0; i < s->flag_count; i++) {
        const struct flag *f = &s->flags[i];
        const struct option_spec *o = &p->options[f->index];
        if (!option_applies(p, o, command))
            return err_set(e, -ERR_INVALID, "'%s' has no option --%s; see '%s %s --help'",
                           p->commands[command].name, o->name, p->name, p->commands[command].name);
        struct err own = {0};
        if (apply(s, f->index, f->value, LAYER_FLAG, &own) < 0)
            return err_set(e, -ERR_INVALID, "--%s: %s", o->name, own.text);
    }
    return 0;
}

/* --- flags ------------------------------------------------------------------------------------ */

struct getopt_tables {
    struct option longs[2 * OPTIONS_MAX + 8];
    char names[OPTIONS_MAX][64]; /* of the --no-x */
    char shorts[2 * OPTIONS_MAX + 8];
};

static void fill_tables(const struct parser *s, struct getopt_tables *t) {
    size_t n = 0, at = 0;
    t->shorts[at++] = ':'; /* "argument missing" is told from "unknown" */
    t->shorts[at++] = 'h';
    for (size_t i = 0; i < s->count; i++) {
        const struct option_spec *o = &s->program->options[i];
        bool is_bool = o->type == OPTION_BOOL;
        int value = FLAG_TABLE + 2 * (int)i;
        t->longs[n++] =
            (struct option){o->name, is_bool ? optional_argument : required_argument, NULL, value};
        if (is_bool) {
            snprintf(t->names[i], sizeof t->names[i], "no-%s", o->name);
            t->longs[n++] = (struct option){t->names[i], no_argument, NULL, value + 1};
        }
        if (o->letter) {
            t->shorts[at++] = o->letter;
            if (!is_bool)
                t->shorts[at++] = ':';
        }
    }
    t->shorts[at] = '\0';
    t->longs[n++] = (struct option){"config", required_argument, NULL, FLAG_CONFIG};
    t->longs[n++] = (struct option){"help", no_argument, NULL, FLAG_HELP};
    t->longs[n++] = (struct option){"version", no_argument, NULL, FLAG_VERSION};
    t->longs[n++] = (struct option){"print-options-md", no_argument, NULL, FLAG_MD};
    t->longs[n++] = (struct option){"print-man", no_argument, NULL, FLAG_MAN};
    t->longs[n] = (struct option){0};
}

static void add_flag(struct parser *s, int value, const char *text) {
    struct flag f = {.index = (size_t)(value - FLAG_TABLE) / 2, .value = text};
    if (s->program->options[f.index].type == OPTION_BOOL && !text)
        f.value = (value - FLAG_TABLE) % 2 == 0 ? "true" : "false";
    if (s->flag_count == s->flag_cap) {
        s->flag_cap = MAX(s->flag_cap * 2, (size_t)16);
        s->flags = xrealloc(s->flags, s->flag_cap * sizeof s->flags[0]);
    }
    s->flags[s->flag_count++] = f;
}

static int by_letter(const struct parser *s, int letter) {
    for (size_t i = 0; i < s->count; i++)
        if (s->program->options[i].letter == letter)
            return FLAG_TABLE + 2 * (int)i;
    return letter == 'h' ? FLAG_HELP : -1;
}

static int unknown_flag(const struct parser *s, const char *word, struct err *e) {
    const char *name = strncmp(word, "--", 2) == 0 ? word + 2 : word;
    size_t len = strcspn(name, "=");
    const char *near = suggest_option(s->program, name, len);
    if (near)
        return err_set(e, -ERR_INVALID, "unknown option %.64s; did you mean --%s?", word, near);
    return err_set(e, -ERR_INVALID, "unknown option %.64s; see '%s --help' for what there is", word,
                   s->program->name);
}

static int scan_flags(struct parser *s, int argc, char **argv, struct err *e) {
    CLEANUP_FREE struct getopt_tables *t = NEW(struct getopt_tables);
    fill_tables(s, t);
    opterr = 0;
    optind = 0; /* glibc: start over */
    for (;;) {
        int at = optind > 0 ? optind : 1;
        int c = getopt_long(argc, argv, t->shorts, t->longs, NULL);
        if (c == -1)
            return 0;
        const char *word = optind > at ? argv[optind - 1] : argv[at];
        if (c == ':')
            return err_set(e, -ERR_INVALID, "%.64s wants a value; see '%s --help'", word,
                           s->program->name);
        if (c == '?' && optopt > FLAG_TABLE)
            return err_set(e, -ERR_INVALID, "%.64s takes no value; leave it out", word);
        if (c == '?')
            return unknown_flag(s, word, e);
        if (c < FLAG_CONFIG)
            c = by_letter(s, c);
        CHECK(c > 0);
        if (c == FLAG_CONFIG)
            s->config_path = optarg;
        else if (c < FLAG_TABLE)
            s->print = c;
        else
            add_flag(s, c, optarg);
    }
}

/* --- commands --------------------------------------------------------------------------------- */

/* How many of the words are the command's name; 0: it is another one. */
static int command_words(const char *name, char **words, int count) {
    int used = 0;
    while (*name) {
        size_t len = strcspn(name, " ");
        if (used == count || strlen(words[used]) != len || strncmp(words[used], name, len) != 0)
            return 0;
        used++;
        name += len + (name[len] == ' ');
    }
    return used;
}

/* The index of the command that the words begin with, or -1. */
static int find_command(const struct option_program *p, char **words, int count, int *ret_used) {
    int best = -1, best_used = 0;
    for (int i = 0; p->commands && p->commands[i].name; i++) {
        CHECK(i < COMMANDS_MAX);
        int used = command_words(p->commands[i].name, words, count);
        if (used > best_used) {
            best = i;
            best_used = used;
        }
    }
    if (best >= 0)
        *ret_used = best_used;
    return best;
}

static int unknown_command(const struct option_program *p, char **words, int count, struct err *e) {
    if (count == 0)
        return err_set(e, -ERR_INVALID, "no command given; see '%s --help' for what there is",
                       p->name);
    char given[SUGGEST_LEN_MAX + 1];
    snprintf(given, sizeof given, "%s%s%s", words[0], count > 1 ? " " : "",
             count > 1 ? words[1] : "");
    const char *near = NULL;
    size_t near_distance = SUGGEST_DISTANCE_MAX + 1;
    for (size_t i = 0; p->commands[i].name; i++) {
        const char *name = p->commands[i].name;
        size_t distance = edit_distance(strchr(name, ' ') ? given : words[0], name);
        if (distance < near_distance) {
            near_distance = distance;
            near = name;
        }
    }
    if (near)
        return err_set(e, -ERR_INVALID, "unknown command '%s'; did you mean '%s'?", given, near);
    return err_set(e, -ERR_INVALID, "unknown command '%s'; see '%s --help' for what there is",
                   given, p->name);
}

static int check_arg_count(const struct option_program *p, int command, int count, struct err *e) {
    const struct option_command *c = command >= 0 ? &p->commands[command] : NULL;
    unsigned min = c ? c->args_min : p->args_min, max = c ? c->args_max : p->args_max;
    const char *args = c ? c->args : p->args;
    if ((unsigned)count >= min && (unsigned)count <= max)
        return 0;
    return err_set(e, -ERR_INVALID, "too %s arguments; the usage is: %s%s%s%s%s",
                   (unsigned)count < min ? "few" : "many", p->name, c ? " " : "", c ? c->name : "",
                   args ? " " : "", args ? args : "");
}

static int take_words(struct parser *s, int argc, char **argv, struct option_args *args,
                      struct err *e) {
    const struct option_program *p = s->program;
    char **words = argv + optind;
    int count = argc - optind, used = 0;
    int command = p->commands ? find_command(p, words, count, &used) : -1;
    if (p->commands && command < 0)
        return unknown_command(p, words, count, e);
    int rc = check_arg_count(p, command, count - used, e);
    if (rc < 0)
        return rc;
    *args = (struct option_args){.command = command >= 0 ? (unsigned)command : 0,
                                 .argv = words + used,
                                 .argc = count - used};
    return apply_flags(s, command, e);
}

/* --- all together ----------------------------------------------------------------------------- */

static void print(const struct parser *s, int argc, char **argv) {
    const struct option_program *p = s->program;
    CLEANUP_BUF struct buf out = {0};
    int used;
    if (s->print == FLAG_HELP)
        options_print_help(p, find_command(p, argv + optind, argc - optind, &used), &out);
    else if (s->print == FLAG_MD)
        options_print_md(p, &out);
    else if (s->print == FLAG_MAN)
        options_print_man(p, &out);
    else
        buf_printf(&out, "%s %s\n", p->name, PORTALBD_VERSION);
    fwrite(out.data, 1, out.len, stdout);
    fflush(stdout);
}

static int parse(struct parser *s, int argc, char **argv, struct option_args *args, struct err *e) {
    int rc = scan_flags(s, argc, argv, e);
    if (rc < 0)
        return rc;
    if (s->print) {
        print(s, argc, argv);
        *args = (struct option_args){.done = true};
        return 0;
    }
    char name[OPTION_ENV_MAX];
    option_env_name(s->program, &(struct option_spec){.name = "config"}, name);
    if (!s->config_path)
        s->config_path = getenv(name);
    rc = apply_file(s, e);
    if (rc == 0)
        rc = apply_env(s, e);
    if (rc == 0)
        rc = take_words(s, argc, argv, args, e);
    return rc;
}

int options_parse(const struct option_program *p, int argc, char **argv, void *config,
                  struct option_args *ret_args, struct err *e) {
    struct parser s = {.program = p, .config = config};
    while (p->options[s.count].name)
        s.count++;
    CHECK(s.count <= OPTIONS_MAX);
    apply_defaults(&s);
    int rc = parse(&s, argc, argv, ret_args, e);
    free(s.flags);
    if (rc < 0)
        options_release(p, config);
    return rc;
}

void options_parse_or_exit(const struct option_program *p, int argc, char **argv, void *config,
                           struct option_args *ret_args) {
    struct err e = {0};
    if (options_parse(p, argc, argv, config, ret_args, &e) < 0) {
        fprintf(stderr, "%s: %s\n", p->name, e.text);
        exit(EXIT_USAGE);
    }
    if (ret_args->done) {
        options_release(p, config);
        exit(ferror(stdout) ? EXIT_FAILURE : EXIT_SUCCESS);
    }
}

void options_release(const struct option_program *p, void *config) {
    for (const struct option_spec *o = p->options; o->name; o++) {
        void *at = (char *)config + o->off;
        if (o->type == OPTION_STRING || o->type == OPTION_SECRET_FILE) {
            free(*(char **)at);
            *(char **)at = NULL;
        } else if (o->type == OPTION_STRINGS) {
            option_strings_release(at);
        }
    }
}
