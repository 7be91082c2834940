/* Merging the daemons' metrics (see scrape.h).
 *
 * The text format wants all samples of a metric together, under one HELP and one TYPE; so a
 * daemon's text is cut at its "#" lines and collected by name. A daemon answers in pages of whole
 * metrics, since lines of the control protocol are short. */
#include "node-agent/scrape.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/mem.h"
#include "portalbd/control/client.h"

enum { NAME_MAX_BYTES = 128, PAGES_MAX = 64 };

struct family {
    char name[NAME_MAX_BYTES];
    struct buf head; /* HELP and TYPE of who came first */
    struct buf samples;
};

struct scrape {
    struct family *families[SCRAPE_FAMILIES_MAX]; /* by name */
    size_t count;
    size_t bytes;
};

struct scrape *scrape_new(void) {
    return NEW(struct scrape);
}

void scrape_free(struct scrape *s) {
    for (size_t i = 0; i < s->count; i++) {
        buf_release(&s->families[i]->head);
        buf_release(&s->families[i]->samples);
        free(s->families[i]);
    }
    free(s);
}

/* Where the family is, or belongs. */
static size_t place_of(const struct scrape *s, const char *name) {
    size_t low = 0, high = s->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(s->families[middle]->name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* NULL: no more room. *ret_new: its head is still to be written. */
static struct family *family_of(struct scrape *s, struct view name, bool *ret_new) {
    char text[NAME_MAX_BYTES];
    if (name.len == 0 || name.len >= sizeof text)
        return NULL;
    memcpy(text, name.data, name.len);
    text[name.len] = '\0';
    size_t at = place_of(s, text);
    *ret_new = at == s->count || strcmp(s->families[at]->name, text) != 0;
    if (!*ret_new)
        return s->families[at];
    if (s->count == SCRAPE_FAMILIES_MAX)
        return NULL;
    struct family *f = NEW(struct family);
    memcpy(f->name, text, sizeof text);
    memmove(s->families + at + 1, s->families + at, (s->count - at) * sizeof s->families[0]);
    s->families[at] = f;
    s->count++;
    return f;
}

static const uint8_t *find(struct view v, const char *text) {
    return v.len ? memmem(v.data, v.len, text, strlen(text)) : NULL;
}

static void add_sample(struct family *f, const char *volume, struct view line) {
    const uint8_t *space = memchr(line.data, ' ', line.len);
    const uint8_t *brace = memchr(line.data, '{', line.len);
    if (!space)
        return;
    bool labels = brace && brace < space;
    if (labels && find(line, "volume=\"")) {
        buf_append(&f->samples, line.data, line.len);
    } else {
        size_t cut = (size_t)((labels ? brace + 1 : space) - line.data);
        buf_append(&f->samples, line.data, cut);
        buf_printf(&f->samples, labels ? "volume=\"%s\"," : "{volume=\"%s\"}", volume);
        buf_append(&f->samples, line.data + cut, line.len - cut);
    }
    buf_append_str(&f->samples, "\n");
}

/* "# HELP name ..." and "# TYPE name ...": which family follows. */
static struct family *enter(struct scrape *s, struct family *now, bool *now_new, struct view line) {
    static const size_t skip = sizeof "# HELP " - 1;
    if (line.len <= skip ||
        (memcmp(line.data, "# HELP ", skip) && memcmp(line.data, "# TYPE ", skip)))
        return now;
    struct view rest = view_part(line, skip, line.len - skip);
    const uint8_t *space = memchr(rest.data, ' ', rest.len);
    size_t len = space ? (size_t)(space - rest.data) : rest.len;
    if (!now || strlen(now->name) != len || memcmp(now->name, rest.data, len) != 0)
        now = family_of(s, view_of(rest.data, len), now_new);
    if (now && *now_new) {
        buf_append(&now->head, line.data, line.len);
        buf_append_str(&now->head, "\n");
    }
    return now;
}

void scrape_add(struct scrape *s, const char *volume, struct view text) {
    struct family *now = NULL;
    bool now_new = false;
    while (text.len && s->bytes < SCRAPE_BYTES_MAX) {
        const uint8_t *end = memchr(text.data, '\n', text.len);
        size_t len = end ? (size_t)(end - text.data) : text.len;
        struct view line = view_of(text.data, len);
        s->bytes += len;
        if (len && line.data[0] == '#')
            now = enter(s, now, &now_new, line);
        else if (len && now)
            add_sample(now, volume, line);
        size_t taken = end ? len + 1 : len;
        text = view_of(text.data + taken, text.len - taken);
    }
}

void scrape_render(const struct scrape *s, struct buf *out) {
    for (size_t i = 0; i < s->count; i++) {
        buf_append(out, s->families[i]->head.data, s->families[i]->head.len);
        buf_append(out, s->families[i]->samples.data, s->families[i]->samples.len);
    }
}

static uint64_t now_ms(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* A daemon that does not answer, or no longer, leaves a gap, as any scrape's target does. */
static void scrape_one(struct scrape *s, const char *run_dir, const char *volume) {
    char after[NAME_MAX_BYTES] = "";
    for (unsigned page = 0; page < PAGES_MAX; page++) {
        json_t *result, *args = json_pack("{s:s}", "after", after);
        int rc = control_call(run_dir, volume, "metrics", args, SCRAPE_DAEMON_MS_MAX * 1000,
                              &result, NULL);
        json_decref(args);
        if (rc < 0)
            return;
        const char *text = json_string_value(json_object_get(result, "text"));
        const char *next = json_string_value(json_object_get(result, "next"));
        if (text)
            scrape_add(s, volume, view_of_str(text));
        bool more = next && next[0] && strlen(next) < sizeof after && strcmp(next, after) > 0;
        if (more)
            snprintf(after, sizeof after, "%s", next);
        json_decref(result);
        if (!more)
            return;
    }
}

void scrape_daemons(const char *run_dir, struct buf *out) {
    char **volumes;
    size_t count;
    uint64_t start = now_ms();
    if (control_list(run_dir, &volumes, &count, NULL) < 0)
        return;
    struct scrape *s = scrape_new();
    for (size_t i = 0; i < count; i++) {
        if (now_ms() - start < SCRAPE_ALL_MS_MAX)
            scrape_one(s, run_dir, volumes[i]);
        free(volumes[i]);
    }
    free(volumes);
    scrape_render(s, out);
    scrape_free(s);
}
