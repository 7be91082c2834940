/* libFuzzer: records of volumes, snapshots, nodes and the pool, as they came and with the checksum
 * made right. What decodes is encoded, and decodes and encodes to the same bytes again. */
#include "tests/fuzz/json_fixup.h"

#include "portalbd/format/records.h"

static void decode_volume(struct view in) {
    struct volume_record r, again;
    if (volume_record_decode(&r, 1, in, NULL) < 0)
        return;
    struct buf a = {0};
    CHECK(volume_record_encode(&a, &r, NULL) == 0);
    CHECK(volume_record_decode(&again, 1, buf_view(&a), NULL) == 0);
    CHECK(strcmp(r.name, again.name) == 0 && r.parameters.count == again.parameters.count);
    buf_release(&a);
    volume_record_release(&r);
    volume_record_release(&again);
}

static void decode_snapshot(struct view in) {
    struct snapshot_record r, again;
    if (snapshot_record_decode(&r, 1, in, NULL) < 0)
        return;
    struct buf a = {0};
    CHECK(snapshot_record_encode(&a, &r, NULL) == 0);
    CHECK(snapshot_record_decode(&again, 1, buf_view(&a), NULL) == 0);
    CHECK(strcmp(r.name, again.name) == 0 && r.deleted == again.deleted);
    buf_release(&a);
    snapshot_record_release(&r);
    snapshot_record_release(&again);
}

static void decode_others(struct view in) {
    struct node_record n;
    struct pool_record p;
    struct buf a = {0};
    if (node_record_decode(&n, 1, in, NULL) == 0) {
        CHECK(node_record_encode(&a, &n, NULL) == 0);
        node_record_release(&n);
    }
    if (pool_record_decode(&p, in, NULL) == 0) {
        CHECK(pool_record_encode(&a, &p, NULL) == 0);
        pool_record_release(&p);
    }
    buf_release(&a);
}

static void decode(struct view in) {
    decode_volume(in);
    decode_snapshot(in);
    decode_others(in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    decode(view_of(data, size));
    with_right_crc(view_of(data, size), decode);
    return 0;
}
