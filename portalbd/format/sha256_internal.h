/* SHA-256, for names of things. Any thread. */
#pragma once

#include "common/view.h"

enum { SHA256_SIZE = 32 };

void sha256(uint8_t ret[SHA256_SIZE], struct view in);
