/* One sample of each object of format 1, with fixed values: how its bytes are made, and how what
 * was read of them is written again. */
#pragma once

#include <stdlib.h>
#include <string.h>

#include "portalbd/format/records.h"
#include "portalbd/volume/journal.h"
#include "portalbd/volume/volume.h"

struct sample {
    const char *file;
    void (*encode)(struct buf *out);
    int (*recode)(struct buf *out, struct view in, struct err *e); /* decode, then encode */
    bool compressed; /* its bytes may differ with another LZ4: only read */
};

static struct random_id id_of(int byte) {
    struct random_id id;
    memset(id.bytes, byte, sizeof id.bytes);
    return id;
}

static struct volume_key key_of(enum id_kind kind, const char *name, uint64_t n) {
    char hash[33];
    struct volume_key key;
    name_hash(hash, name);
    id_format_key(&key, kind, hash, n);
    return key;
}

static void must(int rc) {
    CHECK(rc == 0);
}

/* --- segments --- */

static struct segment_meta sample_meta(uint8_t kind) {
    struct volume_key own = key_of(ID_VOLUME, "golden", 1);
    struct segment_meta m = {.kind = kind,
                             .epoch = UINT64_C(3) << 32 | 2,
                             .seq = kind == SEGMENT_MOVED ? 0 : 0x1234,
                             .nonce = id_of(0xa1),
                             .journal = id_of(0xb2),
                             .last_write = 987654321};
    segment_volume_hash(m.volume_hash, &own);
    return m;
}

static void sample_bytes(uint8_t *data, size_t len, bool compressible) {
    uint32_t x = 1;
    for (size_t i = 0; i < len; i++) {
        x = x * 1664525 + 1013904223;
        data[i] = compressible ? (uint8_t)(i / 100) : (uint8_t)(x >> 24);
    }
}

static void encode_segment(struct buf *out, uint8_t kind, bool compress) {
    struct segment_meta m = sample_meta(kind);
    struct segment_extent extents[] = {
        {.sector = 2048, .count = 8, .kind = EXTENT_DATA},
        {.sector = 2056, .count = 40, .kind = EXTENT_DATA},
        {.sector = 0, .count = 1, .kind = EXTENT_ZERO},
        {.sector = SECTORS_MAX - 1, .count = 1, .kind = EXTENT_DATA},
        {.sector = UINT64_C(1) << 31, .count = UINT64_C(1) << 32, .kind = EXTENT_HOLE},
    };
    uint16_t lens[4];
    struct segment_table t = {.extents = extents, .extent_count = ARRAY_LEN(extents), .lens = lens};
    segment_encode_header(buf_extend(out, SEGMENT_HEADER_SIZE), &m);
    for (size_t i = 0; i < t.extent_count; i++) {
        if (extents[i].kind != EXTENT_DATA)
            continue;
        extents[i].off = (uint32_t)out->len;
        extents[i].first_len = (uint32_t)t.len_count;
        for (uint64_t left = extents[i].count; left > 0;) {
            uint8_t data[FRAME_SECTORS_MAX * SECTOR_SIZE], frame[FRAME_SIZE_MAX];
            size_t sectors = MIN(left, FRAME_SECTORS_MAX);
            sample_bytes(data, sizeof data, compress);
            size_t len = frame_encode(frame, data, sectors, compress);
            buf_append(out, frame, len);
            lens[t.len_count++] = (uint16_t)len;
            left -= sectors;
        }
    }
    segment_encode_tail(out, &m, &t, out->len);
}

static void encode_segment_raw(struct buf *out) {
    encode_segment(out, SEGMENT_DATA, false);
}

static void encode_segment_lz4(struct buf *out) {
    encode_segment(out, SEGMENT_DATA, true);
}

static void encode_segment_moved(struct buf *out) {
    encode_segment(out, SEGMENT_MOVED, false);
}

static void encode_fence(struct buf *out) {
    struct segment_meta m = sample_meta(SEGMENT_FENCE);
    segment_encode_fence(buf_extend(out, SEGMENT_FENCE_SIZE), &m);
}

/* Every frame is decoded and looked at, too. */
static int recode_segment(struct buf *out, struct view in, struct err *e) {
    struct segment_meta m;
    struct segment_table t;
    size_t need;
    int rc = segment_decode_tail(in, in.len, &m, &t, &need, e);
    if (rc < 0)
        return rc;
    if (m.kind == SEGMENT_FENCE) {
        segment_encode_fence(buf_extend(out, SEGMENT_FENCE_SIZE), &m);
        segment_table_release(&t);
        return 0;
    }
    size_t body = SEGMENT_HEADER_SIZE;
    for (size_t i = 0; i < t.extent_count && rc == 0; i++) {
        uint64_t left = t.extents[i].kind == EXTENT_DATA ? t.extents[i].count : 0;
        while (left > 0 && rc == 0) {
            uint8_t got[FRAME_SECTORS_MAX * SECTOR_SIZE], raw[sizeof got], packed[sizeof got];
            size_t sectors = MIN(left, FRAME_SECTORS_MAX), len = 0;
            rc = frame_decode(view_part(in, body, in.len - body), got, sectors, &len, e);
            sample_bytes(raw, sizeof raw, false);
            sample_bytes(packed, sizeof packed, true);
            if (rc == 0 && memcmp(got, raw, sectors * SECTOR_SIZE) != 0 &&
                memcmp(got, packed, sectors * SECTOR_SIZE) != 0)
                rc = err_set(e, -ERR_CORRUPT, "a frame holds something else");
            left -= sectors;
            body += len;
        }
    }
    if (rc == 0) {
        segment_encode_header(buf_extend(out, SEGMENT_HEADER_SIZE), &m);
        buf_append(out, in.data + SEGMENT_HEADER_SIZE, body - SEGMENT_HEADER_SIZE);
        segment_encode_tail(out, &m, &t, body);
    }
    segment_table_release(&t);
    return rc;
}

/* --- runs --- */

enum { SAMPLE_REFS = 4, SAMPLE_USAGE = 6, SAMPLE_ENTRIES = 100 };

static void sample_index(struct run_index *x) {
    *x = (struct run_index){.volume_count = 2,
                            .usage_count = SAMPLE_USAGE,
                            .part_count = 2,
                            .entry_count = 777,
                            .nonce = id_of(0xc3)};
    x->volumes = xcalloc(2, sizeof *x->volumes);
    x->volumes[0] = key_of(ID_VOLUME, "golden", 1);
    x->volumes[1] = key_of(ID_VOLUME, "parent", 0xffffffffffffff);
    x->usage = xcalloc(SAMPLE_USAGE, sizeof *x->usage);
    x->usage[0] = (struct run_usage){{.kind = OBJ_LOG, .seq = 100}, 4108};
    x->usage[1] = (struct run_usage){{.kind = OBJ_LOG, .volume = 1, .seq = 7}, 1};
    x->usage[2] = (struct run_usage){{.kind = OBJ_MOVED, .id = id_of(0xd4)}, 1 << 24};
    x->usage[3] = (struct run_usage){{.kind = OBJ_LOG, .seq = UINT64_C(1) << 40}, 12345};
    x->usage[5] = (struct run_usage){{.kind = OBJ_LOG, .seq = 99}, 5}; /* number 4 is free */
    x->parts = xcalloc(2, sizeof *x->parts);
    x->parts[0] = (struct run_part){.ref = {.kind = OBJ_MAP, .id = id_of(0xe5)},
                                    .first_sector = 5,
                                    .last_sector = 9999,
                                    .sectors = 9000,
                                    .entries = 700,
                                    .page_count = 3,
                                    .shares_len = 30};
    x->parts[1] = (struct run_part){.ref = {.kind = OBJ_MAP, .volume = 1, .id = id_of(0xe6)},
                                    .first_sector = UINT64_C(1) << 40,
                                    .last_sector = SECTORS_MAX - 1,
                                    .sectors = UINT64_C(1) << 40,
                                    .entries = 77,
                                    .page_count = 2,
                                    .shares_len = 20};
    run_part_set_fences(&x->parts[0], (uint64_t[]){5, 1005, 2005});
    run_part_set_fences(&x->parts[1], (uint64_t[]){UINT64_C(1) << 40, UINT64_C(3) << 40});
}

static void encode_run_index(struct buf *out) {
    struct run_index x;
    sample_index(&x);
    must(run_index_encode(out, &x, NULL));
    run_index_release(&x);
}

static int recode_run_index(struct buf *out, struct view in, struct err *e) {
    struct run_index x;
    int rc = run_index_decode(&x, in, e);
    if (rc == 0) {
        rc = run_index_encode(out, &x, e);
        run_index_release(&x);
    }
    return rc;
}

static void encode_run_page(struct buf *out) {
    struct run_index x;
    struct run_page_builder b;
    uint16_t lens[EXTENT_FRAMES_MAX];
    sample_index(&x);
    run_page_start(&b, buf_extend(out, RUN_PAGE_SIZE));
    uint64_t sector = 1000000;
    for (uint32_t i = 0; i < SAMPLE_ENTRIES; i++) {
        struct map_entry m = {.sector = sector,
                              .count = 1 + i % 7 * 8,
                              .kind =
                                  i % 5 == 4 ? (i % 2 ? EXTENT_ZERO : EXTENT_HOLE) : EXTENT_DATA};
        if (m.kind == EXTENT_DATA) {
            m.skip = i % 3 == 0 ? 9 : 0;
            m.len_count = (uint16_t)extent_frames(m.skip + m.count);
            m.off = 96 + i / 2 * 40000;
            m.ref = x.usage[i / 20 % SAMPLE_REFS].ref;
            m.lens = lens;
            for (size_t j = 0; j < m.len_count; j++)
                lens[j] = (uint16_t)(FRAME_SIZE_MAX - i * 100 - j);
        }
        CHECK(run_page_add(&b, &m, i / 20 % SAMPLE_REFS));
        sector += m.count + (i % 4 ? 0 : i * i);
    }
    run_page_finish(&b);
    run_index_release(&x);
}

static uint32_t sample_ref_number(const struct run_index *x, const struct obj_ref *ref) {
    for (uint32_t i = 0; i < x->usage_count; i++)
        if (obj_ref_equal(&x->usage[i].ref, ref))
            return i;
    return 0;
}

static int recode_run_page(struct buf *out, struct view in, struct err *e) {
    struct run_index x;
    struct run_page_cursor c;
    struct run_page_builder b;
    sample_index(&x);
    int rc = run_page_open(&c, &x, in, e);
    if (rc == 0) {
        run_page_start(&b, buf_extend(out, RUN_PAGE_SIZE));
        while ((rc = run_page_next(&c, e)) == 1)
            CHECK(run_page_add(&b, &c.entry, sample_ref_number(&x, &c.entry.ref)));
        if (rc == 0)
            run_page_finish(&b);
    }
    run_index_release(&x);
    return rc;
}

static void encode_run_shares(struct buf *out) {
    const struct run_share shares[] = {
        {0, 4108}, {1, 1}, {2, 1 << 24}, {300, UINT64_C(1) << 61}, {RUN_USAGE_MAX - 1, 77}};
    run_shares_encode(out, shares, ARRAY_LEN(shares));
}

static int recode_run_shares(struct buf *out, struct view in, struct err *e) {
    struct run_share *shares;
    size_t count;
    int rc = run_shares_decode(&shares, &count, in, e);
    if (rc == 0) {
        run_shares_encode(out, shares, count);
        free(shares);
    }
    return rc;
}

/* --- manifests and pins --- */

static void sample_root(struct root *r) {
    struct volume_key own = key_of(ID_VOLUME, "golden", 1);
    struct volume_key parent = key_of(ID_VOLUME, "parent", 0xffffffffffffff);
    root_init(r, &own);
    CHECK(root_volume_index(r, &parent, NULL) == 1);
    r->runs = xcalloc(2, sizeof *r->runs);
    r->run_count = 2;
    r->runs[0] = (struct root_run){{.kind = OBJ_MAP, .id = id_of(1)}, 4000, 123456, 1 << 20};
    r->runs[1] =
        (struct root_run){{.kind = OBJ_MAP, .volume = 1, .id = id_of(2)}, 70, 1 << 28, 1 << 30};
    r->tail = xcalloc(2, sizeof *r->tail);
    r->tail_count = 2;
    r->tail[0] = (struct root_tail){.volume = 1, .first = 71, .count = 3};
    r->tail[1] = (struct root_tail){.volume = 0, .first = 4000, .count = 256};
    r->next_seq = 4289;
    r->evacuated = xcalloc(2, sizeof *r->evacuated);
    r->evacuated_count = 2;
    r->evacuated[0] = (struct obj_ref){.kind = OBJ_LOG, .seq = 12};
    r->evacuated[1] = (struct obj_ref){.kind = OBJ_MOVED, .id = id_of(3)};
}

static void encode_manifest(struct buf *out) {
    struct held_pin pins[] = {{key_of(ID_VOLUME, "parent", 0xffffffffffffff), id_of(4)}};
    struct condemned_range condemned[] = {
        {.kind = OBJ_LOG, .first = 1, .count = 11},
        {.kind = OBJ_MOVED, .count = 1, .id = id_of(5)},
        {.kind = OBJ_MAP, .count = 1, .id = id_of(6)},
    };
    struct manifest m = {.epoch = UINT64_C(0xffffffff00000007),
                         .nonce = id_of(7),
                         .size_bytes = UINT64_C(1) << 60,
                         .block_size = 4096,
                         .journal = id_of(8),
                         .last_write = 55,
                         .closed = true,
                         .depth = 1,
                         .held_pins = pins,
                         .held_pin_count = 1,
                         .condemned = condemned,
                         .condemned_count = 3};
    sample_root(&m.root);
    must(manifest_encode(out, &m, NULL));
    root_release(&m.root);
}

static int recode_manifest(struct buf *out, struct view in, struct err *e) {
    struct manifest m;
    int rc = manifest_decode(&m, 1, in, e);
    if (rc == 0) {
        rc = manifest_encode(out, &m, e);
        manifest_release(&m);
    }
    return rc;
}

static struct commit_key sample_commit(bool is_clone) {
    struct commit_key c = {.is_clone = is_clone};
    struct volume_key clone = key_of(ID_VOLUME, "clone", 2);
    char hash[33];
    name_hash(hash, "monday");
    if (is_clone)
        key_manifest(c.key, &clone, 1);
    else
        key_snapshot(c.key, hash, 9);
    return c;
}

static void encode_pin_claim(struct buf *out) {
    struct pin_claim c = {.pin = id_of(9),
                          .commit = sample_commit(false),
                          .nonce = id_of(10),
                          .created_ms = 1700000000123};
    pin_claim_encode(out, &c);
}

static int recode_pin_claim(struct buf *out, struct view in, struct err *e) {
    struct pin_claim c;
    int rc = pin_claim_decode(&c, in, e);
    if (rc == 0)
        pin_claim_encode(out, &c);
    return rc;
}

static void encode_pin(struct buf *out, bool expired) {
    struct pin_root p = {.pin = id_of(9),
                         .commit = sample_commit(!expired),
                         .nonce = id_of(11),
                         .expired = expired,
                         .size_bytes = 1 << 30,
                         .block_size = 512,
                         .depth = 2};
    sample_root(&p.root);
    must(pin_root_encode(out, &p, NULL));
    root_release(&p.root);
}

static void encode_pin_root(struct buf *out) {
    encode_pin(out, false);
}

static void encode_pin_expired(struct buf *out) {
    encode_pin(out, true);
}

static int recode_pin_root(struct buf *out, struct view in, struct err *e) {
    struct pin_root p;
    int rc = pin_root_decode(&p, in, e);
    if (rc == 0) {
        rc = pin_root_encode(out, &p, e);
        pin_root_release(&p);
    }
    return rc;
}

/* --- records --- */

static void encode_volume(struct buf *out) {
    struct string_pair parameters[] = {{(char *)"cacheSize", (char *)"1Gi"},
                                       {(char *)"mkfsOptions", (char *)"-m 0 \"x\" \xc3\xa4"}};
    struct volume_record r = {.nonce = id_of(12),
                              .name = (char *)"golden",
                              .key = key_of(ID_VOLUME, "golden", 1),
                              .size_bytes = 1 << 30,
                              .block_size = 4096,
                              .fingerprint = (char *)"0badcafe",
                              .parameters = {parameters, 2},
                              .source_kind = SOURCE_VOLUME,
                              .source = (char *)"pv-x.fast",
                              .node = (char *)"node-1",
                              .read_only = false,
                              .publish_epoch = UINT32_MAX,
                              .state = VOLUME_RESTORING,
                              .restore_snapshot = (char *)"snap-y.fast",
                              .created_ms = 1700000000000};
    must(volume_record_encode(out, &r, NULL));
}

static int recode_volume(struct buf *out, struct view in, struct err *e) {
    struct volume_record r;
    int rc = volume_record_decode(&r, 1, in, e);
    if (rc == 0) {
        rc = volume_record_encode(out, &r, e);
        volume_record_release(&r);
    }
    return rc;
}

static void encode_snapshot(struct buf *out) {
    struct snapshot_record r = {.nonce = id_of(13),
                                .name = (char *)"monday",
                                .key = key_of(ID_SNAPSHOT, "monday", 9),
                                .source = key_of(ID_VOLUME, "golden", 1),
                                .source_name = (char *)"golden",
                                .pin = id_of(9),
                                .size_bytes = 1 << 30,
                                .block_size = 4096,
                                .created_ms = 1700000000001,
                                .fstype = (char *)"ext4"};
    must(snapshot_record_encode(out, &r, NULL));
}

static void encode_tombstone(struct buf *out) {
    struct snapshot_record r = {.nonce = id_of(14), .deleted = true};
    must(snapshot_record_encode(out, &r, NULL));
}

static int recode_snapshot(struct buf *out, struct view in, struct err *e) {
    struct snapshot_record r;
    int rc = snapshot_record_decode(&r, 1, in, e);
    if (rc == 0) {
        rc = snapshot_record_encode(out, &r, e);
        snapshot_record_release(&r);
    }
    return rc;
}

static void encode_node(struct buf *out) {
    struct node_record r = {.nonce = id_of(15),
                            .node_id = (char *)"node-1",
                            .version = (char *)"0.1.0",
                            .registered_ms = 1700000000002};
    must(node_record_encode(out, &r, NULL));
}

static int recode_node(struct buf *out, struct view in, struct err *e) {
    struct node_record r;
    int rc = node_record_decode(&r, 1, in, e);
    if (rc == 0) {
        rc = node_record_encode(out, &r, e);
        node_record_release(&r);
    }
    return rc;
}

static void encode_pool(struct buf *out) {
    struct pool_record r = {.uuid = id_of(16),
                            .cluster_id = (char *)"cluster-1",
                            .conditional_put = true,
                            .created_ms = 1700000000003};
    must(pool_record_encode(out, &r, NULL));
}

static int recode_pool(struct buf *out, struct view in, struct err *e) {
    struct pool_record r;
    int rc = pool_record_decode(&r, in, e);
    if (rc == 0) {
        rc = pool_record_encode(out, &r, e);
        pool_record_release(&r);
    }
    return rc;
}

/* --- the journal: the file up to its head --- */

static bool golden_reserve(struct journal_memory *m, uint64_t off, uint64_t len) {
    return off + len <= m->size;
}

static void golden_punch(struct journal_memory *m, uint64_t off, uint64_t len) {
    (void)m, (void)off, (void)len;
}

static struct journal_memory golden_memory(void) {
    struct journal_memory m = {
        .size = JOURNAL_SIZE_MIN, .reserve = golden_reserve, .punch = golden_punch};
    m.base = aligned_alloc(4096, m.size);
    CHECK(m.base);
    memset(m.base, 0, m.size);
    return m;
}

/* Five writes, of which the store has the first. */
static void encode_journal(struct buf *out) {
    struct volume_key own = key_of(ID_VOLUME, "golden", 1);
    struct random_id id = id_of(0xb2);
    struct journal_memory m = golden_memory();
    struct journal *j;
    struct journal_found found;
    struct journal_record r;
    uint8_t data[3 * SECTOR_SIZE];
    sample_bytes(data, sizeof data, false);
    must(journal_open(&m, 0, &own, &j, NULL));
    journal_format(j, &id);
    must(journal_scan(j, 0, SECTORS_MAX, &found, NULL));
    journal_recover(j, &found);
    CHECK(journal_append(j, EXTENT_DATA, 8, 1, data, &r));
    uint64_t stored = r.end;
    CHECK(journal_append(j, EXTENT_DATA, 2048, 3, data, &r));
    CHECK(journal_append(j, EXTENT_ZERO, 0, UINT64_C(1) << 40, NULL, &r));
    CHECK(journal_append(j, EXTENT_HOLE, SECTORS_MAX - 8, 8, NULL, &r));
    CHECK(journal_append(j, EXTENT_DATA, 9, 2, data, &r));
    journal_free_to(j, stored);
    buf_append(out, m.base, JOURNAL_HEADER_SIZE + journal_head(j));
    journal_free(j);
    free(m.base);
}

static int check_journal(struct journal *j, struct err *e) {
    struct journal_found found;
    int rc = journal_scan(j, 1, SECTORS_MAX, &found, e);
    if (rc < 0 || found.damage.code)
        return rc < 0 ? rc : err_copy(e, &found.damage);
    static const uint64_t sectors[] = {2048, 0, SECTORS_MAX - 8, 9};
    static const uint8_t kinds[] = {EXTENT_DATA, EXTENT_ZERO, EXTENT_HOLE, EXTENT_DATA};
    uint64_t pos = found.from;
    for (size_t i = 0; i < ARRAY_LEN(sectors); i++) {
        struct journal_record r;
        journal_read(j, pos, &r);
        CHECK(r.number == i + 2 && r.sector == sectors[i] && r.kind == kinds[i]);
        pos = r.end;
    }
    CHECK(pos == found.end && found.end == journal_head(j) && found.number == 5);
    return 0;
}

static int recode_journal(struct buf *out, struct view in, struct err *e) {
    struct volume_key own = key_of(ID_VOLUME, "golden", 1);
    struct journal_memory m = golden_memory();
    CHECK(in.len <= m.size);
    memcpy(m.base, in.data, in.len);
    struct journal *j;
    int rc = journal_open(&m, 0, &own, &j, e);
    if (rc == 0) {
        CHECK(!journal_damage(j));
        rc = check_journal(j, e);
        journal_free(j);
    }
    if (rc == 0)
        encode_journal(out);
    free(m.base);
    return rc;
}

static const struct sample samples[] = {
    {"segment_raw.bin", encode_segment_raw, recode_segment, false},
    {"segment_lz4.bin", encode_segment_lz4, recode_segment, true},
    {"segment_moved.bin", encode_segment_moved, recode_segment, false},
    {"fence.bin", encode_fence, recode_segment, false},
    {"run_index.bin", encode_run_index, recode_run_index, false},
    {"run_page.bin", encode_run_page, recode_run_page, false},
    {"run_shares.bin", encode_run_shares, recode_run_shares, false},
    {"manifest.json", encode_manifest, recode_manifest, false},
    {"pin_claim.json", encode_pin_claim, recode_pin_claim, false},
    {"pin_root.json", encode_pin_root, recode_pin_root, false},
    {"pin_expired.json", encode_pin_expired, recode_pin_root, false},
    {"volume.json", encode_volume, recode_volume, false},
    {"snapshot.json", encode_snapshot, recode_snapshot, false},
    {"snapshot_deleted.json", encode_tombstone, recode_snapshot, false},
    {"node.json", encode_node, recode_node, false},
    {"pool.json", encode_pool, recode_pool, false},
    {"journal.bin", encode_journal, recode_journal, false},
};
