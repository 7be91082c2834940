/* The metrics of all daemons of this node as one Prometheus text: one port a pod, whatever the
 * number of volumes. */
#pragma once

#include "common/buf.h"

enum {
    SCRAPE_FAMILIES_MAX = 256,   /* metrics by name; what is beyond is left out */
    SCRAPE_BYTES_MAX = 64 << 20, /* of the merged text */
    SCRAPE_DAEMON_MS_MAX = 1000, /* for one answer of one daemon */
    SCRAPE_ALL_MS_MAX = 8000,    /* for all of them; daemons beyond it are left out */
};

struct scrape;
struct scrape *scrape_new(void);
void scrape_free(struct scrape *s);

/* Adds a daemon's text: the lines of each metric come together under one head, and each sample gets
 * the label volume unless it has it. Any text is bounded; what is no metric is left out. */
void scrape_add(struct scrape *s, const char *volume, struct view text);
/* Appends everything, by name. */
void scrape_render(const struct scrape *s, struct buf *out);

/* Asks every daemon that has a control socket in run_dir, and appends what they say. Blocks; any
 * thread. */
void scrape_daemons(const char *run_dir, struct buf *out);
