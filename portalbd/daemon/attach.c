/* `attach`: one volume for one kernel device, over descriptors that our parent made. */
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/daemon/daemon.h"

/* --- the parent's pipe --- */

/* Takes j. A pipe takes a line at once; a parent that has gone does not matter. */
static void tell(struct daemon *d, json_t *j) {
    char *line = j ? json_dumps(j, JSON_COMPACT) : NULL;
    int fd = (int)d->config.ready_fd;
    if (line && (write(fd, line, strlen(line)) < 0 || write(fd, "\n", 1) < 0))
        log_debug("nobody hears that we are ready", LOG_ERRNO(errno));
    free(line);
    json_decref(j);
}

void attach_owned(struct daemon *d) {
    if (d->config.ready_fd)
        tell(d, json_pack("{s:b}", "opened", 1));
}

void attach_waits(struct daemon *d, const struct err *why) {
    if (d->config.ready_fd)
        tell(d, json_pack("{s:s}", "waits", why ? why->text : ""));
}

static json_t *ready_line(const struct daemon *d) {
    return json_pack("{s:b,s:I,s:i,s:s}", "ready", 1, "size_bytes",
                     (json_int_t)bd_size_bytes(d->attached->dev), "nbd_flags",
                     nbd_server_flags(d->attached->dev), "journal",
                     served_journal_kind(d->attached));
}

void attach_report(struct daemon *d, const struct err *failure) {
    if (!d->config.ready_fd)
        return;
    tell(d, failure
                ? json_pack("{s:s,s:s}", "error", failure->text, "code",
                            failure->code == -ERR_FENCED ? "fenced" : err_code_name(failure->code))
                : ready_line(d));
    close((int)d->config.ready_fd);
    d->config.ready_fd = 0;
}

/* --- the volume --- */

static int find_snapshot(struct daemon *d, struct served_target *t, struct err *e) {
    struct snapshot_info info;
    int rc = catalog_snapshot_get(&d->pool.catalog, d->config.volume, &info, e);
    if (rc < 0)
        return rc;
    t->is_snapshot = t->read_only = true;
    t->key = info.record.source;
    t->pin = info.record.pin;
    snapshot_info_release(&info);
    return 0;
}

/* With a publish epoch somebody has published it already, and nothing but the id is needed. */
static int find_target(struct daemon *d, struct served_target *ret, struct err *e) {
    struct parsed_id id;
    int rc = id_parse(&id, d->config.volume, e);
    if (rc < 0)
        return rc;
    *ret = (struct served_target){.key = id.key,
                                  .publish_epoch = (uint32_t)d->config.publish_epoch,
                                  .read_only = d->config.read_only};
    CHECK(strlen(d->config.volume) < sizeof ret->id);
    strcpy(ret->id, d->config.volume);
    if (id.kind == ID_SNAPSHOT)
        return find_snapshot(d, ret, e);
    if (d->config.publish_epoch == 0)
        return daemon_publish(d, d->config.volume, d->config.read_only, ret, e);
    return 0;
}

/* --- its front end --- */

static void on_fuse_ended(void *arg, int rc, const char *text) {
    struct daemon *d = arg;
    if (rc < 0)
        log_error("the device cannot be served any more, ending", LOG_STR("reason", text));
    else
        log_info("the device is gone, ending");
    daemon_stop(d);
}

static void on_nbd_idle(void *arg) {
    struct daemon *d = arg;
    log_info("the kernel has closed the connection, ending");
    close(d->device_fd);
    d->device_fd = -1;
    daemon_stop(d);
}

static int start_nbd(struct daemon *d, struct err *e) {
    d->nbd = nbd_server_new(&(struct nbd_server_config){
        .loop = d->loop, .metrics = d->metrics, .on_idle = on_nbd_idle, .arg = d});
    d->device_fd = fcntl((int)d->config.nbd_fd, F_DUPFD_CLOEXEC, 3); /* the server owns its own */
    return nbd_server_adopt(d->nbd, (int)d->config.nbd_fd, d->attached->dev, e);
}

static int start_fuse(struct daemon *d, struct err *e) {
    struct fuse_server_config config = {.loop = d->loop,
                                        .dev = d->attached->dev,
                                        .fd = (int)d->config.fuse_fd,
                                        .resume = d->config.resume,
                                        .ended = on_fuse_ended,
                                        .arg = d};
    d->device_fd = (int)d->config.fuse_fd;
    return fuse_server_new(&config, &d->fuse, e);
}

int attach_start(struct daemon *d, struct err *e) {
    struct served_target target;
    int rc = find_target(d, &target, e);
    if (rc == 0)
        rc = served_open(&d->served_config, &target, &d->attached, e);
    if (rc == 0 && d->config.fuse_fd)
        rc = start_fuse(d, e);
    else if (rc == 0 && d->config.nbd_fd)
        rc = start_nbd(d, e);
    return rc;
}
