/* gRPC C core as a whole: start-up and its log. gpr_set_log_function does nothing from gRPC 1.65
 * on; this is the only file that uses it. */
#include <grpc/grpc.h>
#include <grpc/support/log.h>
#include <string.h>
#include <time.h>

#include "common/log.h"
#include "csi/rpc/rpc_internal.h"
#include "csi/rpc/wire_check.h"

static void core_log(gpr_log_func_args *args) {
    if (args->severity == GPR_LOG_SEVERITY_ERROR)
        log_warn("grpc", LOG_STR("text", args->message), LOG_STR("file", args->file),
                 LOG_I64("line", args->line));
    else
        log_debug("grpc", LOG_STR("text", args->message), LOG_STR("file", args->file),
                  LOG_I64("line", args->line));
}

void rpc_core_init(void) {
    gpr_set_log_function(core_log);
    grpc_init();
}

uint64_t rpc_now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

void rpc_status_message(const char *text, char *out) {
    size_t len = strnlen(text, RPC_MESSAGE_MAX);
    /* Bytes of a sequence that the cut, or a tool's output, broke become '?', one each. */
    for (size_t i = 0; i < len;) {
        size_t n = 1;
        while (n < 4 && i + n < len && ((unsigned char)text[i + n] & 0xc0) == 0x80)
            n++;
        unsigned char c = (unsigned char)text[i];
        if (wire_text_valid(view_of(text + i, n)) && c != 0x7f && (c >= 0x20 || c == '\n')) {
            memcpy(out + i, text + i, n);
        } else {
            out[i] = '?';
            n = 1;
        }
        i += n;
    }
    out[len] = '\0';
}
