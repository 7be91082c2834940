/* "key = value" files, read whole (they are small) and parsed by libinih. */
#include "common/config_file.h"

#include <fcntl.h>
#include <ini.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/buf.h"

struct reader {
    int (*fn)(void *arg, const char *section, const char *key, const char *value, struct err *e);
    void *arg;
    struct err first; /* what stopped us */
};

static int on_pair(void *arg, const char *section, const char *key, const char *value) {
    struct reader *r = arg;
    if (r->first.code == 0) {
        if (!value)
            (void)err_set(&r->first, -ERR_CONFIG, "'%.64s' has no value; write %.64s = value", key,
                          key);
        else {
            int rc = r->fn(r->arg, section, key, value, &r->first);
            CHECK(rc == r->first.code);
        }
    }
    return r->first.code == 0;
}

static void close_fd(const int *fd) {
    if (*fd >= 0)
        close(*fd);
}

static int read_whole(const char *path, struct buf *out, struct err *e) {
    CLEANUP(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_from_errno(e, errno, "open %s", path);
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_from_errno(e, errno, "read %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, -ERR_CONFIG, "%s is not a regular file; name one", path);
    for (;;) {
        uint8_t chunk[4096];
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_from_errno(e, errno, "read %s", path);
        if (n == 0)
            return 0;
        buf_append(out, chunk, (size_t)n);
        if (out->len > CONFIG_FILE_SIZE_MAX)
            return err_set(e, -ERR_CONFIG, "%s is larger than %d bytes; is it the right file?",
                           path, CONFIG_FILE_SIZE_MAX);
    }
}

/* libinih cuts what is longer than its own limit, so too long a line must not reach it; and it
 * takes a line that begins with space for more of the value above, so that goes. */
static int prepare_lines(const char *path, char *text, struct err *e) {
    char *to = text;
    for (int line = 1; *text; line++) {
        size_t len = strcspn(text, "\n");
        if (len > CONFIG_LINE_MAX)
            return err_set(e, -ERR_CONFIG, "%s:%d: longer than %d bytes; shorten the line", path,
                           line, CONFIG_LINE_MAX);
        size_t indent = strspn(text, " \t\v\f\r");
        char *next = text + len + (text[len] == '\n');
        memmove(to, text + indent, (size_t)(next - text) - indent);
        to += (size_t)(next - text) - indent;
        text = next;
    }
    *to = '\0';
    return 0;
}

int config_file_read(const char *path,
                     int (*fn)(void *arg, const char *section, const char *key, const char *value,
                               struct err *e),
                     void *arg, struct err *e) {
    CLEANUP_BUF struct buf text = {0};
    int rc = read_whole(path, &text, e);
    if (rc < 0)
        return rc;
    if (strlen(buf_cstr(&text)) != text.len)
        return err_set(e, -ERR_CONFIG, "%s is not a text file; write lines of key = value", path);
    rc = prepare_lines(path, (char *)text.data, e);
    if (rc < 0)
        return rc;
    struct reader r = {.fn = fn, .arg = arg};
    int line = ini_parse_string(buf_cstr(&text), on_pair, &r);
    if (r.first.code < 0) {
        err_copy(e, &r.first);
        return e ? err_wrap(e, "%s:%d", path, line) : r.first.code;
    }
    if (line != 0)
        return err_set(e, -ERR_CONFIG, "%s:%d: neither [section] nor key = value; correct the line",
                       path, line);
    return 0;
}
