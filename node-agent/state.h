/* What the agent wants to be attached, in files that outlive it (not the machine): one attach file
 * for each volume, and beside it a pool file of one pool with the credentials that its daemon uses.
 *
 * <run_dir>/attachments/<volume>.json and .pool (.token), mode 0600, written to a temporary name
 * and renamed, before anything is done that they describe. An attach file of another boot is
 * dropped: nothing of that time exists any more. Functions block; any thread, one at a time for
 * each volume.
 */
#pragma once

#include <sys/types.h>

#include "common/err.h"
#include "common/view.h"
#include "portalbd/catalog/pool_file.h"

enum {
    STATE_BACKEND_MAX = 16,       /* bytes of a backend's name, NUL included */
    STATE_BOOT_ID_MAX = 40,       /* bytes, NUL included */
    STATE_FILE_MAX = 16 * 1024,   /* bytes of an attach file */
    STATE_ATTACHMENTS_MAX = 1024, /* attach files */
};

struct attach_state {
    char volume[ID_MAX];
    char backend[STATE_BACKEND_MAX];
    uint64_t publish_epoch; /* < 2^32 */
    bool read_only;
    bool own_credentials;      /* came with the call, not from the agent's pool file */
    uint64_t cache_bytes;      /* 0: the daemon's default */
    uint64_t journal_bytes;    /* 0: the daemon's default */
    uint64_t disk_cache_bytes; /* 0: none */
    int64_t pid;               /* of its daemon; 0: none was started yet */
    uint64_t pid_start; /* start time of that process, in clock ticks: tells it from a later one */
    bool served;        /* it was attached once: the device was there and served */
    bool opened;        /* a daemon of this attachment has owned the volume: the next one resumes */
    bool journal_memory; /* its journal dies with it: it is not followed by another */
    uint16_t nbd_flags;  /* as the daemon reported them, like the size; 0: not yet */
    uint64_t size_bytes;
    uint64_t restarts; /* daemons that took the place of one that had ended */
    char boot_id[STATE_BOOT_ID_MAX];
};

/* Attach file <-> struct. Pure. -ERR_CORRUPT: not one of ours. */
struct buf;
void attach_state_encode(struct buf *out, const struct attach_state *s);
int attach_state_decode(struct attach_state *ret, struct view in, struct err *e);

struct state_dir;
int state_open(const char *run_dir, struct state_dir **ret, struct err *e);
void state_close(struct state_dir *d);

/* Stores it under this boot's id, whatever s says. */
int state_save(struct state_dir *d, const struct attach_state *s, struct err *e);
/* A pool file of this one pool, which pool_file_read gives back equal; else -ERR_INVALID (a value
 * has a line break, or is longer than a line of such a file may be). */
int state_save_pool(struct state_dir *d, const char *volume, const struct pool_config *pool,
                    struct err *e);
/* Where that is. Owned by the caller. */
char *state_pool_path(struct state_dir *d, const char *volume);
/* Everything of the volume; what is not there is no error. */
int state_remove(struct state_dir *d, const char *volume, struct err *e);

struct attach_states {
    struct attach_state *items; /* owned */
    size_t count;
};
void attach_states_release(struct attach_states *s);
/* All attach files of this boot; those of other boots and temporary files are deleted. One that
 * cannot be read is logged and left alone. */
int state_list(struct state_dir *d, struct attach_states *ret, struct err *e);
