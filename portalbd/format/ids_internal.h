/* What the decoders of the room ask about ids. Pure; any thread. */
#pragma once

#include "portalbd/format/ids.h"

/* Is it the local part of an id of that kind, whole? */
bool volume_key_valid(const char *text, enum id_kind kind);

/* Does it name an object as format 1 can: store 0, a seq or an id and not the other? */
bool obj_ref_valid(const struct obj_ref *ref);
