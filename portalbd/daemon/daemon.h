/* The process: what its parts share. */
#pragma once

#include "common/http.h"
#include "common/loop.h"
#include "portalbd/daemon/pool.h"
#include "portalbd/daemon/served.h"
#include "portalbd/fuse/server.h"
#include "portalbd/nbd/server.h"

enum {
    EXPORTS_OPEN_MAX = 256, /* volumes and snapshots that are open at a time */
};

enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,      /* could not start */
    EXIT_USAGE = 2,       /* the command line */
    EXIT_UNSAVED = 3,     /* not everything is in the store; the log says what */
    EXIT_FENCED = 4,      /* another writer has a volume */
    EXIT_HANDED_OVER = 5, /* the volume is not closed, its device lives: for the next daemon */
};

enum journal_kind { JOURNAL_SHM, JOURNAL_MEMORY };

enum command { COMMAND_SERVE, COMMAND_ATTACH };

struct config {
    struct pool_options pool;
    char *run_dir;
    char *node_id;
    int journal; /* enum journal_kind */
    char *journal_dir;
    char *state_dir;
    uint64_t journal_size;
    uint64_t cache_size;
    char *disk_cache; /* a folder; NULL: none */
    uint64_t disk_cache_size;
    uint64_t flush_coalesce_us;
    uint64_t stop_limit_us;
    uint64_t workers;

    struct option_strings listen;
    bool list;
    bool single;
    bool steal;

    char *volume;
    uint64_t publish_epoch;
    bool read_only;
    bool resume;
    uint64_t fuse_fd, nbd_fd, ready_fd;

    char *http_address;
    uint64_t http_port;
    int log_level;
    int log_format;
};

struct daemon {
    struct config config;
    enum command command;
    char **volumes; /* serve: what may be asked for; none: everything; borrowed from argv */
    size_t volume_count;

    struct loop *loop;
    struct env *env;
    struct metrics *metrics;
    struct http_server *http;
    struct metrics_gauge broken;
    struct metrics_group *metrics_group;
    struct loop_signal term, interrupt;
    struct waitq events; /* woken at every change of what follows */
    bool started;        /* the starting fiber has ended, with start_err */
    struct err start_err;
    bool stop;       /* end, cleanly */
    bool give_up;    /* ... but wait no more */
    bool out_of_use; /* attach: the volume is FENCED or ERROR, nothing of it can be saved */
    int exit_code;

    struct pool pool;
    bool own_journal_dir; /* --journal-dir was given */
    int run_pool_fds[2];  /* run folder, journals' folder: held for our pool (run_pool.h); or -1 */
    bool node_registered;
    bool trouble; /* the store does not answer: requests are tried again */
    struct served_config served_config;

    /* Front ends. */
    struct exports *exports;   /* serve */
    struct recovery *recovery; /* serve; NULL: it looks for nothing */
    struct served *attached;   /* attach */
    struct nbd_server *nbd;
    struct fuse_server *fuse;
    int device_fd; /* attach: of the kernel's device; -1: none, or gone */
    bool draining;
    unsigned drains_left; /* front ends with requests under way, while draining */
    bool handing_over;    /* a fiber is at it */
    bool handed_over;
};

/* Asks for a clean end. Owner thread, any context. */
void daemon_stop(struct daemon *d);

/* fiber. Gives a volume to this node, and from there to us. */
int daemon_publish(struct daemon *d, const char *id, bool read_only, struct served_target *ret,
                   struct err *e);
/* fiber. Closes, and gives back to the catalog what daemon_publish took; logs what fails. */
void daemon_close_volume(struct daemon *d, struct served *s, bool published);

/* exports.c: the volumes of `serve`, opened as clients ask for them. */
struct exports *exports_new(struct daemon *d);
struct nbd_exports *exports_interface(struct exports *x);
/* Its clients get their answers and are disconnected, then it is dropped. */
void exports_out_of_use(struct exports *x, const struct served *s);
void exports_cancel_opening(struct exports *x); /* fiber. Waits for those who open something. */
void exports_close_all(struct exports *x);      /* fiber. daemon_close_volume, all at a time. */
void exports_drop_all(struct exports *x);       /* fiber. */
void exports_free(struct exports *x);

/* May it be asked for, by name or id? */
bool exports_allows(const struct daemon *d, const char *name);
struct resolved;
/* fiber. Opens it as for a client, and flushes. -ERR_IN_USE: another daemon has it. */
int exports_recover(struct exports *x, const struct resolved *found, struct err *e);

/* recover.c: volumes that an earlier `serve` had open when it died. */
struct recovery *recovery_new(struct daemon *d); /* looks for their journals */
void recovery_run(struct recovery *r);           /* fiber. Opens those that are not open yet */
void recovery_opened(struct recovery *r, const char *id); /* r may be NULL */
/* At the end: false, and a line in the log for each, when some were never opened. */
bool recovery_report(const struct recovery *r);
void recovery_free(struct recovery *r); /* NULL is fine */

/* attach.c: the one volume of `attach`. */
int attach_start(struct daemon *d, struct err *e); /* fiber */
void attach_owned(struct daemon *d);               /* to --ready-fd: the volume is ours */
/* To --ready-fd, until it is reported on: what the store does not do; NULL: it does again. */
void attach_waits(struct daemon *d, const struct err *why);
void attach_report(struct daemon *d,
                   const struct err *failure); /* to --ready-fd; NULL: it serves */

/* handover.c: the device in other hands. */
/* No front end takes requests any more; d->drains_left counts those that still have some. */
void drain_start(struct daemon *d);
/* fiber. The control verbs of these names (docs/control.md). */
int handover_device(void *arg, json_t **ret_result, int *ret_fd, struct err *e);
int handover(void *arg, json_t **ret_result, int *ret_fd, struct err *e);

/* process.c: a process that stands under a file system must not need memory that this file system
 * has to give back first. Says once what is refused. */
void process_harden(void);
void process_tune_memory(void); /* heap and stacks; before other threads run */
