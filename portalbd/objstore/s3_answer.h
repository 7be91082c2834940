/* What an S3 server's HTTP answer means for a request. Pure. */
#pragma once

#include "portalbd/objstore/objstore.h"

struct s3_answer {
    int status;                /* HTTP's */
    struct view text;          /* the body; of a good GET it is in req->body instead */
    const char *content_range; /* headers; NULL: absent */
    const char *retry_after;
    const char *bucket_region;
};

/* What the client should do about itself before the next try. */
enum s3_hint {
    S3_HINT_NONE,
    S3_HINT_CLOCK,       /* the server's clock and ours differ too much */
    S3_HINT_CREDENTIALS, /* load them again, they may have been renewed */
};

/* Fills rc, err and the answer of req. prefix: the pool's, stands before every key in the bucket.
 */
enum s3_hint s3_answer_apply(struct obj_request *req, const char *prefix,
                             const struct s3_answer *a);
