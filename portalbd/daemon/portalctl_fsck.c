/* portalctl: fsck and inspect.
 *
 * Findings are printed as they come, on stdout (with --output json all at the end); on a terminal a
 * line on stderr says how far it is. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/mem.h"
#include "portalbd/catalog/fsck.h"
#include "portalbd/catalog/inspect.h"
#include "portalbd/daemon/portalctl_internal.h"

enum {
    FINDINGS_MAX = 10000, /* listed in JSON; all are counted */
    PROGRESS_US = 200 * 1000,
};

/* --- fsck --- */

struct fsck_run {
    struct ctl *c;
    json_t *findings; /* NULL: printed at once */
    bool terminal;
    uint64_t last_us;
};

static void clear_line(const struct fsck_run *r) {
    if (r->terminal && r->last_us > 0)
        fputs("\r\033[K", stderr);
}

static void on_finding(void *arg, const struct fsck_finding *f) {
    struct fsck_run *r = arg;
    static const char *const kinds[] = {
        [FSCK_DAMAGE] = "damaged", [FSCK_LEAK] = "leaked", [FSCK_GARBAGE] = "garbage"};
    const char *kind = kinds[f->kind];
    if (f->kind == FSCK_GARBAGE && !r->c->config.garbage)
        return;
    if (r->findings) {
        if (json_array_size(r->findings) < FINDINGS_MAX)
            json_array_append_new(r->findings, json_pack("{s:s,s:s,s:s}", "kind", kind, "key",
                                                         f->key, "what", f->text));
        return;
    }
    clear_line(r);
    printf("%s  %s: %s\n", kind, f->key, f->text);
    fflush(stdout);
}

static void on_progress(void *arg, const struct fsck_result *f, const char *where) {
    struct fsck_run *r = arg;
    char bytes[32];
    uint64_t now = env_now_us(r->c->env);
    if (!r->terminal || now - r->last_us < PROGRESS_US)
        return;
    r->last_us = now;
    ctl_format_bytes(f->bytes_read, bytes, sizeof bytes);
    fprintf(stderr, "\r\033[K%s: %llu records, %llu objects, %s read, %llu findings", where,
            (unsigned long long)f->records, (unsigned long long)f->objects, bytes,
            (unsigned long long)(f->damaged + f->leaked));
}

static json_t *encode_result(const struct fsck_result *r) {
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "volumes",
                     (json_int_t)r->volumes, "snapshots", (json_int_t)r->snapshots, "records",
                     (json_int_t)r->records, "roots", (json_int_t)r->roots, "runs",
                     (json_int_t)r->runs, "map_entries", (json_int_t)r->entries, "objects",
                     (json_int_t)r->objects, "frames", (json_int_t)r->frames, "read_bytes",
                     (json_int_t)r->bytes_read, "pending", (json_int_t)r->pending, "unsettled",
                     (json_int_t)r->unsettled, "garbage", (json_int_t)r->garbage, "garbage_bytes",
                     (json_int_t)r->garbage_bytes, "leaked", (json_int_t)r->leaked, "damaged",
                     (json_int_t)r->damaged);
}

int ctl_fsck(struct ctl *c, struct err *e) {
    struct fsck_run run = {.c = c, .terminal = isatty(STDERR_FILENO) == 1};
    struct fsck f = {.quick = c->config.quick,
                     .on_finding = on_finding,
                     .on_progress = on_progress,
                     .arg = &run};
    const char *volume = c->argv[0];
    int rc = ctl_open_pool(c, e); /* what is in it, fsck looks at */
    if (rc < 0)
        return rc;
    f.catalog = c->catalog;
    if (c->config.output == OUTPUT_JSON)
        run.findings = json_array();
    rc = !volume                        ? fsck_pool(&f, e)
         : ctl_is_id(volume, ID_VOLUME) ? fsck_volume(&f, volume, e)
                                        : fsck_volume_named(&f, volume, e);
    clear_line(&run);
    if (rc < 0 && f.result.volumes == 0 && f.result.damaged == 0) { /* nothing to tell */
        json_decref(run.findings);
        return rc;
    }
    c->result = encode_result(&f.result);
    if (run.findings)
        json_object_set_new(c->result, "findings", run.findings);
    if (f.result.unsettled > 0)
        ctl_say("%llu volumes changed faster than they could be read; look again",
                (unsigned long long)f.result.unsettled);
    if (f.result.damaged > 0)
        c->exit_code = CTL_EXIT_DAMAGED;
    else if (rc == 0 && (f.result.leaked > 0 || (c->config.garbage && f.result.garbage > 0)))
        c->exit_code = CTL_EXIT_LEAKED;
    return rc;
}

/* --- inspect --- */

static int read_local(const char *path, struct buf *ret, struct err *e) {
    FILE *f = fopen(path, "re");
    if (!f)
        return err_from_errno(e, errno, "%s", path);
    char part[16384];
    size_t n;
    while ((n = fread(part, 1, sizeof part, f)) > 0 && ret->len <= OBJ_SIZE_MAX)
        buf_append(ret, part, n);
    int rc = ferror(f) ? err_from_errno(e, errno, "%s", path) : 0;
    fclose(f);
    if (rc == 0 && ret->len > OBJ_SIZE_MAX)
        rc = err_set(e, -ERR_INVALID, "%s is larger than any object", path);
    return rc;
}

/* Only an object of ours lies there. */
static bool is_our_key(const char *key) {
    uint64_t n;
    struct random_id id;
    bool is_root;
    char pool[KEY_MAX];
    key_pool(pool);
    return strcmp(key, pool) == 0 ||
           (strchr(key, '/') &&
            (key_parse_numbered(key, &n) == 0 || key_parse_log(key, &n) == 0 ||
             key_parse_random(key, &id) == 0 || key_parse_pin(key, &id, &is_root) == 0));
}

int ctl_inspect(struct ctl *c, struct err *e) {
    const char *key = c->argv[0];
    CLEANUP_BUF struct buf body = {0};
    bool local = access(key, R_OK) == 0;
    int rc;
    if (!key[0])
        return err_set(e, -ERR_INVALID, "a key is not empty, nor is a file's name");
    if (local) {
        rc = read_local(key, &body, e);
    } else {
        rc = ctl_open_pool(c, e);
        if (rc == 0)
            rc = objstore_get(c->pool.store, key, OBJ_SIZE_MAX, &body, e);
        if (rc == -ERR_NOT_FOUND && c->catalog)
            return err_set(e, rc, "'%s' is neither a file nor a key of the pool", key);
    }
    if (rc == 0) {
        rc = object_describe(key, buf_view(&body), &c->result, e);
        if (rc == -ERR_INVALID && !local && is_our_key(key))
            e->code = rc = -ERR_CORRUPT;
    }
    return rc < 0 ? err_wrap(e, "%s", key) : 0;
}
