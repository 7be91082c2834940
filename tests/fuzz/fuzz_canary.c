/* libFuzzer: a decoder with a bug, which `make fuzz` must find before it trusts the others: it
 * reads behind a buffer when a length byte lies. */
#include <string.h>

#include "common/mem.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 6 || memcmp(data, "bird", 4) != 0)
        return 0;
    CLEANUP_FREE uint8_t *copy = xmalloc(data[4]);
    memcpy(copy, data + 5, size - 5); /* the bug: data[4] may be less */
    return copy[0] == 1 ? 0 : 0;
}
