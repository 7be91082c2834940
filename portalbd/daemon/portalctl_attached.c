/* portalctl: what is attached, as the node agent and the run folder know it.
 *
 * <run folder>/by-name/<name> is a symbolic link to the device: a path that stays the same, and how
 * a volume's name is known while the store does not answer. The agent knows ids alone, but an id
 * holds the hash of the name: a link of another volume is told from it. */
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/fiber.h"
#include "common/mem.h"
#include "portalbd/daemon/portalctl_internal.h"

enum {
    STEP_US = 2 * 1000 * 1000,   /* between two looks at how it goes */
    IN_USE_US = 3 * 1000 * 1000, /* udev and its like look at devices for a moment */
    PAUSE_US = 200 * 1000,       /* an answer that came at once is asked for again */
    RESTARTS_MAX = 3,            /* of an agent that ends while it is asked */
    ROWS_MAX = 4096,
};

#define LINKS "by-name"

void ctl_say(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("portalctl: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
}

/* --- links --- */

/* NULL: a name that is no file name. */
static char *link_path(const struct ctl *c, const char *name) {
    if (!name[0] || name[0] == '.' || strchr(name, '/'))
        return NULL;
    return xasprintf("%s/" LINKS "/%s", c->config.run_dir, name);
}

void ctl_link_make(const struct ctl *c, const char *name, const char *device) {
    CLEANUP_FREE char *folder = xasprintf("%s/" LINKS, c->config.run_dir);
    CLEANUP_FREE char *path = link_path(c, name);
    if (!path)
        return;
    (void)mkdir(folder, 0755);
    CLEANUP_FREE char *temporary = xasprintf("%s/.%d", folder, (int)getpid());
    (void)unlink(temporary);
    if (symlink(device, temporary) < 0 || rename(temporary, path) < 0) {
        int eno = errno;
        (void)unlink(temporary);
        ctl_say("%s is not there: %s", path, strerror(eno));
    }
}

/* The name of an attached volume or snapshot: of the link whose name has the id's hash. Owned by
 * the caller; "" where there is none. */
char *ctl_name_of_attached(const struct ctl *c, const char *id) {
    CLEANUP_FREE char *folder = xasprintf("%s/" LINKS, c->config.run_dir);
    DIR *dir = opendir(folder);
    char *name = NULL;
    for (const struct dirent *entry; dir && !name && (entry = readdir(dir));)
        if (entry->d_name[0] != '.' && ctl_is_named(id, entry->d_name))
            name = xstrdup(entry->d_name);
    if (dir)
        closedir(dir);
    return name ? name : xstrdup("");
}

void ctl_link_remove(const struct ctl *c, const char *id) {
    CLEANUP_FREE char *name = ctl_name_of_attached(c, id);
    CLEANUP_FREE char *path = link_path(c, name);
    if (path)
        (void)unlink(path);
}

/* --- what the agent has --- */

const char *ctl_text_of(const json_t *object, const char *name) {
    const char *text = json_string_value(json_object_get(object, name));
    return text ? text : "";
}

/* Page by page, until one is empty. */
int ctl_ask_devices(struct ctl *c, json_t **ret, struct err *e) {
    json_t *rows = json_array();
    size_t before;
    do {
        json_t *page = NULL, *args = json_object();
        before = json_array_size(rows);
        if (before)
            json_object_set(args, "after",
                            json_object_get(json_array_get(rows, before - 1), "volume"));
        int rc = ctl_agent_ask(c, "devices", args, 0, &page, e);
        if (rc < 0) {
            json_decref(rows);
            return rc;
        }
        json_array_extend(rows, json_object_get(page, "devices"));
        json_decref(page);
    } while (json_array_size(rows) > before && before < ROWS_MAX);
    *ret = rows;
    return 0;
}

/* The one device of a volume, owned by the caller; NULL: there is none, or no answer. */
static json_t *ask_device(struct ctl *c, const char *id) {
    json_t *rows = NULL, *row, *found = NULL;
    size_t i;
    if (ctl_ask_devices(c, &rows, NULL) < 0)
        return NULL;
    json_array_foreach(rows, i, row) {
        if (strcmp(ctl_text_of(row, "volume"), id) == 0)
            found = json_incref(row);
    }
    json_decref(rows);
    return found;
}

/* By id, or by name through the hash in the id. */
int ctl_find_attached(struct ctl *c, const char *name, char ret_id[ID_MAX], struct err *e) {
    json_t *rows = NULL, *row;
    size_t i;
    unsigned found = 0;
    int rc = ctl_ask_devices(c, &rows, e);
    if (rc < 0)
        return rc;
    json_array_foreach(rows, i, row) {
        const char *id = ctl_text_of(row, "volume");
        struct parsed_id parsed;
        if (id_parse(&parsed, id, NULL) < 0 ||
            (c->config.pool.pool && strcmp(c->config.pool.pool, parsed.pool) != 0))
            continue;
        if (ctl_is_named(id, name)) {
            found++;
            memcpy(ret_id, id, strlen(id) + 1);
        }
    }
    json_decref(rows);
    if (found == 0)
        return err_set(e, -ERR_NOT_FOUND, "'%s' is not attached on this node", name);
    if (found > 1)
        return err_set(e, -ERR_INVALID, "%u attached volumes are called '%s': give an id", found,
                       name);
    return 0;
}

void ctl_agent_info_release(struct ctl_agent_info *i) {
    free(i->node_id);
    free(i->pools);
}

int ctl_ask_info(struct ctl *c, struct ctl_agent_info *ret, struct err *e) {
    json_t *answer = NULL;
    int rc = ctl_agent_ask(c, "info", json_object(), 0, &answer, e);
    if (rc < 0)
        return rc;
    ret->node_id = xstrdup(ctl_text_of(answer, "node_id"));
    ret->pools = xstrdup(ctl_text_of(answer, "pools"));
    json_decref(answer);
    return 0;
}

/* --- waiting for the agent --- */

/* Says how it goes, once for each thing that there is to say. */
struct progress {
    char said[256];
};

static void show_progress(struct progress *p, const json_t *row, const char *what) {
    const char *message = ctl_text_of(row, "message");
    char text[sizeof p->said];
    snprintf(text, sizeof text, "%.120s%s%.120s", what, message[0] ? ": " : "", message);
    if (strcmp(text, p->said) != 0)
        ctl_say("%s", text);
    memcpy(p->said, text, sizeof text);
}

/* Is the device in use, so that the agent has given up detaching it? It is not when it is on its
 * way. */
static bool is_refused(const json_t *row) {
    const char *state = ctl_text_of(row, "state");
    return strcasecmp(state, "attached") == 0 || strcasecmp(state, "failed") == 0;
}

/* Asks until it is done, refused, or the limit is over (-ERR_BUSY, and the text says what is still
 * to do). An agent that ends meanwhile is started again. */
int ctl_ask_patiently(struct ctl *c, const char *verb, const char *id, const json_t *args,
                      uint64_t limit_us, json_t **ret, struct err *e) {
    bool detach = strcmp(verb, "detach") == 0;
    uint64_t start = env_now_us(c->env), step = CTL_QUIET_US;
    struct progress progress = {0};
    unsigned restarts = 0;
    for (;;) {
        uint64_t asked = env_now_us(c->env);
        uint64_t left = asked - start < limit_us ? limit_us - (asked - start) : 1000;
        int rc = ctl_agent_ask(c, verb, json_copy((json_t *)args), MIN(left, step), ret, e);
        uint64_t now = env_now_us(c->env);
        if (rc == -ERR_TRANSIENT && restarts++ < RESTARTS_MAX) {
            /* It has ended, or is about to. */
            rc = fiber_sleep_us(c->env, PAUSE_US) < 0 ? err_set(e, -ERR_CANCELLED, "cancelled")
                                                      : ctl_agent_need(c, e);
            if (rc < 0)
                return rc;
            continue;
        }
        if (rc != -ERR_BUSY)
            return rc;
        json_t *row = ask_device(c, id);
        bool refused = detach && row && is_refused(row);
        bool over = now - start >= (refused ? MIN(limit_us, (uint64_t)IN_USE_US) : limit_us);
        if (!over && !refused)
            show_progress(&progress, row, e->text);
        json_decref(row);
        if (over && refused)
            e->code = -ERR_IN_USE;
        if (over)
            return e->code;
        step = STEP_US;
        if (now - asked < PAUSE_US && fiber_sleep_us(c->env, PAUSE_US) < 0)
            return err_set(e, -ERR_CANCELLED, "cancelled");
    }
}
