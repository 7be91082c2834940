/* libFuzzer: a shared credentials file. */
#include "portalbd/objstore/credentials.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct s3_credentials c = {0};
    if (s3_credentials_parse_file(view_of(data, size), "default", &c, NULL) == 0) {
        CHECK(c.access_key_id && *c.access_key_id && !secret_empty(&c.secret_access_key));
        s3_credentials_release(&c);
    }
    return 0;
}
