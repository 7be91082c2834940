/* `attach`: one volume for one kernel device, over descriptors that our parent made. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "portalbd/daemon/daemon.h"

/* --- the parent's pipe --- */

void attach_report(struct daemon *d, const struct err *failure) {
    int fd = (int)d->config.ready_fd;
    if (d->command != COMMAND_ATTACH || fd <= 0)
        return;
    json_t *j = failure ? json_pack("{s:s,s:s}", "error", failure->text, "code",
                                    err_code_name(failure->code))
                        : json_pack("{s:b,s:I}", "ready", 1, "size_bytes",
                                    (json_int_t)bd_size_bytes(d->attached->dev));
    char *line = j ? json_dumps(j, JSON_COMPACT) : NULL;
    /* A line that a pipe takes at once; a parent that has gone does not matter. */
    if (line && (write(fd, line, strlen(line)) < 0 || write(fd, "\n", 1) < 0))
        log_debug("nobody hears that we are ready", LOG_ERRNO(errno));
    free(line);
    json_decref(j);
    close(fd);
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
    log_info("the kernel has closed the connection, ending");
    daemon_stop(arg);
}

static int start_nbd(struct daemon *d, struct err *e) {
    d->nbd = nbd_server_new(&(struct nbd_server_config){
        .loop = d->loop, .metrics = d->metrics, .on_idle = on_nbd_idle, .arg = d});
    return nbd_server_adopt(d->nbd, (int)d->config.nbd_fd, d->attached->dev, e);
}

static int start_fuse(struct daemon *d, struct err *e) {
    struct fuse_server_config config = {.loop = d->loop,
                                        .dev = d->attached->dev,
                                        .fd = (int)d->config.fuse_fd,
                                        .ended = on_fuse_ended,
                                        .arg = d};
    return fuse_server_new(&config, &d->fuse, e);
}

int attach_start(struct daemon *d, struct err *e) {
    struct served_target target;
    int rc = find_target(d, &target, e);
    if (rc == 0)
        rc = served_open(&d->served_config, &target, &d->attached, e);
    if (rc < 0)
        return rc;
    return d->config.fuse_fd ? start_fuse(d, e) : start_nbd(d, e);
}
