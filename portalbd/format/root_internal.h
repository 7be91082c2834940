/* What root.c and manifest.c share. */
#pragma once

#include "portalbd/format/json_internal.h"
#include "portalbd/format/root.h"

/* Is it a root that format 1 can hold, apart from the lengths of its lists? */
bool root_valid(const struct root *r);
/* -ERR_OVERLOAD when a list is longer than format 1 allows. */
int root_check_limits(const struct root *r, struct err *e);
void root_put(struct json_writer *w, const char *name, const struct root *r);
/* *ret must be released also after a failure. */
void root_get(struct json_reader *in, const char *name, struct root *ret);
