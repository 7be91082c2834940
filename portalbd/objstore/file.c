/* The store in a folder.
 *
 * PUT: write `.tmp/<random>`, fsync it, link(2) it to its name (which fails if that exists: the
 * condition), fsync the folder, unlink the first name. A folder that is missing is made and tried
 * again, because a DELETE may take an empty one away at any moment.
 *
 * LIST: folders are read whole and sorted with a slash behind the names of folders, which gives the
 * order of the bytes of the keys ("a-b" < "a/b" < "a0"); only folders that can hold a key of the
 * page are entered.
 *
 * I1 Under its name a file is complete and durable: it was fsynced before it was linked.
 * I2 When a PUT ends with 0 or -ERR_EXISTS the folder's entry is durable too. That folders made by
 *    another PUT meanwhile are durable relies on what journalling file systems do: fsync of a
 * folder commits the earlier creation of its parents. I3 Nothing of the request is touched by two
 * threads: the job has it until done(). */
#include "portalbd/objstore/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "portalbd/objstore/layer_internal.h"

#define TMP_FOLDER ".tmp"

enum {
    PATH_BYTES_MAX = 3 * OBJ_KEY_MAX + 1, /* an encoded key and its NUL */
    PUT_TRIES_MAX = 100,                  /* times that a folder may vanish under one PUT */
    IOV_PARTS_MAX = 256,                  /* parts of one writev */
    TMP_AGE_MAX_S = 24 * 3600,            /* older files in .tmp are nobody's */
};

struct file_store {
    struct objstore store;
    char *folder; /* owned */
    size_t under_way;
    bool swept; /* .tmp was swept of strays; set on the owner thread when a sweep is sent */
};

struct file_call {
    struct env_job job;
    struct obj_request *req;
    struct file_store *s;
    bool cancelled; /* atomic: looked at before the work begins */
    bool sweep;
    char tmp_name[sizeof TMP_FOLDER + 1 + 32];
};

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
}
#define CLEANUP_FD CLEANUP(close_fd)

/* --- names --- */

static bool is_plain(uint8_t c) {
    return c > 0x20 && c < 0x7f && c != '%' && c != '/';
}

/* key -> path. A leading dot of a part is encoded, so that our own `.tmp` is nobody's key. */
static bool encode_path(const char *key, char ret[PATH_BYTES_MAX]) {
    static const char hex[] = "0123456789ABCDEF";
    size_t n = 0;
    for (size_t i = 0; key[i]; i++) {
        uint8_t c = (uint8_t)key[i];
        bool first = i == 0 || key[i - 1] == '/';
        if (n + 4 > PATH_BYTES_MAX)
            return false;
        if (c == '/' || (is_plain(c) && !(first && c == '.'))) {
            ret[n++] = (char)c;
        } else {
            ret[n++] = '%';
            ret[n++] = hex[c >> 4];
            ret[n++] = hex[c & 15];
        }
    }
    ret[n] = '\0';
    return true;
}

static int hex_value(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A file's name -> part of a key; false for names that encode_path does not make. */
static bool decode_name(const char *name, char ret[NAME_MAX + 2]) {
    size_t n = 0;
    for (const char *p = name; *p; p++) {
        uint8_t c = (uint8_t)*p;
        if (c == '%') {
            int high = hex_value(p[1]), low = high < 0 ? -1 : hex_value(p[2]);
            if (low < 0)
                return false;
            c = (uint8_t)(high << 4 | low);
            if (c == 0 || c == '/' || (is_plain(c) && !(c == '.' && n == 0)))
                return false;
            p += 2;
        } else if (!is_plain(c) || (c == '.' && n == 0)) {
            return false;
        }
        ret[n++] = (char)c;
    }
    ret[n] = '\0';
    return n > 0;
}

static bool key_is_valid(const char *key) {
    size_t depth = 1, len = strlen(key);
    if (len == 0 || len > OBJ_KEY_MAX)
        return false;
    for (const char *part = key;; part++) {
        size_t n = strcspn(part, "/");
        bool dots = (n == 1 || n == 2) && strncmp(part, "..", n) == 0;
        if (n == 0 || dots || ++depth > OBJ_KEY_DEPTH_MAX + 1)
            return false;
        part += n;
        if (!*part)
            return true;
    }
}

/* The path of the request's key; sets the request's error. */
static bool path_of(struct obj_request *req, const char *key, char ret[PATH_BYTES_MAX]) {
    if (key_is_valid(key) && encode_path(key, ret))
        return true;
    obj_request_fail(req, -ERR_INVALID, "not a key");
    return false;
}

/* Cuts the last part of a path off; false when there is no other part. */
static bool to_parent(char *path) {
    char *slash = strrchr(path, '/');
    if (slash)
        *slash = '\0';
    return slash != NULL;
}

/* --- file system --- */

static void fail_errno(struct obj_request *req, int eno, const char *what) {
    int code = eno == ENAMETOOLONG ? -ERR_INVALID : err_from_errno(NULL, eno, "%s", what);
    if (code == -ERR_NOT_FOUND || code == -ERR_EXISTS || code == -ERR_INVALID)
        code = eno == ENAMETOOLONG ? -ERR_INVALID : -ERR_IO; /* these say something about a key */
    obj_request_fail(req, code, "%s: %s", what, strerror(eno));
}

static int open_root(struct file_call *c) {
    int fd = open(c->s->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        obj_request_fail(c->req, -ERR_NO_BUCKET, "the pool's folder '%s' does not exist",
                         c->s->folder);
    else if (fd < 0)
        fail_errno(c->req, errno, "open the pool's folder");
    return fd;
}

/* path "": the root itself. 0 or errno. */
static int sync_folder(int root, const char *path) {
    CLEANUP_FD int fd = openat(root, *path ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return errno;
    return 0;
}

static int sync_parent(int root, const char *path) {
    char parent[PATH_BYTES_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    return sync_folder(root, to_parent(parent) ? parent : "");
}

/* Makes the folders above path, each durable in its parent. 0 or errno. */
static int make_parents(int root, const char *path) {
    char part[PATH_BYTES_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *slash = strchr(part, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (mkdirat(root, part, 0777) < 0 && errno != EEXIST)
            return errno;
        int eno = sync_parent(root, part);
        if (eno)
            return eno;
        *slash = '/';
    }
    return 0;
}

static int write_all(int fd, const struct view *parts, size_t count) {
    size_t part = 0, skip = 0; /* what comes next: from byte `skip` of parts[part] on */
    for (;;) {
        while (part < count && skip == parts[part].len) {
            part++;
            skip = 0;
        }
        if (part == count)
            return 0;
        struct iovec iov[IOV_PARTS_MAX];
        int n = 0;
        for (size_t i = part; i < count && n < IOV_PARTS_MAX; i++) {
            struct view v = i == part ? view_part(parts[i], skip, parts[i].len - skip) : parts[i];
            if (v.len > 0)
                iov[n++] = (struct iovec){(void *)(uintptr_t)v.data, v.len};
        }
        ssize_t wrote = writev(fd, iov, n);
        if (wrote < 0 && errno != EINTR)
            return errno;
        for (size_t left = wrote < 0 ? 0 : (size_t)wrote; left > 0;) {
            size_t step = MIN(left, parts[part].len - skip);
            left -= step;
            skip += step;
            if (skip == parts[part].len) {
                part++;
                skip = 0;
            }
        }
    }
}

/* --- verbs, on a worker --- */

static void do_get(struct file_call *c, int root) {
    struct obj_request *req = c->req;
    char path[PATH_BYTES_MAX];
    if (!path_of(req, req->key, path))
        return;
    CLEANUP_FD int fd = openat(root, path, O_RDONLY | O_CLOEXEC);
    struct stat st = {0};
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        obj_request_fail(req, -ERR_NOT_FOUND, "no such key");
        return;
    }
    if (fd < 0 || fstat(fd, &st) < 0) {
        fail_errno(req, errno, "open");
        return;
    }
    if (S_ISDIR(st.st_mode)) {
        obj_request_fail(req, -ERR_NOT_FOUND, "no such key");
        return;
    }
    uint64_t off;
    size_t len;
    if (obj_range_resolve(req, (uint64_t)st.st_size, &off, &len) < 0) {
        obj_request_fail(req, -ERR_CORRUPT, "its %lld bytes are not what was asked for",
                         (long long)st.st_size);
        return;
    }
    req->object_size = (uint64_t)st.st_size;
    uint8_t *data = buf_extend(&req->body, len);
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(fd, data + done, len - done, (off_t)(off + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            fail_errno(req, n < 0 ? errno : EIO, "read");
            return;
        }
        done += (size_t)n;
    }
}

/* 0 or errno; the file is complete and durable under tmp_name. */
static int write_tmp(struct file_call *c, int root) {
    if (mkdirat(root, TMP_FOLDER, 0777) < 0 && errno != EEXIST)
        return errno;
    CLEANUP_FD int fd = openat(root, c->tmp_name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return errno;
    int eno = write_all(fd, c->req->parts, c->req->part_count);
    if (eno == 0 && fsync(fd) < 0)
        eno = errno;
    return eno;
}

/* 0 or errno; EEXIST is the condition's "no". */
static int link_durably(int root, const char *tmp_name, const char *path) {
    int eno = ENOENT;
    for (int i = 0; i < PUT_TRIES_MAX && eno == ENOENT; i++) {
        eno = linkat(root, tmp_name, root, path, 0) < 0 ? errno : 0;
        if (eno == ENOENT) {
            int made = make_parents(root, path);
            if (made != 0 && made != ENOENT)
                return made;
            continue;
        }
        if (eno == 0 || eno == EEXIST) {
            int synced = sync_parent(root, path);
            if (synced != 0)
                return synced == ENOENT ? EAGAIN : synced; /* deleted again: look again */
        }
    }
    return eno;
}

static void do_put(struct file_call *c, int root) {
    struct obj_request *req = c->req;
    char path[PATH_BYTES_MAX];
    if (!path_of(req, req->key, path))
        return;
    int eno = write_tmp(c, root);
    if (eno == 0)
        eno = link_durably(root, c->tmp_name, path);
    unlinkat(root, c->tmp_name, 0);
    if (eno == EEXIST)
        obj_request_fail(req, -ERR_EXISTS, "the key exists");
    else if (eno != 0)
        fail_errno(req, eno, "write");
}

static void remove_empty_parents(int root, char *path) {
    while (to_parent(path)) {
        if (unlinkat(root, path, AT_REMOVEDIR) < 0)
            return;
    }
}

static bool same_parent(const char *a, const char *b) {
    const char *end_a = strrchr(a, '/'), *end_b = strrchr(b, '/');
    size_t len_a = end_a ? (size_t)(end_a - a) : 0, len_b = end_b ? (size_t)(end_b - b) : 0;
    return len_a == len_b && memcmp(a, b, len_a) == 0;
}

static void do_delete(struct file_call *c, int root) {
    const struct obj_request *req = c->req;
    for (size_t i = 0; i < req->key_count; i++) {
        char path[PATH_BYTES_MAX];
        if (!path_of(c->req, req->keys[i], path))
            return;
        if (unlinkat(root, path, 0) < 0 && errno != ENOENT && errno != ENOTDIR && errno != EISDIR) {
            fail_errno(c->req, errno, "unlink");
            return;
        }
        if (i + 1 < req->key_count && same_parent(req->keys[i], req->keys[i + 1]))
            continue;
        int eno = sync_parent(root, path);
        if (eno != 0 && eno != ENOENT && eno != ENOTDIR) {
            fail_errno(c->req, eno, "fsync");
            return;
        }
        remove_empty_parents(root, path);
    }
}

/* --- LIST --- */

struct name {
    char *decoded; /* owned; with a slash at the end for a folder */
    char *encoded; /* owned */
};

struct names {
    struct name *items;
    size_t count;
};

static void names_release(struct names *n) {
    for (size_t i = 0; i < n->count; i++) {
        free(n->items[i].decoded);
        free(n->items[i].encoded);
    }
    free(n->items);
}
#define CLEANUP_NAMES CLEANUP(names_release)

static int compare_names(const void *a, const void *b) {
    return strcmp(((const struct name *)a)->decoded, ((const struct name *)b)->decoded);
}

static bool is_folder(DIR *dir, const struct dirent *d) {
    if (d->d_type != DT_UNKNOWN)
        return d->d_type == DT_DIR;
    struct stat st;
    return fstatat(dirfd(dir), d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode);
}

static void names_add(struct names *n, DIR *dir, const struct dirent *d) {
    char decoded[NAME_MAX + 2];
    if (!decode_name(d->d_name, decoded))
        return;
    if (is_folder(dir, d))
        strcat(decoded, "/");
    if ((n->count & (n->count - 1)) == 0)
        n->items = xrealloc(n->items, MAX(2 * n->count, (size_t)16) * sizeof n->items[0]);
    n->items[n->count++] =
        (struct name){.decoded = xstrdup(decoded), .encoded = xstrdup(d->d_name)};
}

/* All names of the folder, sorted. Takes fd. 0 or errno. */
static int read_names(int fd, struct names *ret) {
    DIR *dir = fdopendir(fd);
    if (!dir) {
        int eno = errno;
        close(fd);
        return eno;
    }
    struct dirent *d;
    while ((errno = 0, d = readdir(dir)))
        names_add(ret, dir, d);
    int eno = errno;
    closedir(dir);
    if (ret->count > 0)
        qsort(ret->items, ret->count, sizeof ret->items[0], compare_names);
    return eno;
}

static bool starts_with(const char *s, const char *prefix) {
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

/* May a key that begins with `part` (a folder's), or is it, be in the page? */
static bool may_be_in_page(const struct obj_request *req, const char *part) {
    if (!starts_with(part, req->key) && !starts_with(req->key, part))
        return false;
    const char *after = req->start_after;
    return !after || strcmp(part, after) > 0 ||
           (part[strlen(part) - 1] == '/' && starts_with(after, part));
}

static void add_entry(struct obj_request *req, int folder, const char *name, const char *key) {
    struct stat st;
    if (fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode))
        return; /* deleted meanwhile, or not ours */
    if (req->entry_count == req->keys_max) {
        req->more = true;
        return;
    }
    req->entries[req->entry_count++] =
        (struct obj_entry){.key = xstrdup(key), .size = (uint64_t)st.st_size};
}

/* `at` is the folder's key with its slash. fd is the caller's. 0 or errno. */
static int list_folder(struct obj_request *req, int fd, const char *at, unsigned depth) {
    CLEANUP_NAMES struct names names = {0};
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    int eno = copy < 0 ? errno : read_names(copy, &names);
    for (size_t i = 0; i < names.count && eno == 0 && !req->more; i++) {
        CLEANUP_FREE char *key = xasprintf("%s%s", at, names.items[i].decoded);
        if (!may_be_in_page(req, key))
            continue;
        if (key[strlen(key) - 1] != '/') {
            if (starts_with(key, req->key))
                add_entry(req, fd, names.items[i].encoded, key);
            continue;
        }
        if (depth == OBJ_KEY_DEPTH_MAX)
            continue; /* too deep to be ours */
        CLEANUP_FD int sub =
            openat(fd, names.items[i].encoded, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub >= 0)
            eno = list_folder(req, sub, key, depth + 1);
        else if (errno != ENOENT)
            eno = errno;
    }
    return eno;
}

static void do_list(struct file_call *c, int root) {
    struct obj_request *req = c->req;
    req->entries = xcalloc(req->keys_max, sizeof req->entries[0]);
    const char *slash = strrchr(req->key, '/');
    size_t at_len = slash ? (size_t)(slash - req->key) + 1 : 0;
    CLEANUP_FREE char *at = xstrndup(req->key, at_len);
    char path[PATH_BYTES_MAX] = "";
    if (at_len > OBJ_KEY_MAX || !encode_path(at, path)) {
        obj_request_fail(req, -ERR_INVALID, "not a prefix");
        return;
    }
    CLEANUP_FD int fd = openat(root, *path ? path : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return;
    int eno = fd < 0 ? errno : list_folder(req, fd, at, 0);
    if (eno != 0)
        fail_errno(req, eno, "list");
}

/* --- strays --- */

/* Removes what crashed PUTs left in .tmp: files whose last write is a day ago. */
static void sweep_tmp(int root) {
    int fd = openat(root, TMP_FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        close_fd(&fd);
        return;
    }
    time_t now = time(NULL);
    struct dirent *d;
    while ((d = readdir(dir))) {
        struct stat st;
        if (fstatat(fd, d->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode) &&
            st.st_mtime < now - TMP_AGE_MAX_S)
            unlinkat(fd, d->d_name, 0);
    }
    closedir(dir);
}

/* --- requests as jobs --- */

static void job_run(struct env_job *job) {
    struct file_call *c = container_of(job, struct file_call, job);
    if (__atomic_load_n(&c->cancelled, __ATOMIC_ACQUIRE)) {
        obj_request_fail(c->req, -ERR_CANCELLED, "cancelled");
        return;
    }
    CLEANUP_FD int root = open_root(c);
    if (root < 0)
        return;
    if (c->sweep)
        sweep_tmp(root);
    static void (*const verbs[OBJ_VERBS])(struct file_call *, int) = {do_get, do_put, do_list,
                                                                      do_delete};
    verbs[c->req->verb](c, root);
}

static void job_done(struct env_job *job) {
    struct file_call *c = container_of(job, struct file_call, job);
    struct obj_request *req = c->req;
    c->s->under_way--;
    free(c);
    req->done(req);
}

static void op_submit(struct objstore *store, struct obj_request *req) {
    struct file_store *s = container_of(store, struct file_store, store);
    obj_request_check(req);
    struct file_call *c = NEW(struct file_call);
    c->req = req;
    c->s = s;
    c->job = (struct env_job){.run = job_run, .done = job_done};
    req->priv = c;
    req->rc = 0;
    if (req->verb == OBJ_PUT) {
        snprintf(c->tmp_name, sizeof c->tmp_name, TMP_FOLDER "/%016llx%016llx",
                 (unsigned long long)env_random_u64(store->env),
                 (unsigned long long)env_random_u64(store->env));
        c->sweep = !s->swept;
        s->swept = true;
    }
    s->under_way++;
    env_job_submit(store->env, &c->job);
}

static void op_cancel(struct objstore *store, struct obj_request *req) {
    (void)store;
    struct file_call *c = req->priv;
    __atomic_store_n(&c->cancelled, true, __ATOMIC_RELEASE);
}

static void op_close(struct objstore *store) {
    struct file_store *s = container_of(store, struct file_store, store);
    CHECK(s->under_way == 0);
    free(s->folder);
    free(s);
}

static const struct objstore_ops file_ops = {
    .submit = op_submit, .cancel = op_cancel, .close = op_close};

struct objstore *objstore_file_open(struct env *env, const char *folder) {
    struct file_store *s = NEW(struct file_store);
    s->store = (struct objstore){.ops = &file_ops, .env = env};
    s->folder = xstrdup(folder);
    return &s->store;
}
