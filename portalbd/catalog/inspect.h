/* Any object of a pool, as JSON for people and scripts: portalctl inspect. */
#pragma once

#include <jansson.h>

#include "common/buf.h"
#include "common/err.h"

/* What the bytes are, decoded and verified as its readers do; the kind is found in the bytes.
 * `key`: where they come from, for a number that only the key has; or "". Blocks for large objects.
 *   segment   its header and the table of extents; frames: also whether each decodes
 *   run       parts, objects, volumes of a map run's index
 *   map part  the entries of its pages; objects by their number in the index
 *   the JSON objects as they are
 * -ERR_CORRUPT: damaged, the text says where, and *ret is there when it is frames
 * only (else it is left alone); -ERR_UNSUPPORTED; -ERR_INVALID: nothing of ours. */
int object_describe(const char *key, struct view body, json_t **ret, struct err *e);
