/* Segments: header, extent table, footer. docs/format.md has the layout; the offsets below are it.
 *
 * Header and footer begin with the same identity, so that recovery, which reads the end of an
 * object, never needs its start. The table holds no offsets: frames tile the object in the order of
 * the extents, so a table is either consistent or damaged.
 *
 * I1  Frames tile [SEGMENT_HEADER_SIZE, table_off) exactly.
 * I2  table_off + table_len + SEGMENT_FOOTER_SIZE is the size of the object; what the table does
 *     not fill is zero, under the table's checksum.
 * I3  An object is a fence exactly when it has SEGMENT_FENCE_SIZE bytes. */
#include "portalbd/format/segment.h"

#include <stdlib.h>

#include "common/crc32c.h"
#include "portalbd/format/sha256_internal.h"
#include "portalbd/format/wire_internal.h"

enum {
    MAGIC_HEADER = 0x53444250, /* "PBDS" */
    MAGIC_FOOTER = 0x46444250, /* "PBDF" */
    VERSION = 1,
};

/* The identity: the first bytes of header and footer. */
enum {
    AT_MAGIC = 0,       /* u32 */
    AT_VERSION = 4,     /* u8 */
    AT_KIND = 5,        /* u8 */
    AT_CIPHER = 6,      /* u8, 0 */
    AT_RESERVED = 7,    /* u8, 0 */
    AT_KEY = 8,         /* u32, 0: the key's id, once there is a cipher */
    AT_FLAGS = 12,      /* u32, 0 */
    AT_VOLUME = 16,     /* 16 bytes */
    AT_EPOCH = 32,      /* u64 */
    AT_SEQ = 40,        /* u64 */
    AT_NONCE = 48,      /* 16 bytes */
    AT_JOURNAL = 64,    /* 16 bytes */
    AT_LAST_WRITE = 80, /* u64 */
    AT_SIZE = 88,
};
enum {
    HEADER_RESERVED = AT_SIZE, /* u32, 0 */
    HEADER_CRC = 92,           /* u32, of all before it */
};
_Static_assert(HEADER_CRC + 4 == SEGMENT_HEADER_SIZE, "the checksum ends the header");
enum {
    FOOTER_TABLE_OFF = AT_SIZE, /* u32 */
    FOOTER_TABLE_LEN = 92,      /* u32 */
    FOOTER_TABLE_CRC = 96,      /* u32 */
    FOOTER_EXTENTS = 100,       /* u32 */
    FOOTER_LENS = 104,          /* u32 */
    FOOTER_RESERVED = 108,      /* 16 bytes, 0 */
    FOOTER_CRC = 124,           /* u32, of all before it */
    SEGMENT_FOOTER_SIZE = 128,
};
enum {
    STORED_LEN_MIN =
        FRAME_HEADER_SIZE + 1, /* a frame is at least that long; lens are stored less this */
    PAD = 8,                   /* zeros that take a segment off the size of a fence */
    EXTENT_BYTES_MIN = 2,      /* of an extent in the table */
};

void segment_volume_hash(uint8_t ret[16], const struct volume_key *v) {
    uint8_t digest[SHA256_SIZE];
    sha256(digest, view_of_str(v->text));
    memcpy(ret, digest, 16);
}

void segment_table_release(struct segment_table *t) {
    free(t->extents);
    free(t->lens);
    *t = (struct segment_table){0};
}

/* --- identity --- */

static bool meta_valid(const struct segment_meta *m) {
    if (m->kind != SEGMENT_DATA && m->kind != SEGMENT_FENCE && m->kind != SEGMENT_MOVED)
        return false;
    return (m->kind == SEGMENT_MOVED) == (m->seq == 0);
}

static void encode_identity(uint8_t *out, uint32_t magic, const struct segment_meta *m) {
    CHECK(meta_valid(m));
    store_le32(out + AT_MAGIC, magic);
    out[AT_VERSION] = VERSION;
    out[AT_KIND] = m->kind;
    out[AT_CIPHER] = 0;
    out[AT_RESERVED] = 0;
    store_le32(out + AT_KEY, 0);
    store_le32(out + AT_FLAGS, 0);
    memcpy(out + AT_VOLUME, m->volume_hash, sizeof m->volume_hash);
    store_le64(out + AT_EPOCH, m->epoch);
    store_le64(out + AT_SEQ, m->seq);
    memcpy(out + AT_NONCE, m->nonce.bytes, RANDOM_ID_SIZE);
    memcpy(out + AT_JOURNAL, m->journal.bytes, RANDOM_ID_SIZE);
    store_le64(out + AT_LAST_WRITE, m->last_write);
}

/* `where` is the header or the footer; its checksum, of len bytes, is looked at first. */
static int decode_identity(const uint8_t *in, size_t crc_off, uint32_t magic, const char *where,
                           struct segment_meta *ret, struct err *e) {
    if (load_le32(in + AT_MAGIC) != magic)
        return err_set(e, -ERR_CORRUPT, "segment: there is no %s", where);
    if (crc32c(view_of(in, crc_off)) != load_le32(in + crc_off))
        return err_set(e, -ERR_CORRUPT, "segment: the %s's checksum does not match", where);
    if (in[AT_VERSION] != VERSION || in[AT_CIPHER] != 0 || load_le32(in + AT_FLAGS) != 0)
        return err_set(e, -ERR_UNSUPPORTED,
                       "segment: version %u, cipher %u, flags %x were written by a newer portalbd",
                       in[AT_VERSION], in[AT_CIPHER], load_le32(in + AT_FLAGS));
    if (in[AT_RESERVED] != 0 || load_le32(in + AT_KEY) != 0)
        return err_set(e, -ERR_CORRUPT, "segment: reserved bytes are set in the %s", where);

    struct segment_meta m = {
        .kind = in[AT_KIND],
        .epoch = load_le64(in + AT_EPOCH),
        .seq = load_le64(in + AT_SEQ),
        .last_write = load_le64(in + AT_LAST_WRITE),
    };
    memcpy(m.volume_hash, in + AT_VOLUME, sizeof m.volume_hash);
    memcpy(m.nonce.bytes, in + AT_NONCE, RANDOM_ID_SIZE);
    memcpy(m.journal.bytes, in + AT_JOURNAL, RANDOM_ID_SIZE);
    if (!meta_valid(&m))
        return err_set(e, -ERR_CORRUPT, "segment: kind %u with seq %llu", m.kind,
                       (unsigned long long)m.seq);
    *ret = m;
    return 0;
}

void segment_encode_header(uint8_t out[SEGMENT_HEADER_SIZE], const struct segment_meta *m) {
    encode_identity(out, MAGIC_HEADER, m);
    store_le32(out + HEADER_RESERVED, 0);
    store_le32(out + HEADER_CRC, crc32c(view_of(out, HEADER_CRC)));
}

int segment_decode_header(struct view head, struct segment_meta *ret, struct err *e) {
    if (head.len < SEGMENT_HEADER_SIZE)
        return err_set(e, -ERR_CORRUPT, "segment: %zu bytes hold no header", head.len);
    struct segment_meta m;
    int rc = decode_identity(head.data, HEADER_CRC, MAGIC_HEADER, "header", &m, e);
    if (rc < 0)
        return rc;
    if (load_le32(head.data + HEADER_RESERVED) != 0)
        return err_set(e, -ERR_CORRUPT, "segment: reserved bytes are set in the header");
    *ret = m;
    return 0;
}

static void encode_footer(uint8_t out[SEGMENT_FOOTER_SIZE], const struct segment_meta *m,
                          size_t table_off, struct view table, const struct segment_table *t) {
    encode_identity(out, MAGIC_FOOTER, m);
    store_le32(out + FOOTER_TABLE_OFF, (uint32_t)table_off);
    store_le32(out + FOOTER_TABLE_LEN, (uint32_t)table.len);
    store_le32(out + FOOTER_TABLE_CRC, crc32c(table));
    store_le32(out + FOOTER_EXTENTS, (uint32_t)t->extent_count);
    store_le32(out + FOOTER_LENS, (uint32_t)t->len_count);
    memset(out + FOOTER_RESERVED, 0, FOOTER_CRC - FOOTER_RESERVED);
    store_le32(out + FOOTER_CRC, crc32c(view_of(out, FOOTER_CRC)));
}

/* --- encoding --- */

/* Appends one extent; returns the offset behind its frames. */
static size_t encode_extent(struct buf *out, const struct segment_extent *x,
                            const struct segment_table *t, size_t *len_index, size_t off,
                            uint64_t *prev_end) {
    CHECK(x->kind <= EXTENT_HOLE);
    CHECK(x->count >= 1 && x->count <= SECTORS_MAX && x->sector <= SECTORS_MAX - x->count);
    varint_append(out, zigzag((int64_t)(x->sector - *prev_end)));
    varint_append(out, x->count << 2 | x->kind);
    *prev_end = x->sector + x->count;
    if (x->kind != EXTENT_DATA)
        return off;

    CHECK(x->count <= EXTENT_SECTORS_MAX);
    CHECK(x->off == off);
    CHECK(x->first_len == *len_index);
    size_t frames = extent_frames(x->count);
    CHECK(frames <= t->len_count - *len_index);
    for (size_t i = 0; i < frames; i++) {
        uint16_t len = t->lens[(*len_index)++];
        CHECK(len >= STORED_LEN_MIN && len <= FRAME_SIZE_MAX);
        varint_append(out, (uint64_t)(len - STORED_LEN_MIN));
        off += len;
    }
    return off;
}

void segment_encode_tail(struct buf *out, const struct segment_meta *m,
                         const struct segment_table *t, size_t body_len) {
    CHECK(m->kind != SEGMENT_FENCE);
    CHECK(body_len >= SEGMENT_HEADER_SIZE);
    CHECK(t->extent_count <= SEGMENT_EXTENTS_MAX);
    size_t start = out->len;
    size_t off = SEGMENT_HEADER_SIZE;
    size_t len_index = 0;
    uint64_t prev_end = 0;
    for (size_t i = 0; i < t->extent_count; i++)
        off = encode_extent(out, &t->extents[i], t, &len_index, off, &prev_end);
    CHECK(off == body_len);
    CHECK(len_index == t->len_count);
    if (body_len + (out->len - start) + SEGMENT_FOOTER_SIZE == SEGMENT_FENCE_SIZE)
        memset(buf_extend(out, PAD), 0, PAD);

    size_t table_len = out->len - start;
    CHECK(body_len + table_len + SEGMENT_FOOTER_SIZE <= SEGMENT_SIZE_MAX);
    uint8_t *footer = buf_extend(out, SEGMENT_FOOTER_SIZE);
    encode_footer(footer, m, body_len, view_of(out->data + start, table_len), t);
}

void segment_encode_fence(uint8_t out[SEGMENT_FENCE_SIZE], const struct segment_meta *m) {
    CHECK(m->kind == SEGMENT_FENCE);
    const struct segment_table empty = {0};
    size_t table_len = SEGMENT_FENCE_SIZE - SEGMENT_HEADER_SIZE - SEGMENT_FOOTER_SIZE;
    segment_encode_header(out, m);
    uint8_t *table = out + SEGMENT_HEADER_SIZE;
    memset(table, 0, table_len);
    encode_footer(table + table_len, m, SEGMENT_HEADER_SIZE, view_of(table, table_len), &empty);
}

/* --- decoding --- */

struct footer {
    struct segment_meta meta;
    size_t table_off;
    size_t table_len;
    uint32_t table_crc;
    size_t extent_count;
    size_t len_count;
};

static int decode_footer(const uint8_t *in, uint64_t object_size, struct footer *ret,
                         struct err *e) {
    int rc = decode_identity(in, FOOTER_CRC, MAGIC_FOOTER, "footer", &ret->meta, e);
    if (rc < 0)
        return rc;
    ret->table_off = load_le32(in + FOOTER_TABLE_OFF);
    ret->table_len = load_le32(in + FOOTER_TABLE_LEN);
    ret->table_crc = load_le32(in + FOOTER_TABLE_CRC);
    ret->extent_count = load_le32(in + FOOTER_EXTENTS);
    ret->len_count = load_le32(in + FOOTER_LENS);
    if (!bytes_are_zero(in + FOOTER_RESERVED, FOOTER_CRC - FOOTER_RESERVED))
        return err_set(e, -ERR_CORRUPT, "segment: reserved bytes are set in the footer");
    if (ret->table_off < SEGMENT_HEADER_SIZE ||
        (uint64_t)ret->table_off + ret->table_len + SEGMENT_FOOTER_SIZE != object_size)
        return err_set(e, -ERR_CORRUPT, "segment: table at %zu+%zu in an object of %llu bytes",
                       ret->table_off, ret->table_len, (unsigned long long)object_size);
    if (ret->extent_count > SEGMENT_EXTENTS_MAX ||
        ret->extent_count > ret->table_len / EXTENT_BYTES_MIN || ret->len_count > ret->table_len)
        return err_set(e, -ERR_CORRUPT, "segment: %zu extents, %zu frames in a table of %zu bytes",
                       ret->extent_count, ret->len_count, ret->table_len);
    bool fence = ret->meta.kind == SEGMENT_FENCE;
    if (fence != (object_size == SEGMENT_FENCE_SIZE))
        return err_set(e, -ERR_CORRUPT, "segment: kind %u in an object of %llu bytes",
                       ret->meta.kind, (unsigned long long)object_size);
    if (fence && (ret->extent_count != 0 || ret->table_off != SEGMENT_HEADER_SIZE))
        return err_set(e, -ERR_CORRUPT, "segment: a fence with extents");
    return 0;
}

/* What is left of the extents while the table is read. */
struct table_walk {
    struct reader in;
    size_t off;
    size_t len_index;
    uint64_t prev_end;
};

static bool decode_extent(struct table_walk *w, struct segment_table *t, struct segment_extent *x) {
    struct reader *in = &w->in;
    uint64_t sector = w->prev_end + (uint64_t)unzigzag(reader_varint(in));
    uint64_t count_kind = reader_varint_max(in, SECTORS_MAX << 2 | 3);
    uint64_t count = count_kind >> 2;
    uint8_t kind = count_kind & 3;
    if (in->bad || kind > EXTENT_HOLE || count < 1 || count > SECTORS_MAX ||
        sector > SECTORS_MAX - count)
        return false;
    *x = (struct segment_extent){.sector = sector, .count = count, .kind = kind};
    w->prev_end = sector + count;
    if (kind != EXTENT_DATA)
        return true;

    if (count > EXTENT_SECTORS_MAX)
        return false;
    size_t frames = extent_frames(count);
    if (frames > t->len_count - w->len_index)
        return false;
    x->off = (uint32_t)w->off;
    x->first_len = (uint32_t)w->len_index;
    for (size_t i = 0; i < frames; i++) {
        uint64_t len = reader_varint_max(in, FRAME_SIZE_MAX - STORED_LEN_MIN) + STORED_LEN_MIN;
        t->lens[w->len_index++] = (uint16_t)len;
        w->off += len;
    }
    return !in->bad && w->off <= SEGMENT_SIZE_MAX;
}

static int decode_table(struct view in, const struct footer *f, struct segment_table *ret,
                        struct err *e) {
    if (crc32c(in) != f->table_crc)
        return err_set(e, -ERR_CORRUPT, "segment: the table's checksum does not match");
    CLEANUP(segment_table_release)
    struct segment_table t = {
        .extents = xcalloc(MAX(f->extent_count, 1), sizeof *t.extents),
        .lens = xcalloc(MAX(f->len_count, 1), sizeof *t.lens),
        .extent_count = f->extent_count,
        .len_count = f->len_count,
    };
    struct table_walk w = {.in = reader_of(in), .off = SEGMENT_HEADER_SIZE};
    for (size_t i = 0; i < t.extent_count; i++)
        if (!decode_extent(&w, &t, &t.extents[i]))
            return err_set(e, -ERR_CORRUPT, "segment: extent %zu of the table is damaged", i);
    if (w.off != f->table_off || w.len_index != t.len_count)
        return err_set(e, -ERR_CORRUPT, "segment: the table does not match the frames");
    if (!bytes_are_zero(in.data + w.in.pos, in.len - w.in.pos))
        return err_set(e, -ERR_CORRUPT, "segment: bytes behind the table");
    *ret = t;
    t = (struct segment_table){0};
    return 0;
}

/* When the whole object is at hand, its header must say the same as its footer. */
static int check_header(struct view object, const struct segment_meta *m, struct err *e) {
    struct segment_meta head;
    int rc = segment_decode_header(object, &head, e);
    if (rc < 0)
        return rc;
    uint8_t a[SEGMENT_HEADER_SIZE], b[SEGMENT_HEADER_SIZE];
    segment_encode_header(a, &head);
    segment_encode_header(b, m);
    if (memcmp(a, b, sizeof a) != 0)
        return err_set(e, -ERR_CORRUPT, "segment: header and footer differ");
    return 0;
}

int segment_decode_tail(struct view tail, uint64_t object_size, struct segment_meta *ret_meta,
                        struct segment_table *ret_table, size_t *ret_need, struct err *e) {
    if (object_size < SEGMENT_HEADER_SIZE + SEGMENT_FOOTER_SIZE || object_size > SEGMENT_SIZE_MAX ||
        tail.len > object_size)
        return err_set(e, -ERR_CORRUPT, "segment: an object of %llu bytes is none",
                       (unsigned long long)object_size);
    if (tail.len < SEGMENT_FOOTER_SIZE) {
        *ret_need = (size_t)MIN(object_size, SEGMENT_TAIL_GUESS);
        return err_set(e, -ERR_OVERLOAD, "segment: the footer is wanted");
    }
    struct footer f;
    int rc = decode_footer(tail.data + tail.len - SEGMENT_FOOTER_SIZE, object_size, &f, e);
    if (rc < 0)
        return rc;
    size_t need = f.table_len + SEGMENT_FOOTER_SIZE;
    if (tail.len < need) {
        *ret_need = need;
        return err_set(e, -ERR_OVERLOAD, "segment: the whole table is wanted");
    }
    if (tail.len == object_size) {
        rc = check_header(tail, &f.meta, e);
        if (rc < 0)
            return rc;
    }
    struct segment_table t;
    rc = decode_table(view_part(tail, tail.len - need, f.table_len), &f, &t, e);
    if (rc < 0)
        return rc;
    *ret_meta = f.meta;
    *ret_table = t;
    return 0;
}
