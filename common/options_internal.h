/* What the files of common/option*.c share. */
#pragma once

#include "common/buf.h"
#include "common/options.h"

/* Number to the shortest text that the parser reads back: "64Mi", "30s", "8". */
void option_format(enum option_type type, uint64_t value, char *text, size_t size);

/* Parses and stores one value; adds to a list, which is split at commas if `split`. */
int option_set(const struct option_spec *o, const char *text, bool split, void *config,
               struct err *e);

int option_strings_add(struct option_strings *list, const char *text, size_t len, struct err *e);
void option_strings_release(struct option_strings *list);

/* The variable's name, or "" when it has none. */
enum { OPTION_ENV_MAX = 80 };
void option_env_name(const struct option_program *p, const struct option_spec *o,
                     char name[OPTION_ENV_MAX]);
/* The heading an option stands under: its own or the nearest above. */
const char *option_group(const struct option_program *p, const struct option_spec *o);
/* What stands for the value in a usage line; NULL for a bool. */
const char *option_arg(const struct option_spec *o);
bool option_applies(const struct option_program *p, const struct option_spec *o, int command);

/* Texts made from the table. command: index, or -1 for the whole program. */
void options_print_help(const struct option_program *p, int command, struct buf *out);
void options_print_md(const struct option_program *p, struct buf *out);
void options_print_man(const struct option_program *p, struct buf *out);
