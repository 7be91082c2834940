/* What the agent's files share: the table, an attachment, and the steps of its life. Everything on
 * the owner thread; the fiber of an attachment alone changes it (see attachment.c). */
#pragma once

#include "common/fiber.h"
#include "common/list.h"
#include "node-agent/agent.h"
#include "node-agent/daemon_control.h"
#include "node-agent/supervisor.h"

enum { SECOND_US = 1000 * 1000 };

/* Something that calls ask for: a number for each asking, and what the last attempt came to. */
struct wish {
    uint64_t asked; /* number of the newest */
    uint64_t done;  /* of the last that an attempt has answered, with this: */
    struct err result;
};
static inline bool wish_is_open(const struct wish *w) {
    return w->asked > w->done;
}

struct attachment {
    struct list_node node; /* agent's attachments */
    struct agent *agent;
    struct attach_backend *backend;
    struct attach_state state;
    struct pool_config pool; /* until bring_up has stored it */
    bool adopt;              /* an earlier agent brought it up */

    enum attachment_phase phase;
    uint64_t phase_since_us;
    struct attach_device device;
    struct attach_link link;
    struct daemon *daemon; /* NULL: none */
    bool going_down;       /* attachment_take_down is at work */
    bool fenced;           /* another writer has the volume: nothing is left to upload */
    bool outdated;         /* its daemon is of another version than this agent */
    bool unlearned;        /* adopted, and its daemon has not said yet what we need to know of it */
    struct err why; /* FAILED, GONE: the reason. Else what went wrong last; code 0: nothing */

    uint64_t backoff_us;      /* before the next daemon is started */
    bool serving;             /* the present daemon has the device ... */
    uint64_t served_since_us; /* ... since when */

    struct wish detach, upgrade;
    uint64_t force_asked; /* number of the newest detach that was forced */
    uint64_t pause_us;    /* of the last upgrade */

    struct waitq events;  /* for attachment_main */
    struct waitq changed; /* for calls */
    unsigned users;       /* fibers that look at it */
};

struct agent {
    struct agent_config config;
    struct env *env;
    struct state_dir *state;
    struct list_node attachments;
    size_t count;
    unsigned helpers; /* fibers that are no attachment's */
    bool stopping;
    struct waitq ended;    /* an attachment's fiber, or a helper, has ended */
    struct waitq outdated; /* an attachment's daemon is of another version; or stopping */
    struct metrics_group *metrics;
    struct metrics_gauge attached, recovering, failed;
    struct metrics_gauge of_backend[AGENT_BACKENDS_MAX], usable[AGENT_BACKENDS_MAX];
    struct metrics_counter deaths, restarts, upgrades;
    struct metrics_results attach_results, detach_results;
};

/* --- agent.c --- */

struct attachment *agent_find(struct agent *a, const char *volume); /* NULL: none */
/* "" or NULL: the default. NULL: not one that this node can use. */
struct attach_backend *agent_find_backend(struct agent *a, const char *name);
/* With one user: its fiber, which attachment_run starts. */
struct attachment *attachment_new(struct agent *a, const struct attach_state *state,
                                  struct attach_backend *backend);
void attachment_put(struct attachment *at); /* a user less; the last one frees it */
void attachment_set_phase(struct attachment *at, enum attachment_phase phase);
static inline bool attachment_is_forced(const struct attachment *at) {
    return at->force_asked > at->detach.done;
}
void attachment_ended(struct attachment *at); /* the last that its fiber does */
struct daemon_address attachment_address(const struct attachment *at, uint64_t limit_us);

/* --- device_jobs.c: what blocks, on workers --- */

struct job {
    struct attachment *at;
    const struct pool_config *pool;
    bool force;
    uint64_t size_bytes;
    struct attach_device device;
    bool left; /* job_journal */
    int rc;
    struct err e;

    void (*fn)(void *job);
    bool done;
};
/* fiber. Any number of them at a time; which may run together: attach/attach.h. */
int job_run(struct attachment *at, struct job *j, void (*fn)(void *job), struct err *e);
/* Does not wait: `events` is woken once j->done. j has to be there until then. */
void job_start(struct attachment *at, struct job *j, void (*fn)(void *job));

void job_save_all(void *job); /* attach file and pool file */
void job_save(void *job);     /* attach file */
void job_save_pool(void *job);
void job_started(void *job); /* the same, and the daemon's cgroup */
void job_forget(void *job);  /* all files, and the cgroup */
void job_prepare(void *job);
void job_attach(void *job);
void job_resume(void *job);
void job_reattach(void *job);
void job_detach(void *job);
void job_fail(void *job);
void job_grow(void *job);
void job_look(void *job);    /* what of the device is left; when the kernel does not say: error */
void job_journal(void *job); /* is its journal there? */

/* --- attachment.c --- */

void attachment_run(struct attachment *at);

/* --- daemon_life.c: starting and ending the daemon of an attachment --- */

/* With link.daemon_fd, which is closed once the daemon has it; upload: without a device. */
int attachment_start_daemon(struct attachment *at, bool upload, struct err *e);
/* Until it serves. -ERR_CANCELLED: the agent stops; a detach that does not wait for it (any before
 * it was attached, a forced one later); `until`, if given, is done. */
int attachment_wait_served(struct attachment *at, const struct job *until, struct err *e);
/* Waits for the end that it has announced, a moment; then SIGKILL. Frees it. */
void attachment_end_daemon(struct attachment *at);
/* Waits backoff_us, which doubles. False: interrupted, by what ends attachment_wait_served. */
bool attachment_back_off(struct attachment *at, const struct job *until);

/* --- recover.c --- */

/* The daemon has ended (or is none), the device stays: until another serves it. `why` of the
 * attachment says what goes on. -ERR_CANCELLED: as attachment_wait_served. Another error: there is
 * no way. */
int attachment_recover(struct attachment *at, const struct job *until, struct err *e);
/* The daemon of an ATTACHED volume has ended: RECOVERING, and on to ATTACHED or FAILED. */
void attachment_on_daemon_end(struct attachment *at);
/* Goes on where an earlier on_daemon_end was cut off. */
void attachment_go_on_recovering(struct attachment *at);
/* The device gives errors from now on. */
void attachment_give_up(struct attachment *at);
/* Serves the wish for an upgrade. */
void attachment_upgrade(struct attachment *at);
/* Of an `unlearned` one: waits a moment, or for an event, then asks its daemon again. */
void attachment_learn(struct attachment *at);
/* The first steps of an attachment that an earlier agent made. False: nothing is left of it. */
bool attachment_adopt(struct attachment *at);

/* --- take_down.c --- */

/* 0: nothing is left. -ERR_BUSY: the device is in use and still there. Another error: the device is
 * gone, but not everything went as it should; the next attempt finds less to do. */
int attachment_take_down(struct attachment *at, struct err *e);
/* After an attach that never came to own the volume: best effort, without waiting for anything:
 * nobody has seen the device. */
void attachment_clean_up(struct attachment *at);
