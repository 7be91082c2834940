/* libFuzzer: pool files, and the URLs in them. What is read, is written by pool_config_encode and
 * reads as the same. */
#include "tests/fuzz/file_input.h"

#include <stdlib.h>
#include <string.h>

#include "portalbd/catalog/pool_file.h"
#include "portalbd/objstore/url.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_url(const char *text) {
    struct objstore_url url;
    struct err e = {0};
    if (objstore_url_parse(text, &url, &e) < 0) {
        CHECK(e.code == -ERR_CONFIG);
        return;
    }
    size_t len = strlen(url.prefix);
    CHECK(url.scheme != OBJ_SCHEME_S3 ||
          (url.bucket[0] && (len == 0 || url.prefix[len - 1] == '/')));
    CHECK(url.scheme != OBJ_SCHEME_FILE || url.path[0] == '/');
}

static void check_again(const struct pool_config *p) {
    CLEANUP_BUF struct buf text = {0};
    struct pool_file again;
    if (!secret_empty(&p->session_token))
        return; /* would need a file of its own */
    CHECK(pool_config_encode(&text, p, "", NULL) == 0);
    CHECK(pool_file_read(file_input(buf_view(&text)), &again, NULL) == 0);
    CHECK(again.count == 1 && pool_config_equal(p, &again.pools[0]));
    pool_file_release(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct pool_file f;
    struct err e = {0};
    if (pool_file_read(file_input(view_of(data, size)), &f, &e) < 0) {
        CHECK(e.code < 0 && e.text[0]);
        return 0;
    }
    CHECK(f.count > 0 && f.count <= POOL_FILE_POOLS_MAX);
    for (size_t i = 0; i < f.count; i++) {
        CHECK(pool_file_find(&f, f.pools[i].name) == &f.pools[i]);
        check_url(f.pools[i].url);
        check_again(&f.pools[i]);
    }
    pool_file_release(&f);
    return 0;
}
