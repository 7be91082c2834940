/* libFuzzer: claims and roots of pins, as they came and with the checksum made right. What decodes
 * is encoded, and decodes and encodes to the same bytes again. */
#include "tests/fuzz/json_fixup.h"

#include "portalbd/format/root.h"

static void decode_claim(struct view in) {
    struct pin_claim c, again;
    if (pin_claim_decode(&c, in, NULL) < 0)
        return;
    struct buf a = {0};
    pin_claim_encode(&a, &c);
    CHECK(pin_claim_decode(&again, buf_view(&a), NULL) == 0);
    CHECK(strcmp(c.commit.key, again.commit.key) == 0);
    buf_release(&a);
}

static void decode(struct view in) {
    decode_claim(in);
    struct pin_root p, again;
    if (pin_root_decode(&p, in, NULL) < 0)
        return;
    struct buf a = {0}, b = {0};
    CHECK(pin_root_encode(&a, &p, NULL) == 0);
    CHECK(pin_root_decode(&again, buf_view(&a), NULL) == 0);
    CHECK(pin_root_encode(&b, &again, NULL) == 0);
    CHECK(view_equal(buf_view(&a), buf_view(&b)));
    buf_release(&a);
    buf_release(&b);
    pin_root_release(&p);
    pin_root_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size));
    with_right_crc(view_of(data, size), decode);
    return 0;
}
