/* Files of "[section]" and "key = value" lines (libinih), for options and for the list of pools. A
 * line that begins with # or ;, and what follows " ;" in another, is a comment; lines may be
 * indented. */
#pragma once

#include "common/err.h"

enum {
    CONFIG_FILE_SIZE_MAX = 1024 * 1024, /* bytes */
    CONFIG_LINE_MAX = 190,              /* bytes; Debian's libinih cuts at 199 */
};

/* Calls fn for each key in turn, section "" before the first heading; strings are borrowed for the
 * call. fn returns 0 or -ERR_x and sets e; the error is wrapped with file and line. The file must
 * be a regular file. -ERR_NOT_FOUND: there is none; -ERR_CONFIG: a line that is none of the above.
 * Any thread; blocks. */
int config_file_read(const char *path,
                     int (*fn)(void *arg, const char *section, const char *key, const char *value,
                               struct err *e),
                     void *arg, struct err *e);
