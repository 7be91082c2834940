/* For implementations of the store and of layers over it, this room only. */
#pragma once

#include <stdio.h>

#include "portalbd/objstore/objstore.h"

enum {
    OBJ_VERBS = OBJ_DELETE + 1,
    OBJ_NAME_MAX = 160, /* bytes of "put 'key'" in an error's text; longer keys are cut */
};

/* The rules of objstore.h that a caller of ours must keep: CHECKs. First thing in every submit. */
void obj_request_check(const struct obj_request *req);

/* "get 'volumes/x/log/…'", for texts. */
void obj_request_name(const struct obj_request *req, char *ret, size_t size);

/* Sets rc and err to "verb 'key': why"; returns the code. Does not call done. */
int obj_request_fail(struct obj_request *req, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* What a GET of an object of this size gives: [*ret_off, + *ret_len); -ERR_CORRUPT as the contract
 * says. */
int obj_range_resolve(const struct obj_request *req, uint64_t size, uint64_t *ret_off,
                      size_t *ret_len);

/* A request that asks the same, for the store below; done is not set. */
void layer_child_init(struct obj_request *child, const struct obj_request *above);
/* Moves the answer up, what it owns included. Does not call done. */
void layer_answer_move(struct obj_request *above, struct obj_request *child);
