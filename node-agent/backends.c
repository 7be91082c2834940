/* The attach backends by name, and what their probes say. */
#include "node-agent/backends.h"

#include <stdio.h>
#include <string.h>

#include "common/log.h"
#include "common/mem.h"

static int open_nbd(const struct backends_config *c, struct attach_backend **ret, struct err *e) {
    return attach_nbd_open(&c->nbd, ret, e);
}

static int open_fuse(const struct backends_config *c, struct attach_backend **ret, struct err *e) {
    return attach_fuse_open(c->run_dir, ret, e);
}

static const struct kind {
    const char *name;
    int (*open)(const struct backends_config *c, struct attach_backend **ret, struct err *e);
} kinds[] = {{"nbd", open_nbd}, {"fuse", open_fuse}};

static const struct kind *find_kind(const char *name) {
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (strcmp(kinds[i].name, name) == 0)
            return &kinds[i];
    return NULL;
}

/* A backend that cannot be used is no error. */
static void open_one(const struct backends_config *c, const struct kind *kind,
                     struct agent_backend *ret) {
    struct err why;
    *ret = (struct agent_backend){.name = kind->name};
    int rc = kind->open(c, &ret->backend, &why);
    if (rc == 0 && (rc = ret->backend->ops->probe(ret->backend, ret->note, &why)) < 0) {
        ret->backend->ops->close(ret->backend);
        ret->backend = NULL;
    }
    if (rc < 0) {
        snprintf(ret->note, sizeof ret->note, "%.*s", ATTACH_NOTE_MAX - 1, why.text);
        log_warn("a backend is left out", LOG_STR("backend", kind->name), LOG_ERR(&why));
    } else if (ret->note[0]) {
        log_warn("a backend has a limit on this node", LOG_STR("backend", kind->name),
                 LOG_STR("note", ret->note));
    }
}

int backends_open(const struct backends_config *c, struct agent_backend ret[AGENT_BACKENDS_MAX],
                  size_t *ret_count, struct err *e) {
    size_t usable = 0;
    *ret_count = 0;
    for (size_t i = 0; i < c->count; i++) {
        const struct kind *kind = find_kind(c->names[i]);
        if (!kind)
            return err_set(e, -ERR_CONFIG, "backend '%s' is not known; there are: nbd, fuse",
                           c->names[i]);
        for (size_t k = 0; k < *ret_count; k++)
            if (ret[k].name == kind->name)
                return err_set(e, -ERR_CONFIG, "backend '%s' is named twice", kind->name);
        CHECK(*ret_count < AGENT_BACKENDS_MAX);
        open_one(c, kind, &ret[*ret_count]);
        usable += ret[(*ret_count)++].backend != NULL;
    }
    if (usable == 0)
        return err_set(e, -ERR_UNSUPPORTED, "no backend works on this node");
    return 0;
}

void backends_close(struct agent_backend *backends, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (backends[i].backend)
            backends[i].backend->ops->close(backends[i].backend);
}
