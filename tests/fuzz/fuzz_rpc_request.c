/* libFuzzer: what a gRPC server does with a request before its handler: wire check, decoding within
 * a cap, and the line in the log. The first byte chooses the message. */
#include <stdlib.h>

#include "agent.pb-c.h"
#include "common/buf.h"
#include "csi.pb-c.h"
#include "csi/rpc/rpc.h"
#include "csi/rpc/wire_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const ProtobufCMessageDescriptor *const types[] = {
    &csi__v1__create_volume_request__descriptor,
    &csi__v1__node_publish_volume_request__descriptor,
    &csi__v1__validate_volume_capabilities_request__descriptor,
    &csi__v1__list_snapshots_request__descriptor,
    &csi__v1__list_volumes_response__descriptor,
    &portalbd__agent__v1__attach_volume_request__descriptor,
    &portalbd__agent__v1__list_attachments_response__descriptor,
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { ARENA_MAX = 1 << 20, TEXT_MAX = 1000 };
    if (size == 0)
        return 0;
    const ProtobufCMessageDescriptor *type = types[data[0] % ARRAY_LEN(types)];
    struct view wire = view_of(data + 1, size - 1);
    if (wire_check(type, wire, RPC_DEPTH_MAX))
        return 0;
    CLEANUP_ARENA struct arena arena;
    arena_init(&arena, ARENA_MAX);
    ProtobufCAllocator allocator = arena_allocator(&arena);
    ProtobufCMessage *m = protobuf_c_message_unpack(type, &allocator, wire.len, wire.data);
    CHECK(arena.used_bytes <= ARENA_MAX);
    if (!m)
        return 0;
    CLEANUP_BUF struct buf text = {0};
    rpc_dump(&text, m, TEXT_MAX);
    CHECK(text.len <= TEXT_MAX);
    size_t packed = protobuf_c_message_get_packed_size(m);
    uint8_t *again = xmalloc(packed + 1);
    CHECK(protobuf_c_message_pack(m, again) == packed);
    CHECK(wire_check(type, view_of(again, packed), RPC_DEPTH_MAX) == NULL);
    free(again);
    return 0;
}
