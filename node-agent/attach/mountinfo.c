/* mountinfo's fields are separated by single spaces; a space, tab, newline or backslash inside one
 * is \ooo. After six fields come any number of optional ones, then "-", type, source, options. */
#include "node-agent/attach/mountinfo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct view next_field(struct view *rest) {
    const uint8_t *space = rest->len ? memchr(rest->data, ' ', rest->len) : NULL;
    size_t len = space ? (size_t)(space - rest->data) : rest->len;
    struct view field = view_of(rest->data, len);
    size_t taken = space ? len + 1 : len;
    *rest = view_of(rest->data + taken, rest->len - taken);
    return field;
}

static bool is_octal(uint8_t c) {
    return c >= '0' && c <= '7';
}

static bool unescape(struct view field, char *to, size_t room) {
    size_t n = 0;
    for (size_t i = 0; i < field.len; i++) {
        const uint8_t *p = field.data + i;
        char c = (char)*p;
        if (*p == '\\' && field.len - i >= 4 && is_octal(p[1]) && is_octal(p[2]) &&
            is_octal(p[3])) {
            c = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            i += 3;
        }
        if (n + 1 >= room)
            return false;
        to[n++] = c;
    }
    to[n] = '\0';
    return true;
}

static bool parse_device(struct view field, struct mountinfo_entry *ret) {
    char text[32];
    char tail;
    return unescape(field, text, sizeof text) &&
           sscanf(text, "%u:%u%c", &ret->major, &ret->minor, &tail) == 2;
}

bool mountinfo_parse(struct view line, struct mountinfo_entry *ret) {
    struct view rest = line;
    next_field(&rest); /* mount id */
    next_field(&rest); /* parent id */
    if (!parse_device(next_field(&rest), ret))
        return false;
    next_field(&rest); /* root in its filesystem */
    if (!unescape(next_field(&rest), ret->point, sizeof ret->point) || ret->point[0] != '/')
        return false;
    next_field(&rest); /* mount options */
    for (;;) {
        if (rest.len == 0)
            return false;
        if (view_equal(next_field(&rest), view_of_str("-")))
            break;
    }
    return unescape(next_field(&rest), ret->type, sizeof ret->type) && ret->type[0] &&
           unescape(next_field(&rest), ret->source, sizeof ret->source);
}

void mountinfo_each(struct view text, bool (*fn)(void *arg, const struct mountinfo_entry *entry),
                    void *arg) {
    struct mountinfo_entry entry;
    while (text.len) {
        const uint8_t *end = memchr(text.data, '\n', text.len);
        size_t len = end ? (size_t)(end - text.data) : text.len;
        if (mountinfo_parse(view_of(text.data, len), &entry) && !fn(arg, &entry))
            return;
        size_t taken = end ? len + 1 : len;
        text = view_of(text.data + taken, text.len - taken);
    }
}
