/* Is this text? Well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF)
 * without a NUL. */
#pragma once

#include "common/view.h"

static inline bool utf8_valid(struct view v) {
    for (size_t i = 0; i < v.len;) {
        uint8_t c = v.data[i];
        size_t more = c < 0x80 ? 0 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
        if (c == 0 || (c >= 0x80 && c < 0xc2) || c > 0xf4 || v.len - i <= more)
            return false;
        /* The second byte also excludes overlong forms, surrogates and what is too large. */
        uint8_t low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
        uint8_t high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
        for (size_t k = 1; k <= more; k++) {
            uint8_t d = v.data[i + k];
            if (d < (k == 1 ? low : 0x80) || d > (k == 1 ? high : 0xbf))
                return false;
        }
        i += more + 1;
    }
    return true;
}
