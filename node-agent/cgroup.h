/* A cgroup for each daemon, in every hierarchy that is mounted: what it uses is its own, and what
 * limits the agent, or ends everything in the agent's cgroup, does not reach it. Functions block
 * shortly; any thread. */
#pragma once

#include "common/err.h"

struct cgroups;

/* path: under the mounts of cgroup2 and of cgroups of version 1; NULL or "": none, *ret is NULL.
 * Where it cannot be had that is logged, and *ret is NULL too. */
void cgroups_open(const char *path, struct cgroups **ret);
void cgroups_close(struct cgroups *c); /* NULL is fine, also below */

/* Moves the process into <path>/<volume>, which is made. Refused: that is logged once. */
void cgroups_enter(struct cgroups *c, const char *volume, int64_t pid);
/* Its process has ended. */
void cgroups_leave(struct cgroups *c, const char *volume);
