/* A store in a folder: `file:///path`. One host's pools, tests, trying things out.
 *
 * An object is a file of its key's name, readable by anybody with `ls` and `cat`; bytes that a file
 * system or a terminal dislikes are percent-encoded. Several processes may use one folder. */
#pragma once

#include "portalbd/objstore/objstore.h"

/* The folder need not exist yet; while it does not, requests end with -ERR_NO_BUCKET. The work is
 * done in jobs of env, which block. */
struct objstore *objstore_file_open(struct env *env, const char *folder);
