/* What protobuf-c does not check before it decodes. */
#pragma once

#include <protobuf-c/protobuf-c.h>

#include "common/view.h"

/* NULL when `bytes` may be decoded as a message of this type, else why not (a constant). Checks
 * that every field is whole, that strings are valid UTF-8 without NUL (a C string would end there)
 * and that messages nest at most depth_max deep. */
const char *wire_check(const ProtobufCMessageDescriptor *type, struct view bytes, int depth_max);

/* Valid UTF-8 without NUL? */
bool wire_text_valid(struct view text);
