/* libFuzzer: manifests, as they came and with the checksum made right. What decodes is encoded,
 * and decodes and encodes to the same bytes again. */
#include "tests/fuzz/json_fixup.h"

#include "portalbd/format/root.h"

static void decode(struct view in) {
    struct manifest m, again;
    if (manifest_decode(&m, 1, in, NULL) < 0)
        return;
    struct buf a = {0}, b = {0};
    CHECK(manifest_encode(&a, &m, NULL) == 0);
    CHECK(manifest_decode(&again, 1, buf_view(&a), NULL) == 0);
    CHECK(manifest_encode(&b, &again, NULL) == 0);
    CHECK(view_equal(buf_view(&a), buf_view(&b)));
    buf_release(&a);
    buf_release(&b);
    manifest_release(&m);
    manifest_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size));
    with_right_crc(view_of(data, size), decode);
    return 0;
}
