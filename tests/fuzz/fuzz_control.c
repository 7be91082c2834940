/* libFuzzer: lines of the control protocol, as requests and as replies. What decodes is encoded and
 * decodes to the same again. */
#include <stdlib.h>

#include "portalbd/control/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void as_request(struct view line) {
    struct control_request r, again;
    struct err e = {0};
    if (control_request_decode(&r, line, &e) < 0) {
        CHECK(e.code < 0 && !r.args);
        return;
    }
    struct buf out = {0};
    if (control_request_encode(&out, r.id, r.verb, r.args, &e) == 0) {
        CHECK(control_request_decode(&again, view_of(out.data, out.len - 1), &e) == 0);
        CHECK(again.id == r.id && strcmp(again.verb, r.verb) == 0);
        CHECK(json_equal(again.args, r.args));
        control_request_release(&again);
    }
    buf_release(&out);
    control_request_release(&r);
}

static void as_reply(struct view line) {
    struct err e = {0};
    json_t *result = NULL;
    if (control_reply_decode(line, 1, &result, &e) < 0) {
        CHECK(!result && e.code < 0);
        return;
    }
    struct buf out = {0};
    control_reply_encode(&out, 1, result);
    CHECK(out.len <= CONTROL_LINE_MAX);
    json_decref(result);
    buf_release(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct view line = view_of(data, MIN(size, CONTROL_LINE_MAX));
    as_request(line);
    as_reply(line);
    return 0;
}
