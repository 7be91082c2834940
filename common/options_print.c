/* What is printed from an option table: --help, the manual page, the table of the documentation. */
#include <string.h>

#include "common/options_internal.h"

enum { HELP_WIDTH = 80, HELP_INDENT = 6 };

/* Words of text, wrapped; the first line continues at column `column`. */
static void append_wrapped(struct buf *out, const char *text, size_t indent, size_t column) {
    bool first = column == indent;
    while (*text) {
        size_t len = strcspn(text, " \n");
        if (!first && column + 1 + len > HELP_WIDTH) {
            buf_printf(out, "\n%*s", (int)indent, "");
            column = indent;
            first = true;
        }
        buf_printf(out, "%s%.*s", first ? "" : " ", (int)len, text);
        column += len + !first;
        first = false;
        text += len;
        text += strspn(text, " \n");
    }
    buf_append_str(out, "\n");
}

/* "from 1Mi to 1Ti", "at least 1", "a or b", or nothing. */
static void append_range(struct buf *out, const struct option_spec *o) {
    char min[32], max[32];
    if (o->type == OPTION_ENUM) {
        for (size_t i = 0; o->choices[i]; i++)
            buf_printf(out, "%s%s", i == 0 ? "" : o->choices[i + 1] ? ", " : " or ", o->choices[i]);
        return;
    }
    if (o->type != OPTION_U64 && o->type != OPTION_SIZE && o->type != OPTION_DURATION)
        return;
    option_format(o->type, o->min, min, sizeof min);
    option_format(o->type, o->max, max, sizeof max);
    if (o->max > 0)
        buf_printf(out, "from %s to %s", min, max);
    else if (o->min > 0)
        buf_printf(out, "at least %s", min);
}

static void append_usage(const struct option_program *p, int command, struct buf *out) {
    buf_printf(out, "Usage: %s", p->name);
    if (command >= 0)
        buf_printf(out, " %s [OPTION...]", p->commands[command].name);
    else
        buf_printf(out, p->commands ? " COMMAND [OPTION...] [ARGUMENT...]" : " [OPTION...]");
    const char *args = command >= 0 ? p->commands[command].args : p->args;
    if (args)
        buf_printf(out, " %s", args);
    buf_append_str(out, "\n");
}

static void append_option_help(const struct option_program *p, const struct option_spec *o,
                               struct buf *out) {
    const char *arg = option_arg(o);
    if (o->letter)
        buf_printf(out, "  -%c, ", o->letter);
    buf_printf(out, "%s--%s%s%s%s\n%*s", o->letter ? "" : "  ", arg ? "" : "[no-]", o->name,
               arg ? " " : "", arg ? arg : "", HELP_INDENT, "");
    CLEANUP_BUF struct buf text = {0};
    buf_append_str(&text, o->help);
    CLEANUP_BUF struct buf range = {0};
    append_range(&range, o);
    if (range.len > 0)
        buf_printf(&text, " Allowed: %s.", buf_cstr(&range));
    if (o->type == OPTION_STRINGS)
        buf_append_str(&text, " May be given several times.");
    if (o->def && *o->def)
        buf_printf(&text, " Default: %s.", o->def);
    char env[OPTION_ENV_MAX];
    option_env_name(p, o, env);
    if (*env)
        buf_printf(&text, " (%s)", env);
    append_wrapped(out, buf_cstr(&text), HELP_INDENT, HELP_INDENT);
}

static void append_help_options(const struct option_program *p, int command, struct buf *out) {
    const char *group = NULL;
    for (const struct option_spec *o = p->options; o->name; o++) {
        if (!option_applies(p, o, command))
            continue;
        const char *own = option_group(p, o);
        if (!group || strcmp(group, own) != 0)
            buf_printf(out, "\n%s:\n", own);
        group = own;
        append_option_help(p, o, out);
    }
}

void options_print_help(const struct option_program *p, int command, struct buf *out) {
    append_usage(p, command, out);
    append_wrapped(out, command >= 0 ? p->commands[command].help : p->summary, 0, 0);
    const char *text = command < 0 ? p->description : NULL;
    while (text && *text) {
        const char *end = strstr(text, "\n\n");
        size_t len = end ? (size_t)(end - text) : strlen(text);
        CLEANUP_BUF struct buf paragraph = {0};
        buf_append(&paragraph, text, len);
        buf_append_str(out, "\n");
        append_wrapped(out, buf_cstr(&paragraph), 0, 0);
        text += len + strspn(text + len, "\n");
    }
    if (command < 0 && p->commands) {
        buf_append_str(out, "\nCommands:\n");
        for (const struct option_command *c = p->commands; c->name; c++) {
            buf_printf(out, "  %s%s%s\n%*s", c->name, c->args ? " " : "", c->args ? c->args : "",
                       HELP_INDENT, "");
            append_wrapped(out, c->help, HELP_INDENT, HELP_INDENT);
        }
    }
    append_help_options(p, command, out);
    buf_printf(
        out,
        "\nEvery program:\n  --config FILE\n      Lines of key = value, with the names of the "
        "options above.%s%s%s\n  --help, --version, --print-options-md, --print-man\n\n"
        "Defaults are overridden by the file, the file by the environment, and that by flags."
        "\n",
        p->config_path ? " Default: " : "", p->config_path ? p->config_path : "",
        p->config_path ? ", if it exists." : "");
}

/* --- Markdown --------------------------------------------------------------------------------- */

static void append_md_cell(struct buf *out, const char *text) {
    for (; *text; text++) {
        if (*text == '|')
            buf_append_str(out, "\\");
        buf_append(out, *text == '\n' ? " " : text, 1);
    }
}

static const char *type_name(enum option_type type) {
    static const char *const names[] = {
        [OPTION_STRING] = "text", [OPTION_STRINGS] = "list of texts",
        [OPTION_BOOL] = "bool",   [OPTION_U64] = "number",
        [OPTION_SIZE] = "size",   [OPTION_DURATION] = "duration",
        [OPTION_ENUM] = "word",   [OPTION_SECRET_FILE] = "file",
    };
    return names[type];
}

static void append_md_option(const struct option_program *p, const struct option_spec *o,
                             struct buf *out) {
    char env[OPTION_ENV_MAX];
    option_env_name(p, o, env);
    CLEANUP_BUF struct buf range = {0};
    append_range(&range, o);
    const char *tick = *env ? "`" : "";
    buf_printf(out, "| `--%s` | %s%s%s | %s | %s | %s | ", o->name, tick, env, tick,
               type_name(o->type), o->def ? o->def : "", buf_cstr(&range));
    append_md_cell(out, o->help);
    for (size_t i = 0, n = 0; o->commands && p->commands && p->commands[i].name; i++)
        if (o->commands & OPTION_FOR(i))
            buf_printf(out, "%s%s", n++ == 0 ? " Only for: " : ", ", p->commands[i].name);
    buf_append_str(out, " |\n");
}

void options_print_md(const struct option_program *p, struct buf *out) {
    buf_printf(out, "# %s\n\n%s\n", p->name, p->summary);
    if (p->commands) {
        buf_append_str(out, "\n| command | what it does |\n|---|---|\n");
        for (const struct option_command *c = p->commands; c->name; c++) {
            buf_printf(out, "| `%s%s%s` | ", c->name, c->args ? " " : "", c->args ? c->args : "");
            append_md_cell(out, c->help);
            buf_append_str(out, " |\n");
        }
    }
    const char *group = NULL;
    for (const struct option_spec *o = p->options; o->name; o++) {
        const char *own = option_group(p, o);
        if (!group || strcmp(group, own) != 0)
            buf_printf(out,
                       "\n## %s\n\n| option | environment | type | default | allowed | meaning |\n"
                       "|---|---|---|---|---|---|\n",
                       own);
        group = own;
        append_md_option(p, o, out);
    }
}

/* --- man(7) ----------------------------------------------------------------------------------- */

static void append_man_text(struct buf *out, const char *text) {
    bool line_start = true;
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            buf_append_str(out, "\\&");
        if (*text == '\\')
            buf_append_str(out, "\\e");
        else if (*text == '-')
            buf_append_str(out, "\\-");
        else
            buf_append(out, text, 1);
        line_start = *text == '\n';
    }
}

static void append_man_line(struct buf *out, const char *before, const char *text) {
    buf_append_str(out, before);
    append_man_text(out, text);
    buf_append_str(out, "\n");
}

static void append_man_option(const struct option_program *p, const struct option_spec *o,
                              struct buf *out) {
    const char *arg = option_arg(o);
    buf_append_str(out, ".TP\n\\fB");
    if (o->letter)
        buf_printf(out, "\\-%c\\fR, \\fB", o->letter);
    append_man_text(out, arg ? "--" : "--[no-]");
    append_man_text(out, o->name);
    buf_append_str(out, "\\fR");
    if (arg)
        buf_printf(out, " \\fI%s\\fR", arg);
    append_man_line(out, "\n", o->help);
    CLEANUP_BUF struct buf range = {0};
    append_range(&range, o);
    if (range.len > 0) {
        append_man_line(out, "Allowed: ", buf_cstr(&range));
        buf_append_str(out, ".br\n");
    }
    if (o->def)
        append_man_line(out, "Default: ", o->def);
    char env[OPTION_ENV_MAX];
    option_env_name(p, o, env);
    if (*env)
        append_man_line(out, "Environment: ", env);
}

void options_print_man(const struct option_program *p, struct buf *out) {
    buf_printf(out, ".TH \"%s\" \"8\" \"\" \"portalbd %s\" \"portalbd\"\n.SH NAME\n", p->name,
               PORTALBD_VERSION);
    append_man_text(out, p->name);
    append_man_line(out, " \\- ", p->summary);
    buf_append_str(out, ".SH SYNOPSIS\n.B ");
    append_man_line(out, "", p->name);
    append_man_line(out, p->commands ? "COMMAND " : "",
                    p->commands ? "[OPTION...] [ARGUMENT...]" : "[OPTION...]");
    if (p->args)
        append_man_line(out, "", p->args);
    if (p->description)
        append_man_line(out, ".SH DESCRIPTION\n", p->description);
    if (p->commands) {
        buf_append_str(out, ".SH COMMANDS\n");
        for (const struct option_command *c = p->commands; c->name; c++) {
            buf_append_str(out, ".TP\n\\fB");
            append_man_text(out, c->name);
            buf_printf(out, "\\fR %s\n", c->args ? c->args : "");
            append_man_line(out, "", c->help);
        }
    }
    const char *group = NULL;
    for (const struct option_spec *o = p->options; o->name; o++) {
        const char *own = option_group(p, o);
        if (!group || strcmp(group, own) != 0)
            append_man_line(out, group ? ".SS " : ".SH OPTIONS\n.SS ", own);
        group = own;
        append_man_option(p, o, out);
    }
    buf_append_str(out, ".SH FILES\nDefaults are overridden by the file that \\fB\\-\\-config\\fR "
                        "names (lines of key = value), the file by the environment, and that by "
                        "flags.\n");
    if (p->config_path)
        append_man_line(out, "The file is, if it exists: ", p->config_path);
}
