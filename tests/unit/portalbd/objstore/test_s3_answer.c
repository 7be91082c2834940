/* What each answer of a server means. */
#include "tests/support/test.h"

#include <stdio.h>
#include <string.h>

#include "portalbd/objstore/s3_answer.h"

#define ERROR_DOC(code) "<Error><Code>" code "</Code><Message>because</Message></Error>"

static const char *const two_keys[] = {"a", "b"};

static struct obj_request get_whole(void) {
    return (struct obj_request){.verb = OBJ_GET, .key = "k"};
}
static struct obj_request put_one(void) {
    return (struct obj_request){.verb = OBJ_PUT, .key = "k"};
}
static struct obj_request list_ten(void) {
    return (struct obj_request){.verb = OBJ_LIST, .key = "", .keys_max = 10};
}
static struct obj_request delete_one(void) {
    return (struct obj_request){.verb = OBJ_DELETE, .keys = two_keys, .key_count = 1};
}
static struct obj_request delete_two(void) {
    return (struct obj_request){.verb = OBJ_DELETE, .keys = two_keys, .key_count = 2};
}

static const struct {
    struct obj_request (*make)(void);
    int status;
    const char *text;
    int rc;
    enum s3_hint hint;
} table[] = {
    {get_whole, 200, "", 0, S3_HINT_NONE},
    {get_whole, 404, ERROR_DOC("NoSuchKey"), -ERR_NOT_FOUND, S3_HINT_NONE},
    {get_whole, 404, ERROR_DOC("NoSuchBucket"), -ERR_NO_BUCKET, S3_HINT_NONE},
    {get_whole, 404, "404 page not found", -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 404, "", -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 403, ERROR_DOC("AccessDenied"), -ERR_DENIED, S3_HINT_CREDENTIALS},
    {get_whole, 403, ERROR_DOC("RequestTimeTooSkewed"), -ERR_TRANSIENT, S3_HINT_CLOCK},
    {get_whole, 400, ERROR_DOC("ExpiredToken"), -ERR_DENIED, S3_HINT_CREDENTIALS},
    {get_whole, 400, ERROR_DOC("AuthorizationHeaderMalformed"), -ERR_CONFIG, S3_HINT_NONE},
    {get_whole, 400, ERROR_DOC("RequestTimeout"), -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 301, ERROR_DOC("PermanentRedirect"), -ERR_CONFIG, S3_HINT_NONE},
    {get_whole, 500, ERROR_DOC("InternalError"), -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 502, "<html>", -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 503, ERROR_DOC("SlowDown"), -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 429, "", -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 408, "", -ERR_TRANSIENT, S3_HINT_NONE},
    {get_whole, 206, "", -ERR_UNSUPPORTED, S3_HINT_NONE},
    {put_one, 200, "", 0, S3_HINT_NONE},
    {put_one, 200, ERROR_DOC("InternalError"), -ERR_TRANSIENT, S3_HINT_NONE},
    {put_one, 412, ERROR_DOC("PreconditionFailed"), -ERR_EXISTS, S3_HINT_NONE},
    {put_one, 412, "", -ERR_EXISTS, S3_HINT_NONE},
    {put_one, 409, ERROR_DOC("ConditionalRequestConflict"), -ERR_TRANSIENT, S3_HINT_NONE},
    {put_one, 404, ERROR_DOC("NoSuchBucket"), -ERR_NO_BUCKET, S3_HINT_NONE},
    {put_one, 404, ERROR_DOC("NoSuchKey"), -ERR_TRANSIENT, S3_HINT_NONE},
    {put_one, 501, ERROR_DOC("NotImplemented"), -ERR_UNSUPPORTED, S3_HINT_NONE},
    {put_one, 400, ERROR_DOC("BadDigest"), -ERR_TRANSIENT, S3_HINT_NONE},
    {list_ten, 200, "", -ERR_TRANSIENT, S3_HINT_NONE},
    {list_ten, 200, "<html></html>", -ERR_TRANSIENT, S3_HINT_NONE},
    {list_ten, 404, ERROR_DOC("NoSuchKey"), -ERR_TRANSIENT, S3_HINT_NONE},
    {list_ten, 412, "", -ERR_TRANSIENT, S3_HINT_NONE},
    {delete_one, 204, "", 0, S3_HINT_NONE},
    {delete_one, 404, ERROR_DOC("NoSuchKey"), 0, S3_HINT_NONE},
    {delete_one, 404, ERROR_DOC("NoSuchBucket"), -ERR_NO_BUCKET, S3_HINT_NONE},
    {delete_two, 200, "<DeleteResult/>", 0, S3_HINT_NONE},
    {delete_two, 200, "", -ERR_TRANSIENT, S3_HINT_NONE},
    {delete_two, 200,
     "<DeleteResult><Error><Key>b</Key><Code>AccessDenied</Code></Error></DeleteResult>",
     -ERR_DENIED, S3_HINT_CREDENTIALS},
    {delete_two, 200,
     "<DeleteResult><Error><Key>b</Key><Code>SlowDown</Code></Error></DeleteResult>",
     -ERR_TRANSIENT, S3_HINT_NONE},
};

static void test_table(void **state) {
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(table); i++) {
        struct obj_request req = table[i].make();
        struct s3_answer a = {.status = table[i].status, .text = view_of_str(table[i].text)};
        enum s3_hint hint = s3_answer_apply(&req, "", &a);
        if (req.rc != table[i].rc || hint != table[i].hint)
            fail_msg("row %zu: %s with status %d '%s': rc %s (%s)", i, obj_verb_name(req.verb),
                     a.status, table[i].text, err_code_name(req.rc), req.err.text);
        obj_request_release(&req);
    }
}

static int range_rc(uint64_t off, size_t len, bool suffix, const char *content_range,
                    size_t body_len) {
    struct obj_request req = {
        .verb = OBJ_GET, .key = "k", .off = off, .len = len, .suffix = suffix};
    memset(buf_extend(&req.body, body_len), 'x', body_len);
    s3_answer_apply(&req, "", &(struct s3_answer){.status = 206, .content_range = content_range});
    int rc = req.rc;
    obj_request_release(&req);
    return rc;
}

static void test_ranges(void **state) {
    (void)state;
    assert_int_equal(range_rc(10, 5, false, "bytes 10-14/100", 5), 0);
    assert_int_equal(range_rc(10, 5, false, "bytes 10-12/13", 3), 0);
    assert_int_equal(range_rc(0, 5, true, "bytes 95-99/100", 5), 0);
    assert_int_equal(range_rc(0, 5, true, "bytes 0-2/3", 3), 0);
    /* Short bodies, other parts, nonsense: asked for again. */
    assert_int_equal(range_rc(10, 5, false, "bytes 10-14/100", 4), -ERR_TRANSIENT);
    assert_int_equal(range_rc(10, 5, false, "bytes 10-12/100", 3), -ERR_TRANSIENT);
    assert_int_equal(range_rc(10, 5, false, "bytes 11-15/100", 5), -ERR_TRANSIENT);
    assert_int_equal(range_rc(10, 5, false, "bytes 10-14/*", 5), -ERR_TRANSIENT);
    assert_int_equal(range_rc(10, 5, false, NULL, 5), -ERR_TRANSIENT);
    assert_int_equal(range_rc(0, 5, true, "bytes 94-98/100", 5), -ERR_TRANSIENT);
}

static int unsatisfiable_rc(uint64_t off, bool suffix) {
    struct obj_request req = {.verb = OBJ_GET, .key = "k", .off = off, .len = 5, .suffix = suffix};
    s3_answer_apply(&req, "", &(struct s3_answer){.status = 416});
    assert_int_equal(req.body.len, 0);
    return req.rc;
}

static void test_unsatisfiable(void **state) {
    (void)state;
    assert_int_equal(unsatisfiable_rc(0, false), 0);
    assert_int_equal(unsatisfiable_rc(0, true), 0);
    assert_int_equal(unsatisfiable_rc(1, false), -ERR_CORRUPT);
}

static void test_retry_after(void **state) {
    (void)state;
    struct obj_request req = get_whole();
    s3_answer_apply(&req, "", &(struct s3_answer){.status = 503, .retry_after = "7"});
    assert_int_equal(req.retry_after_us, 7000000);
    s3_answer_apply(&req, "", &(struct s3_answer){.status = 503, .retry_after = "soon"});
    assert_int_equal(req.retry_after_us, 0);
}

static void test_wrong_region_is_named(void **state) {
    (void)state;
    struct obj_request req = get_whole();
    s3_answer_apply(&req, "", &(struct s3_answer){.status = 301, .bucket_region = "eu-west-1"});
    assert_int_equal(req.rc, -ERR_CONFIG);
    assert_non_null(strstr(req.err.text, "eu-west-1"));
}

static int list_rc(const char *prefix, const char *start_after, const char *a, const char *b) {
    CLEANUP_BUF struct buf xml = {0};
    buf_printf(&xml,
               "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>%s</Key><Size>1"
               "</Size></Contents><Contents><Key>%s</Key><Size>2</Size></Contents>"
               "</ListBucketResult>",
               a, b);
    struct obj_request req = {
        .verb = OBJ_LIST, .key = prefix, .keys_max = 10, .start_after = start_after};
    s3_answer_apply(&req, "pool/", &(struct s3_answer){.status = 200, .text = buf_view(&xml)});
    int rc = req.rc;
    if (rc == 0)
        assert_string_equal(req.entries[1].key, b + strlen("pool/"));
    obj_request_release(&req);
    return rc;
}

static void test_listings_are_checked(void **state) {
    (void)state;
    assert_int_equal(list_rc("a/", NULL, "pool/a/1", "pool/a/2"), 0);
    assert_int_equal(list_rc("a/", "a/0", "pool/a/1", "pool/a/2"), 0);
    assert_int_equal(list_rc("a/", NULL, "pool/a/2", "pool/a/1"), -ERR_UNSUPPORTED);
    assert_int_equal(list_rc("a/", NULL, "pool/a/1", "pool/a/1"), -ERR_UNSUPPORTED);
    assert_int_equal(list_rc("a/", "a/1", "pool/a/1", "pool/a/2"), -ERR_UNSUPPORTED);
    assert_int_equal(list_rc("a/", NULL, "pool/b/1", "pool/b/2"), -ERR_UNSUPPORTED);
    assert_int_equal(list_rc("a/", NULL, "other/a/1", "other/a/2"), -ERR_UNSUPPORTED);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_unsatisfiable),
        cmocka_unit_test(test_retry_after),
        cmocka_unit_test(test_wrong_region_is_named),
        cmocka_unit_test(test_listings_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
