/* The agent: which volumes are block devices of this node, and the calls that change it.
 *
 * Every volume that is attached, or on its way there or back, is an attachment with a fiber of its
 * own, which alone changes it (attachment.c). Calls only say what they want and wait for a while; a
 * call that gives up waiting (-ERR_BUSY) leaves the work going on, and the next one joins it.
 *
 * All functions on the loop's owner thread; those marked fiber wait. */
#pragma once

#include "common/loop.h"
#include "common/metrics.h"
#include "node-agent/attach/attach.h"
#include "node-agent/cgroup.h"
#include "node-agent/state.h"

enum {
    AGENT_BACKENDS_MAX = 4,
    AGENT_ATTACHMENTS_MAX = 512,
    AGENT_MESSAGE_MAX = 320, /* bytes of what is said about an attachment */
};

struct agent_backend {
    struct attach_backend *backend; /* borrowed; NULL: this node cannot do it */
    const char *name;
    char note[ATTACH_NOTE_MAX]; /* why not, or what does not survive here; "": nothing to say */
};

struct agent_config {
    struct loop *loop;       /* borrowed */
    struct metrics *metrics; /* borrowed; NULL: none */
    const char *run_dir;     /* borrowed, like all strings here */
    const char *node_id;
    const char *pools_path;              /* the pool file */
    const char *daemon_program;          /* portalbd */
    const char *state_dir;               /* for journals set aside; "" or NULL: the daemon's own */
    const char *version;                 /* of this agent */
    struct cgroups *cgroups;             /* NULL: daemons stay in the agent's */
    uint64_t cache_bytes, journal_bytes; /* defaults; 0: the daemon's own */
    const char *disk_cache;              /* a folder; NULL: this node has none */
    uint64_t disk_cache_bytes;           /* default */
    bool upgrade; /* at the start: daemons of another version, one after the other */
    struct agent_backend backends[AGENT_BACKENDS_MAX]; /* the first usable one is the default */
    size_t backend_count;
};

struct agent;

/* fiber. Reads attach files and kernel and goes on where the last agent left off. */
int agent_start(const struct agent_config *config, struct agent **ret, struct err *e);
/* Every call that waits now or later ends with -ERR_SHUTDOWN. */
void agent_interrupt(struct agent *a);
/* fiber. After agent_interrupt and the end of all calls: lets go of everything as it is; daemons
 * and devices go on without us. -ERR_TIMEOUT: a device hangs; the process can only exit. */
int agent_stop(struct agent *a, struct err *e);
/* fiber. Detaches all that nobody uses, within the limit. */
void agent_drain(struct agent *a, uint64_t limit_us);

enum attachment_phase {
    ATTACHMENT_ATTACHING,
    ATTACHMENT_ATTACHED,
    ATTACHMENT_RECOVERING, /* its daemon has ended, requests wait for the next one */
    ATTACHMENT_DETACHING,
    ATTACHMENT_FAILED, /* nobody serves the device any more: it gives errors */
    ATTACHMENT_GONE,   /* only inside the agent */
};
const char *attachment_phase_name(enum attachment_phase phase); /* "attaching", ... */

struct attachment_info {
    char volume[ID_MAX];
    char device[ATTACH_PATH_MAX];
    char backend[STATE_BACKEND_MAX];
    enum attachment_phase phase;
    uint64_t publish_epoch;
    uint64_t size_bytes;
    int64_t daemon_pid; /* 0: none */
    uint64_t restarts;  /* daemons that took another's place */
    bool read_only;
    char message[AGENT_MESSAGE_MAX];
};

struct agent_attach {
    const char *volume;
    uint64_t publish_epoch;
    bool read_only;
    const char *backend;                 /* "" or NULL: the default */
    uint64_t cache_bytes, journal_bytes; /* 0: the agent's default */
    uint64_t disk_cache_bytes;           /* the same; of no meaning where the node has none */
    bool no_disk_cache;
    const struct pool_config *credentials; /* access_key_id, secret_access_key and session_token
                                              instead of the pool file's; NULL: none */
};

/* fiber. The errors are those of proto/agent.proto. limit_us: how long to wait. */
int agent_attach(struct agent *a, const struct agent_attach *req, uint64_t limit_us,
                 struct attachment_info *ret, struct err *e);
int agent_detach(struct agent *a, const char *volume, bool force, uint64_t limit_us, struct err *e);
/* Puts a daemon of the configured program in the place of the present one, while the device goes
 * on. How long nobody served it comes back. -ERR_BUSY: not now, or not done yet. */
int agent_upgrade(struct agent *a, const char *volume, uint64_t limit_us, uint64_t *ret_pause_us,
                  struct err *e);
/* fiber. The pool file may say other credentials now: daemons that use its own find them, also
 * those that have not opened their volume yet, and load them when the store refuses what they have.
 */
void agent_renew_credentials(struct agent *a);
int agent_grow(struct agent *a, const char *volume, uint64_t size_bytes, uint64_t limit_us,
               uint64_t *ret_size_bytes, struct err *e);

/* fiber. What there is to say about a volume's health; *ret_abnormal with the reason. */
int agent_health(struct agent *a, const char *volume, bool *ret_abnormal,
                 struct attachment_info *ret, struct err *e);

/* How many volumes are attached, or on their way. */
size_t agent_count(const struct agent *a);
/* Fills at most max; returns how many. */
size_t agent_list(struct agent *a, struct attachment_info *items, size_t max);

const struct agent_config *agent_config(const struct agent *a); /* does not change */
const char *agent_default_backend(const struct agent_config *c);
