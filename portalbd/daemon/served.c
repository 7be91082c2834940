/* One volume that this process serves.
 *
 * Life: served_open -> served_close (may be cancelled) -> served_drop -> served_free. The device of
 * front ends outlives the volume, so that a connection that is slow to go finds it until
 * served_free; what comes in between is refused at the gate (ESHUTDOWN). */
#include "portalbd/daemon/served.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/log.h"
#include "common/mem.h"
#include "common/mutant.h"
#include "portalbd/daemon/lock_file.h"

/* --- the lock --- */

static char *lock_path(const struct served_config *config, const char *id) {
    return xasprintf("%s/%s.lock", config->run_dir, id);
}

/* keep: the file, for a successor; it says whose journal that is. */
static void drop_lock(struct served *s, bool keep) {
    CLEANUP_FREE char *path = lock_path(&s->config, s->target.id);
    if (!keep)
        unlink(path);
    close(s->lock_fd);
}

static int lock(struct served *s, struct err *e) {
    CLEANUP_FREE char *path = lock_path(&s->config, s->target.id);
    if (mkdir(s->config.run_dir, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "run folder %s", s->config.run_dir);
    return lock_file_take(path, &s->lock_fd, e);
}

/* Whose successor may go on with the volume. Without the words it waits until it is asked for. */
static void sign(struct served *s) {
    const char *who = s->config.command;
    if (ftruncate(s->lock_fd, 0) < 0 || pwrite(s->lock_fd, who, strlen(who), 0) < 0)
        log_debug("the lock's file does not say who has it", LOG_STR("volume", s->target.id),
                  LOG_ERRNO(errno));
}

static bool is_signed(const struct served *s) {
    struct stat st;
    return fstat(s->lock_fd, &st) == 0 && st.st_size > 0;
}

bool served_is_left_over(const struct served_config *config, const char *id) {
    CLEANUP_FREE char *path = lock_path(config, id);
    char who[16] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, who, sizeof who - 1);
    bool is_held = flock(fd, LOCK_SH | LOCK_NB) < 0; /* by one that lives */
    close(fd);
    return n > 0 && strcmp(who, config->command) == 0 && !is_held;
}

/* --- the gate --- */

static struct served_gate *gate_of(struct blockdev *dev) {
    return container_of(dev, struct served_gate, dev);
}

static bool gate_submit(struct blockdev *dev, struct bd_request *req) {
    struct served_gate *g = gate_of(dev);
    if (g->volume)
        return bd_submit(g->volume, req);
    req->rc = -ERR_SHUTDOWN;
    return true;
}

static uint64_t gate_size_bytes(struct blockdev *dev) {
    struct served_gate *g = gate_of(dev);
    return g->volume ? bd_size_bytes(g->volume) : g->size_bytes;
}

static void gate_close(struct blockdev *dev) {
    (void)dev; /* part of struct served */
}

static const struct blockdev_ops gate_ops = {
    .submit = gate_submit, .size_bytes = gate_size_bytes, .close = gate_close};

static void gate_open(struct served *s) {
    struct blockdev *volume = volume_blockdev(s->volume);
    s->gate.dev = *volume;
    s->gate.dev.ops = &gate_ops;
    s->gate.dev.read_only = volume->read_only || s->target.read_only;
    s->gate.volume = volume;
}

static void gate_shut(struct served *s) {
    s->gate.size_bytes = bd_size_bytes(s->gate.volume);
    s->gate.volume = NULL;
}

/* --- open --- */

static void on_broken(void *arg, const struct err *why) {
    struct served *s = arg;
    s->broken = true;
    metrics_gauge_add(s->config.broken, 1);
    log_error("the volume is out of use: requests are refused from now on",
              LOG_STR("volume", s->target.id), LOG_ERR(why));
    s->config.hooks->out_of_use(s->config.arg, s, why);
}

static void on_owned(void *arg) {
    struct served *s = arg;
    s->owned = true;
    sign(s);
    s->config.hooks->owned(s->config.arg);
}

static int open_journal(struct served *s, struct err *e) {
    struct journal_file_config config = {.dir = s->config.journal_dir,
                                         .state_dir = s->config.state_dir,
                                         .id = s->target.id,
                                         .size = s->config.journal_size};
    if (!config.dir || s->target.is_snapshot)
        return 0;
    return journal_file_open(&config, &s->journal, e);
}

/* A disk that does not work is no reason to serve nothing. */
static void open_disk_cache(struct served *s) {
    struct err e = {0};
    if (s->config.disk_cache &&
        disk_file_open(s->config.disk_cache, s->config.disk_cache_size, &s->disk, &e) < 0)
        log_warn("there is no disk cache until the volume is opened again",
                 LOG_STR("volume", s->target.id), LOG_ERR(&e));
}

static int open_volume(struct served *s, struct err *e) {
    open_disk_cache(s);
    struct volume_config config = {.env = loop_env(s->config.loop),
                                   .store = s->config.pool->store,
                                   .key = s->target.key,
                                   .publish_epoch = s->target.publish_epoch,
                                   .journal_size = s->config.journal_size,
                                   .journal = s->journal ? journal_file_memory(s->journal) : NULL,
                                   .resume = s->config.resume,
                                   .cache_size = s->config.cache_size,
                                   .disk = s->disk ? disk_file_medium(s->disk) : NULL,
                                   .flush_coalesce_us = s->config.flush_coalesce_us,
                                   .on_broken = on_broken,
                                   .on_owned = on_owned,
                                   .arg = s};
    int rc = s->target.is_snapshot ? volume_open_pin(&config, &s->target.pin, &s->volume, e)
                                   : volume_open(&config, &s->volume, e);
    if (rc < 0)
        return rc;
    gate_open(s);
    s->dev = bd_stats_open(&s->gate.dev, config.env, s->config.metrics,
                           METRICS_LABELS({"volume", s->target.id}));
    return 0;
}

/* A file of this node that is missing is not a volume that is missing. */
static int local_failure(int rc, struct err *e) {
    if (rc == -ERR_NOT_FOUND)
        rc = e->code = -ERR_IO;
    return rc;
}

static int listen_for_control(struct served *s, struct err *e) {
    struct control_server_config config = {.loop = s->config.loop,
                                           .run_dir = s->config.run_dir,
                                           .volume = s->target.id,
                                           .handle = served_control,
                                           .arg = s};
    return control_server_start(&config, &s->control, e);
}

int served_prepare(const struct served_config *config, const struct served_target *target,
                   struct served **ret, struct err *e) {
    struct served *s = NEW(struct served);
    s->config = *config;
    s->target = *target;
    int rc = local_failure(lock(s, e), e);
    if (rc < 0) {
        free(s);
        return err_wrap(e, "volume %s", target->id);
    }
    FAULT_POINT("after the lock");
    rc = local_failure(open_journal(s, e), e);
    FAULT_POINT("after the journal's file");
    if (rc < 0) {
        served_free(s);
        return err_wrap(e, "volume %s", target->id);
    }
    *ret = s;
    return 0;
}

int served_start(struct served *s, const struct served_target *target, struct err *e) {
    CHECK(!s->volume && strcmp(s->target.id, target->id) == 0);
    s->target = *target;
    int rc = open_volume(s, e);
    if (rc == 0)
        rc = local_failure(listen_for_control(s, e), e);
    FAULT_POINT("after the control socket");
    if (rc < 0)
        return err_wrap(e, "volume %s", target->id);
    served_metrics_start(s);
    log_info("volume opened", LOG_STR("volume", target->id), LOG_STR("name", target->name),
             LOG_U64("size_bytes", bd_size_bytes(s->dev)),
             LOG_U64("publish_epoch", target->publish_epoch));
    return 0;
}

int served_open(const struct served_config *config, const struct served_target *target,
                struct served **ret, struct err *e) {
    struct served *s;
    int rc = served_prepare(config, target, &s, e);
    if (rc < 0)
        return rc;
    rc = served_start(s, target, e);
    if (rc < 0) {
        served_drop(s);
        served_free(s);
        return rc;
    }
    *ret = s;
    return 0;
}

static int check_folder(const char *path, struct err *e) {
    CLEANUP_FREE char *probe = xasprintf("%s/.check-XXXXXX", path);
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_from_errno(e, errno, "folder %s", path);
    int fd = mkostemp(probe, O_CLOEXEC);
    if (fd < 0)
        return err_from_errno(e, errno, "a file in the folder %s", path);
    unlink(probe);
    close(fd);
    return 0;
}

int served_check_folders(const struct served_config *config, struct err *e) {
    int rc = check_folder(config->run_dir, e);
    if (rc < 0)
        return err_wrap(e, "--run-dir");
    if (config->journal_dir)
        rc = check_folder(config->journal_dir, e);
    return rc < 0 ? err_wrap(e, "--journal-dir") : 0;
}

/* --- end --- */

int served_close(struct served *s, struct err *e) {
    CHECK(s->volume);
    s->closing = true;
    int rc = volume_close(s->volume, e);
    s->closed = rc == 0;
    if (s->closed)
        log_info("volume closed", LOG_STR("volume", s->target.id));
    return rc < 0 ? err_wrap(e, "volume %s", s->target.id) : 0;
}

static void on_freed(void *arg) {
    fiber_done_set(arg);
}

void served_drop(struct served *s) {
    if (s->control)
        control_server_stop(TAKE_PTR(s->control));
    if (!s->volume)
        return;
    struct fiber_done freed;
    fiber_done_init(&freed);
    gate_shut(s);
    volume_free(TAKE_PTR(s->volume), on_freed, &freed); /* a timer may ask for it meanwhile */
    fiber_done_wait_always(loop_env(s->config.loop), &freed);
}

void served_free(struct served *s) {
    CHECK(!s->volume && !s->control);
    if (s->dev)
        s->dev->ops->close(s->dev);
    served_metrics_stop(s);
    if (s->broken)
        metrics_gauge_add(s->config.broken, -1);
    bool all_stored =
        s->owned ? s->closed && !s->keep_journal : !s->journal || journal_file_is_new(s->journal);
    if (s->journal)
        journal_file_close(s->journal, all_stored);
    disk_file_close(s->disk);
    drop_lock(s, s->owned ? s->journal && !all_stored : is_signed(s));
    free(s);
}

/* --- questions --- */

void served_describe_unsaved(struct served *s, char *text, size_t size) {
    struct volume_status st;
    text[0] = '\0';
    if (s->closed || s->target.is_snapshot || !s->volume)
        return;
    volume_status(s->volume, &st);
    if (st.last_write == st.durable_write)
        return;
    snprintf(text, size,
             "writes %llu to %llu (%llu bytes, the oldest %llu s old) are not in the store",
             (unsigned long long)(st.durable_write + 1), (unsigned long long)st.last_write,
             (unsigned long long)st.unflushed_bytes,
             (unsigned long long)(st.oldest_unflushed_us / 1000000));
}

const char *served_journal_kind(const struct served *s) {
    return s->target.is_snapshot ? "none" : s->journal ? "shm" : "memory";
}
