/* libFuzzer: any object, as portalctl inspect reads it: as it came, and a JSON object with its
 * checksum made right. What is described names its kind. (Parts of maps have fuzz_run_page.) */
#include "tests/fuzz/json_fixup.h"

#include "portalbd/catalog/inspect.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void describe(struct view in) {
    static const char magic_of_parts[] =
        "JPBMP"; /* described with tables for millions of objects */
    json_t *o = NULL;
    struct err e = {0};
    if (in.len > 9 && memcmp(in.data + 4, magic_of_parts, 5) == 0)
        return;
    int rc = object_describe("volumes/v/log/0000000000000007", in, &o, &e);
    CHECK(rc == 0 ? o != NULL : (e.code == rc && e.text[0]));
    CHECK(!o || rc == 0 || rc == -ERR_CORRUPT); /* frames only */
    CHECK(!o || json_is_string(json_object_get(o, "type")));
    json_decref(o);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    describe(view_of(data, size));
    with_right_crc(view_of(data, size), describe);
    return 0;
}
