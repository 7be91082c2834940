/* libFuzzer: the NBD handshake. The first byte says how the exports answer and where the input is
 * split; whatever a client says, the machine keeps its word. */
#include <stdlib.h>

#include "common/bytes.h"
#include "common/mem.h"
#include "common/utf8.h"
#include "portalbd/nbd/handshake.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static enum nbd_handshake_event answer(struct nbd_handshake *h, enum nbd_handshake_event event,
                                       uint8_t mood, struct buf *out) {
    struct err e;
    err_set_text(&e, mood & 1 ? -ERR_NOT_FOUND : -ERR_SHUTDOWN, "there is no export '%s'", h->name);
    if (mood & 2)
        return nbd_handshake_refused(h, &e, out);
    if (event == NBD_HANDSHAKE_LIST) {
        static const struct nbd_list_entry entries[] = {{"a", "one"}, {"b", NULL}, {"", ""}};
        return nbd_handshake_listed(h, entries, mood & 4 ? 0 : ARRAY_LEN(entries), out);
    }
    CHECK(strlen(h->name) <= NBD_STRING_MAX && utf8_valid(view_of_str(h->name)));
    struct nbd_export x = {.size_bytes = 1 << 30,
                           .read_only = mood & 8,
                           .block_size_min = 512,
                           .block_size_preferred = 4096,
                           .description = mood & 16 ? "description" : NULL};
    return nbd_handshake_opened(h, &x, out);
}

/* Everything that went out is whole replies, and options are answered once. */
static void check_replies(struct view out, bool export_name) {
    size_t off = NBD_GREETING_SIZE;
    while (out.len - off >= 20 && load_be64(out.data + off) == NBD_OPTION_REPLY_MAGIC) {
        uint32_t len = load_be32(out.data + off + 16);
        CHECK(len <= out.len - off - 20);
        off += 20 + len;
    }
    CHECK(export_name ? out.len - off == 10 || out.len - off == 134 : out.len == off);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1)
        return 0;
    uint8_t mood = data[0];
    struct view in = view_of(data + 1, size - 1);
    struct nbd_handshake *h = NEW(struct nbd_handshake);
    struct buf out = {0};
    nbd_handshake_init(h, mood & 32, &out);
    size_t window = mood & 64 ? 1 : in.len; /* bytes that have arrived */
    enum nbd_handshake_event event = NBD_HANDSHAKE_MORE;
    while (event == NBD_HANDSHAKE_MORE && out.len < 1 << 20) {
        size_t used;
        /* A copy of its own size, so that a read beyond what arrived is seen. */
        size_t len = MIN(window, in.len);
        uint8_t *arrived = xmalloc(len ? len : 1);
        memcpy(arrived, in.data, len);
        event = nbd_handshake_step(h, view_of(arrived, len), &used, &out);
        free(arrived);
        CHECK(used <= len);
        in = view_part(in, used, in.len - used);
        if (event == NBD_HANDSHAKE_OPEN || event == NBD_HANDSHAKE_LIST) {
            event = answer(h, event, mood, &out);
        } else if (event == NBD_HANDSHAKE_MORE && used == 0) {
            if (window >= in.len)
                break;
            window++;
        } else if (mood & 64) {
            window = 1;
        }
    }
    CHECK(event != NBD_HANDSHAKE_READY || h->structured_replies || !h->context_allocation);
    if (out.len < 1 << 20)
        check_replies(buf_view(&out),
                      event == NBD_HANDSHAKE_READY && h->option == NBD_OPT_EXPORT_NAME);
    buf_release(&out);
    free(h);
    return 0;
}
