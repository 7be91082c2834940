/* /proc/<pid>/mountinfo, line by line (proc(5)). Pure. */
#pragma once

#include "common/err.h"
#include "common/view.h"

enum { MOUNTINFO_PATH_MAX = 4096 }; /* bytes, the NUL included */

struct mountinfo_entry {
    unsigned major, minor;          /* st_dev of what is mounted */
    char point[MOUNTINFO_PATH_MAX]; /* as this process sees it, unescaped */
    char type[64];
    char source[256]; /* unescaped */
};

/* False: not a line of mountinfo, or one of its fields is too long for us. */
bool mountinfo_parse(struct view line, struct mountinfo_entry *ret);

/* Calls fn for each line of a mountinfo text until it returns false. Lines that cannot be parsed
 * are left out. */
void mountinfo_each(struct view text, bool (*fn)(void *arg, const struct mountinfo_entry *entry),
                    void *arg);
