/* libFuzzer: what an S3 server may answer, to every verb. The first byte chooses verb and status,
 * the rest is the body of the answer. An answer never has more keys than asked for, nor an outcome
 * that the retry layer does not know. */
#include "portalbd/objstore/s3_answer.h"
#include "portalbd/objstore/s3_xml.h"

static void check_list(const struct obj_request *req) {
    CHECK(req->entry_count <= req->keys_max);
    CHECK(req->entry_count > 0 || !req->more);
    for (size_t i = 1; i < req->entry_count; i++)
        CHECK(strcmp(req->entries[i - 1].key, req->entries[i].key) < 0);
}

static void answer(uint8_t choice, struct view text) {
    static const int statuses[] = {200, 204, 206, 301, 400, 403, 404, 412, 416, 503};
    static const char *const keys[] = {"a", "b"};
    enum obj_verb verb = (enum obj_verb)(choice % 4);
    struct obj_request req = {.verb = verb,
                              .key = verb == OBJ_LIST ? "" : "key",
                              .keys = keys,
                              .key_count = 1 + (choice >> 7),
                              .keys_max = 3};
    struct s3_answer a = {.status = statuses[choice / 4 % ARRAY_LEN(statuses)], .text = text};
    s3_answer_apply(&req, "p/", &a);
    CHECK(req.rc <= 0 && (req.rc == 0 || req.rc == req.err.code));
    CHECK(req.rc != -ERR_NOT_FOUND || (verb == OBJ_GET && a.status == 404));
    CHECK(req.rc != -ERR_EXISTS || (verb == OBJ_PUT && a.status == 412));
    if (verb == OBJ_LIST && req.rc == 0)
        check_list(&req);
    obj_request_release(&req);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0)
        return 0;
    struct view text = view_of(data + 1, size - 1);
    answer(data[0], text);
    struct s3_sts sts;
    if (s3_xml_parse_sts(text, &sts, NULL) == 0)
        s3_sts_release(&sts);
    return 0;
}
