/* gRPC's status codes as our errors. The other direction is err_to_grpc. */
#include "common/err.h"
#include "csi/rpc/rpc.h"

int rpc_err_from_code(int grpc_code) {
    static const int errs[] = {
        [0] = 0,
        [1] = -ERR_CANCELLED,
        [2] = -ERR_IO, /* UNKNOWN */
        [3] = -ERR_INVALID,
        [4] = -ERR_TIMEOUT,
        [5] = -ERR_NOT_FOUND,
        [6] = -ERR_EXISTS,
        [7] = -ERR_DENIED,
        [8] = -ERR_OVERLOAD,
        [9] = -ERR_IN_USE, /* FAILED_PRECONDITION */
        [10] = -ERR_BUSY,  /* ABORTED */
        [11] = -ERR_NO_SPACE,
        [12] = -ERR_UNSUPPORTED,
        [13] = -ERR_IO,
        [14] = -ERR_TRANSIENT,
        [15] = -ERR_CORRUPT,
        [16] = -ERR_DENIED, /* UNAUTHENTICATED */
    };
    if (grpc_code < 0 || grpc_code >= (int)ARRAY_LEN(errs))
        return -ERR_IO;
    return errs[grpc_code];
}
