/* The blocking steps of an attachment: files, kernel, cgroup. Each is a job on a worker thread,
 * while the attachment's fiber waits, or watches the daemon that the job needs. */
#include <stdlib.h>
#include <unistd.h>

#include "common/mem.h"
#include "node-agent/agent_internal.h"

int job_run(struct attachment *at, struct job *j, void (*fn)(void *job), struct err *e) {
    j->at = at;
    fiber_run_job(at->agent->env, fn, j);
    return j->rc < 0 ? err_copy(e, &j->e) : 0;
}

static void job_fiber(void *arg) {
    struct job *j = arg;
    struct attachment *at = j->at;
    fiber_run_job(at->agent->env, j->fn, j);
    j->done = true;
    waitq_wake_all(&at->events);
}

void job_start(struct attachment *at, struct job *j, void (*fn)(void *job)) {
    j->at = at;
    j->fn = fn;
    j->done = false;
    fiber_start(at->agent->env, job_fiber, j);
}

/* --- files --- */

void job_save_all(void *arg) {
    struct job *j = arg;
    struct state_dir *dir = j->at->agent->state;
    j->rc = state_save_pool(dir, j->at->state.volume, j->pool, &j->e);
    if (j->rc == 0)
        j->rc = state_save(dir, &j->at->state, &j->e);
    if (j->rc < 0)
        state_remove(dir, j->at->state.volume, NULL);
}

void job_save(void *arg) {
    struct job *j = arg;
    j->rc = state_save(j->at->agent->state, &j->at->state, &j->e);
}

void job_save_pool(void *arg) {
    struct job *j = arg;
    j->rc = state_save_pool(j->at->agent->state, j->at->state.volume, j->pool, &j->e);
}

void job_started(void *arg) {
    struct job *j = arg;
    cgroups_enter(j->at->agent->config.cgroups, j->at->state.volume, j->at->state.pid);
    job_save(j);
}

void job_forget(void *arg) {
    struct job *j = arg;
    cgroups_leave(j->at->agent->config.cgroups, j->at->state.volume);
    j->rc = state_remove(j->at->agent->state, j->at->state.volume, &j->e);
}

void job_journal(void *arg) {
    struct job *j = arg;
    CLEANUP_FREE char *path =
        xasprintf("%s/journals/%s.journal", j->at->agent->config.run_dir, j->at->state.volume);
    j->rc = 0;
    j->left = access(path, F_OK) == 0;
}

/* --- the device --- */

static struct attach_how how_of(const struct attachment *at) {
    return (struct attach_how){.publish_epoch = at->state.publish_epoch,
                               .size_bytes = at->state.size_bytes,
                               .nbd_flags = at->state.nbd_flags,
                               .read_only = at->state.read_only};
}

void job_prepare(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    j->rc = b->ops->prepare(b, j->at->state.volume, &j->at->link, &j->e);
}

void job_attach(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    const struct attach_how how = how_of(j->at);
    j->rc = b->ops->attach(b, j->at->state.volume, &how, &j->at->link, &j->device, &j->e);
}

void job_resume(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    j->rc = b->ops->resume(b, j->at->state.volume, &j->at->link, &j->e);
}

void job_reattach(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    const struct attach_how how = how_of(j->at);
    j->rc = b->ops->reattach(b, j->at->state.volume, &how, &j->at->link, &j->e);
}

void job_detach(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    j->rc = b->ops->detach(b, j->at->state.volume, j->force, &j->e);
}

void job_fail(void *arg) {
    struct job *j = arg;
    j->rc = 0;
    j->at->backend->ops->fail(j->at->backend, j->at->state.volume);
}

void job_grow(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    j->rc = b->ops->grow(b, j->at->state.volume, j->size_bytes, &j->e);
}

void job_look(void *arg) {
    struct job *j = arg;
    struct attach_backend *b = j->at->backend;
    struct attach_devices all;
    j->rc = b->ops->discover(b, &all, &j->e);
    if (j->rc < 0)
        return;
    const struct attach_device *found = attach_devices_find(&all, j->at->state.volume);
    j->device = found ? *found : (struct attach_device){0};
    attach_devices_release(&all);
}
