/* Attach files (see state.h). JSON, because people look into them when something is wrong. */
#include "node-agent/state.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"
#include "common/config_file.h"
#include "common/log.h"
#include "common/mem.h"

enum { STATE_VERSION = 1 };

struct state_dir {
    char *path; /* <run_dir>/attachments */
    char boot_id[STATE_BOOT_ID_MAX];
};

/* --- attach file <-> struct --- */

void attach_state_encode(struct buf *out, const struct attach_state *s) {
    json_t *j =
        json_pack("{s:i, s:s, s:s, s:s, s:I, s:b, s:b, s:I, s:I, s:I, s:I, s:b}", "version",
                  STATE_VERSION, "boot_id", s->boot_id, "volume", s->volume, "backend", s->backend,
                  "publish_epoch", (json_int_t)s->publish_epoch, "read_only", s->read_only,
                  "own_credentials", s->own_credentials, "cache_bytes", (json_int_t)s->cache_bytes,
                  "journal_bytes", (json_int_t)s->journal_bytes, "pid", (json_int_t)s->pid,
                  "pid_start", (json_int_t)s->pid_start, "served", s->served);
    json_t *of_daemon =
        json_pack("{s:b, s:s, s:i, s:I, s:I, s:I}", "opened", s->opened, "journal",
                  s->journal_memory ? "memory" : "shm", "nbd_flags", s->nbd_flags, "size_bytes",
                  (json_int_t)s->size_bytes, "restarts", (json_int_t)s->restarts,
                  "disk_cache_bytes", (json_int_t)s->disk_cache_bytes);
    CHECK(j && of_daemon && json_object_update(j, of_daemon) == 0);
    json_decref(of_daemon);
    char *text = json_dumps(j, JSON_INDENT(1));
    CHECK(text);
    buf_append_str(out, text);
    buf_append_str(out, "\n");
    free(text);
    json_decref(j);
}

static bool copy_text(char *to, size_t room, const char *from) {
    size_t len = strlen(from);
    if (len == 0 || len >= room)
        return false;
    memcpy(to, from, len + 1);
    return true;
}

/* What files of older agents do not have. Of those that knew no resuming, daemons' journals are
 * memory. */
static bool unpack_daemon(struct attach_state *s, json_t *j) {
    int opened = 0, flags = 0;
    json_int_t size = 0, restarts = 0, disk_cache = 0;
    const char *journal = "memory";
    if (json_unpack(j, "{s?:b, s?:s, s?:i, s?:I, s?:I, s?:I}", "opened", &opened, "journal",
                    &journal, "nbd_flags", &flags, "size_bytes", &size, "restarts", &restarts,
                    "disk_cache_bytes", &disk_cache) < 0)
        return false;
    if (flags < 0 || flags > UINT16_MAX || size < 0 || restarts < 0 || disk_cache < 0)
        return false;
    s->opened = opened;
    s->journal_memory = strcmp(journal, "shm") != 0;
    s->nbd_flags = (uint16_t)flags;
    s->size_bytes = (uint64_t)size;
    s->restarts = (uint64_t)restarts;
    s->disk_cache_bytes = (uint64_t)disk_cache;
    return true;
}

static bool unpack(struct attach_state *s, json_t *j) {
    int version, read_only, own, served;
    const char *boot_id, *volume, *backend;
    json_int_t epoch, cache, journal, pid, start;
    if (json_unpack(j, "{s:i, s:s, s:s, s:s, s:I, s:b, s:b, s:I, s:I, s:I, s:I, s:b}", "version",
                    &version, "boot_id", &boot_id, "volume", &volume, "backend", &backend,
                    "publish_epoch", &epoch, "read_only", &read_only, "own_credentials", &own,
                    "cache_bytes", &cache, "journal_bytes", &journal, "pid", &pid, "pid_start",
                    &start, "served", &served) < 0)
        return false;
    if (version != STATE_VERSION || epoch < 0 || epoch > UINT32_MAX || cache < 0 || journal < 0 ||
        pid < 0 || pid > INT32_MAX || start < 0)
        return false;
    s->publish_epoch = (uint64_t)epoch;
    s->read_only = read_only;
    s->own_credentials = own;
    s->served = served;
    s->cache_bytes = (uint64_t)cache;
    s->journal_bytes = (uint64_t)journal;
    s->pid = pid;
    s->pid_start = (uint64_t)start;
    return copy_text(s->boot_id, sizeof s->boot_id, boot_id) &&
           copy_text(s->volume, sizeof s->volume, volume) &&
           copy_text(s->backend, sizeof s->backend, backend) && unpack_daemon(s, j);
}

int attach_state_decode(struct attach_state *ret, struct view in, struct err *e) {
    json_error_t why;
    struct attach_state s = {0};
    struct parsed_id id;
    if (in.len > STATE_FILE_MAX)
        return err_set(e, -ERR_CORRUPT, "an attach file of %zu bytes", in.len);
    json_t *j = json_loadb((const char *)in.data, in.len, JSON_REJECT_DUPLICATES, &why);
    if (!j)
        return err_set(e, -ERR_CORRUPT, "attach file, line %d: %s", why.line, why.text);
    bool good = unpack(&s, j);
    json_decref(j);
    if (!good || id_parse(&id, s.volume, NULL) < 0)
        return err_set(e, -ERR_CORRUPT, "the attach file lacks something or is of another version");
    *ret = s;
    return 0;
}

/* --- files --- */

static int write_all(int fd, struct view v) {
    while (v.len) {
        ssize_t n = write(fd, v.data, v.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        v = view_part(v, (size_t)n, v.len - (size_t)n);
    }
    return 0;
}

static int write_file(const char *path, struct view content, struct err *e) {
    CLEANUP_FREE char *temporary = xasprintf("%s.tmp", path);
    (void)unlink(temporary); /* of a call that was cut off; modes are given at creation */
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_from_errno(e, errno, "create %s", temporary);
    int failed = write_all(fd, content);
    int eno = errno;
    close(fd);
    if (failed == 0 && rename(temporary, path) == 0)
        return 0;
    eno = failed ? eno : errno;
    (void)unlink(temporary);
    return err_from_errno(e, eno, "write %s", path);
}

static int read_file(const char *path, struct buf *ret, struct err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s", path);
    int rc = 0;
    while (rc == 0 && ret->len <= STATE_FILE_MAX) {
        buf_reserve(ret, 4096);
        ssize_t n = read(fd, ret->data + ret->len, 4096);
        if (n < 0)
            rc = err_from_errno(e, errno, "read %s", path);
        if (n <= 0)
            break;
        ret->len += (size_t)n;
    }
    close(fd);
    return rc;
}

static char *file_of(struct state_dir *d, const char *volume, const char *suffix) {
    return xasprintf("%s/%s%s", d->path, volume, suffix);
}

int state_open(const char *run_dir, struct state_dir **ret, struct err *e) {
    CLEANUP_FREE char *path = xasprintf("%s/attachments", run_dir);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "create %s", path);
    CLEANUP_BUF struct buf boot = {0};
    int rc = read_file("/proc/sys/kernel/random/boot_id", &boot, e);
    if (rc < 0)
        return rc;
    struct state_dir *d = NEW(struct state_dir);
    const char *text = buf_cstr(&boot);
    snprintf(d->boot_id, sizeof d->boot_id, "%.*s", (int)strcspn(text, "\n"), text);
    d->path = TAKE_PTR(path);
    *ret = d;
    return 0;
}

void state_close(struct state_dir *d) {
    free(d->path);
    free(d);
}

int state_save(struct state_dir *d, const struct attach_state *s, struct err *e) {
    struct attach_state now = *s;
    memcpy(now.boot_id, d->boot_id, sizeof now.boot_id);
    CLEANUP_BUF struct buf text = {0};
    attach_state_encode(&text, &now);
    CLEANUP_FREE char *path = file_of(d, s->volume, ".json");
    return write_file(path, buf_view(&text), e);
}

char *state_pool_path(struct state_dir *d, const char *volume) {
    return file_of(d, volume, ".pool");
}

static void wipe(struct buf *b) {
    if (b->data)
        secret_wipe(b->data, b->cap);
    buf_release(b);
}

int state_save_pool(struct state_dir *d, const char *volume, const struct pool_config *pool,
                    struct err *e) {
    CLEANUP_FREE char *path = state_pool_path(d, volume);
    CLEANUP_FREE char *token = file_of(d, volume, ".token");
    CLEANUP(wipe) struct buf text = {0};
    int rc = pool_config_encode(&text, pool, token, e);
    if (rc == 0 && !secret_empty(&pool->session_token))
        rc = write_file(token, secret_reveal(&pool->session_token), e);
    if (rc == 0)
        rc = write_file(path, buf_view(&text), e);
    return rc < 0 ? err_wrap(e, "credentials of volume '%s'", volume) : 0;
}

int state_remove(struct state_dir *d, const char *volume, struct err *e) {
    static const char *const suffixes[] = {".pool", ".token", ".json"}; /* the attach file last */
    for (size_t i = 0; i < ARRAY_LEN(suffixes); i++) {
        CLEANUP_FREE char *path = file_of(d, volume, suffixes[i]);
        if (unlink(path) < 0 && errno != ENOENT)
            return err_from_errno(e, errno, "delete %s", path);
    }
    return 0;
}

/* --- listing --- */

void attach_states_release(struct attach_states *s) {
    free(s->items);
    *s = (struct attach_states){0};
}

static bool ends_in(const char *name, const char *suffix) {
    size_t n = strlen(name), k = strlen(suffix);
    return n > k && strcmp(name + n - k, suffix) == 0;
}

/* True: it is to be listed. */
static bool load(struct state_dir *d, const char *name, struct attach_state *ret) {
    struct err e;
    CLEANUP_FREE char *path = xasprintf("%s/%s", d->path, name);
    if (ends_in(name, ".tmp")) {
        (void)unlink(path);
        return false;
    }
    if (!ends_in(name, ".json"))
        return false;
    CLEANUP_BUF struct buf text = {0};
    int rc = read_file(path, &text, &e);
    if (rc == 0)
        rc = attach_state_decode(ret, buf_view(&text), &e);
    if (rc < 0) {
        log_error("an attach file cannot be read and is left alone", LOG_STR("file", path),
                  LOG_ERR(&e));
        return false;
    }
    if (strcmp(ret->boot_id, d->boot_id) == 0)
        return true;
    log_info("an attach file of another boot is dropped", LOG_STR("volume", ret->volume));
    (void)state_remove(d, ret->volume, NULL);
    return false;
}

int state_list(struct state_dir *d, struct attach_states *ret, struct err *e) {
    DIR *dir = opendir(d->path);
    if (!dir)
        return err_from_errno(e, errno, "read %s", d->path);
    *ret = (struct attach_states){.items =
                                      xcalloc(STATE_ATTACHMENTS_MAX, sizeof(struct attach_state))};
    for (const struct dirent *entry; ret->count < STATE_ATTACHMENTS_MAX && (entry = readdir(dir));)
        if (load(d, entry->d_name, &ret->items[ret->count]))
            ret->count++;
    closedir(dir);
    return 0;
}
