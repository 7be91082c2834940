/* Is this text? Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF. */
#pragma once

#include "common/view.h"

/* Bytes of the sequence that data begins with, 1 to 4; 0 when it is none. left > 0. */
static inline size_t utf8_sequence_len(const uint8_t *data, size_t left) {
    uint8_t c = data[0];
    size_t len = c < 0x80 ? 1 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
    if ((c >= 0x80 && c < 0xc2) || c > 0xf4 || left < len)
        return 0;
    /* The second byte also excludes overlong forms, surrogates and what is too large. */
    uint8_t low = c == 0xe0 ? 0xa0 : c == 0xf0 ? 0x90 : 0x80;
    uint8_t high = c == 0xed ? 0x9f : c == 0xf4 ? 0x8f : 0xbf;
    for (size_t k = 1; k < len; k++) {
        if (data[k] < (k == 1 ? low : 0x80) || data[k] > (k == 1 ? high : 0xbf))
            return 0;
    }
    return len;
}

/* Well-formed UTF-8 without a NUL. */
static inline bool utf8_valid(struct view v) {
    for (size_t i = 0; i < v.len;) {
        size_t len = utf8_sequence_len(v.data + i, v.len - i);
        if (len == 0 || v.data[i] == 0)
            return false;
        i += len;
    }
    return true;
}
