/* Index objects of map runs. docs/format.md has the layout.
 *
 *   header (64 bytes) | body: volume keys, usage table, parts with the first sectors of their pages
 *
 * I1  Parts, and pages within a part, are in order of sector and do not overlap.
 * I2  What a decoder allocates is bounded by the size of the object that it was given. */
#include <stdlib.h>

#include "common/crc32c.h"
#include "portalbd/format/ids_internal.h"
#include "portalbd/format/run.h"
#include "portalbd/format/wire_internal.h"

enum { MAGIC_INDEX = 0x494d4250, VERSION = 1 }; /* "PBMI" */
enum {
    INDEX_MAGIC = 0,     /* u32 */
    INDEX_VERSION = 4,   /* u8 */
    INDEX_CIPHER = 5,    /* u8, 0 */
    INDEX_RESERVED = 6,  /* u16, 0 */
    INDEX_KEY = 8,       /* u32, 0 */
    INDEX_FLAGS = 12,    /* u32, 0 */
    INDEX_NONCE = 16,    /* 16 bytes */
    INDEX_ENTRIES = 32,  /* u64 */
    INDEX_VOLUMES = 40,  /* u32 */
    INDEX_PARTS = 44,    /* u32 */
    INDEX_USAGE = 48,    /* u32 */
    INDEX_BODY_LEN = 52, /* u32 */
    INDEX_BODY_CRC = 56, /* u32 */
    INDEX_CRC = 60,      /* u32, of all before it */
    INDEX_HEADER_SIZE = 64,
};
enum {
    USAGE_BYTES_MIN = 1, /* of a usage entry in the body */
    PART_BYTES_MIN = 23, /* of a part */
    PART_PAGES_MAX = RUN_PART_SIZE_MAX / RUN_PAGE_SIZE,
    USAGE_FREE = 255, /* in place of the kind */
};

void run_index_release(struct run_index *x) {
    for (size_t i = 0; i < x->part_count; i++) {
        free(x->parts[i].fences);
        free(x->parts[i].fences_wide);
    }
    free(x->volumes);
    free(x->parts);
    free(x->usage);
    *x = (struct run_index){0};
}

/* Room for the fences, and then one after the other. */
static void fences_alloc(struct run_part *p) {
    CHECK(!p->fences && !p->fences_wide);
    if (p->page_count <= 1)
        return;
    if (p->last_sector - p->first_sector <= UINT32_MAX)
        p->fences = xcalloc(p->page_count - 1, sizeof *p->fences);
    else
        p->fences_wide = xcalloc(p->page_count - 1, sizeof *p->fences_wide);
}

static void fence_set(struct run_part *p, uint32_t page, uint64_t first_sector) {
    CHECK(page >= 1 && page < p->page_count);
    CHECK(first_sector > p->first_sector && first_sector <= p->last_sector);
    if (p->fences)
        p->fences[page - 1] = (uint32_t)(first_sector - p->first_sector);
    else
        p->fences_wide[page - 1] = first_sector - p->first_sector;
}

void run_part_set_fences(struct run_part *p, const uint64_t *page_first) {
    CHECK(page_first[0] == p->first_sector);
    fences_alloc(p);
    for (uint32_t i = 1; i < p->page_count; i++)
        fence_set(p, i, page_first[i]);
}

/* Does what it counts fit what it holds? */
static bool part_counts_valid(const struct run_part *p) {
    return p->entries >= p->page_count &&
           p->entries <= (uint64_t)p->page_count * RUN_PAGE_ENTRIES_MAX &&
           p->sectors >= p->entries && p->sectors <= p->last_sector - p->first_sector + 1;
}

/* --- encoding --- */

static void encode_usage(struct buf *out, const struct run_index *x) {
    uint64_t last_seq = 0;
    for (size_t i = 0; i < x->usage_count; i++) {
        const struct run_usage *u = &x->usage[i];
        uint8_t kind = run_usage_is_free(u) ? USAGE_FREE : u->ref.kind;
        if (kind == USAGE_FREE) {
            buf_append(out, &kind, 1);
            continue;
        }
        CHECK(obj_ref_valid(&u->ref) && u->ref.kind != OBJ_MAP);
        CHECK(u->ref.volume < x->volume_count && u->bytes <= RUN_USAGE_BYTES_MAX);
        buf_append(out, &kind, 1);
        varint_append(out, u->ref.volume);
        if (kind == OBJ_LOG) {
            varint_append(out, zigzag((int64_t)(u->ref.seq - last_seq)));
            last_seq = u->ref.seq;
        } else {
            buf_append(out, u->ref.id.bytes, RANDOM_ID_SIZE);
        }
        varint_append(out, u->bytes);
    }
}

static void encode_parts(struct buf *out, const struct run_index *x) {
    uint64_t next = 0;
    for (size_t i = 0; i < x->part_count; i++) {
        const struct run_part *p = &x->parts[i];
        CHECK(obj_ref_valid(&p->ref) && p->ref.kind == OBJ_MAP && p->ref.volume < x->volume_count);
        CHECK(p->page_count >= 1 && p->page_count <= PART_PAGES_MAX);
        CHECK(p->first_sector >= next && p->last_sector >= p->first_sector);
        CHECK(p->last_sector < SECTORS_MAX && p->shares_len <= RUN_SHARES_SIZE_MAX);
        CHECK(part_counts_valid(p));
        varint_append(out, p->ref.volume);
        buf_append(out, p->ref.id.bytes, RANDOM_ID_SIZE);
        varint_append(out, p->page_count);
        varint_append(out, p->entries);
        varint_append(out, p->sectors);
        varint_append(out, p->shares_len);
        varint_append(out, p->first_sector - next);
        varint_append(out, p->last_sector - p->first_sector);
        for (uint32_t j = 1; j < p->page_count; j++) {
            uint64_t first = run_part_page_first(p, j), before = run_part_page_first(p, j - 1);
            CHECK(first > before && first <= p->last_sector);
            varint_append(out, first - before);
        }
        next = p->last_sector + 1;
    }
}

static void encode_header(uint8_t *out, const struct run_index *x, struct view body) {
    store_le32(out + INDEX_MAGIC, MAGIC_INDEX);
    out[INDEX_VERSION] = VERSION;
    out[INDEX_CIPHER] = 0;
    store_le16(out + INDEX_RESERVED, 0);
    store_le32(out + INDEX_KEY, 0);
    store_le32(out + INDEX_FLAGS, 0);
    memcpy(out + INDEX_NONCE, x->nonce.bytes, RANDOM_ID_SIZE);
    store_le64(out + INDEX_ENTRIES, x->entry_count);
    store_le32(out + INDEX_VOLUMES, (uint32_t)x->volume_count);
    store_le32(out + INDEX_PARTS, (uint32_t)x->part_count);
    store_le32(out + INDEX_USAGE, (uint32_t)x->usage_count);
    store_le32(out + INDEX_BODY_LEN, (uint32_t)body.len);
    store_le32(out + INDEX_BODY_CRC, crc32c(body));
    store_le32(out + INDEX_CRC, crc32c(view_of(out, INDEX_CRC)));
}

int run_index_encode(struct buf *out, const struct run_index *x, struct err *e) {
    CHECK(x->volume_count <= RUN_VOLUMES_MAX);
    CHECK(x->part_count <= RUN_PARTS_MAX);
    CHECK(x->usage_count <= RUN_USAGE_MAX);
    size_t start = out->len;
    buf_extend(out, INDEX_HEADER_SIZE);
    for (size_t i = 0; i < x->volume_count; i++) {
        CHECK(volume_key_valid(x->volumes[i].text, ID_VOLUME));
        uint8_t len = (uint8_t)strlen(x->volumes[i].text);
        buf_append(out, &len, 1);
        buf_append(out, x->volumes[i].text, len);
    }
    encode_usage(out, x);
    encode_parts(out, x);
    size_t size = out->len - start;
    if (size > RUN_INDEX_SIZE_MAX) {
        out->len = start;
        return err_set(e, -ERR_OVERLOAD, "map run: an index of %zu bytes is too large", size);
    }
    struct view body = view_of(out->data + start + INDEX_HEADER_SIZE, size - INDEX_HEADER_SIZE);
    encode_header(out->data + start, x, body);
    return 0;
}

/* --- decoding --- */

static bool decode_volumes(struct reader *r, struct run_index *x) {
    for (size_t i = 0; i < x->volume_count; i++) {
        uint8_t len = reader_u8(r);
        const uint8_t *text = len < ID_MAX ? reader_bytes(r, len) : NULL;
        if (!text)
            return false;
        memcpy(x->volumes[i].text, text, len);
        if (strlen(x->volumes[i].text) != len || !volume_key_valid(x->volumes[i].text, ID_VOLUME))
            return false;
        for (size_t j = 0; j < i; j++)
            if (volume_key_equal(&x->volumes[i], &x->volumes[j]))
                return false;
    }
    return true;
}

static bool decode_volume_index(struct reader *r, const struct run_index *x, uint16_t *ret) {
    uint64_t v = reader_varint_max(r, RUN_VOLUMES_MAX);
    *ret = (uint16_t)v;
    return !r->bad && v < x->volume_count;
}

static bool decode_usage(struct reader *r, struct run_index *x) {
    uint64_t last_seq = 0;
    for (size_t i = 0; i < x->usage_count; i++) {
        struct run_usage *u = &x->usage[i];
        uint8_t kind = reader_u8(r);
        if (kind == USAGE_FREE)
            continue;
        u->ref.kind = kind;
        if (kind > OBJ_MOVED || !decode_volume_index(r, x, &u->ref.volume))
            return false;
        if (u->ref.kind == OBJ_LOG) {
            last_seq += (uint64_t)unzigzag(reader_varint(r));
            u->ref.seq = last_seq;
        } else {
            const uint8_t *id = reader_bytes(r, RANDOM_ID_SIZE);
            if (!id)
                return false;
            memcpy(u->ref.id.bytes, id, RANDOM_ID_SIZE);
        }
        u->bytes = reader_varint_max(r, RUN_USAGE_BYTES_MAX);
        if (r->bad || u->bytes == 0 || !obj_ref_valid(&u->ref))
            return false;
    }
    return true;
}

static bool decode_fences(struct reader *r, struct run_part *p) {
    uint64_t first = p->first_sector;
    fences_alloc(p);
    for (uint32_t j = 1; j < p->page_count; j++) {
        uint64_t step = reader_varint_max(r, SECTORS_MAX);
        first += step;
        if (step == 0 || first > p->last_sector)
            return false;
        fence_set(p, j, first);
    }
    return true;
}

static bool decode_parts(struct reader *r, struct run_index *x) {
    uint64_t next = 0;
    for (size_t i = 0; i < x->part_count; i++) {
        struct run_part *p = &x->parts[i];
        p->ref.kind = OBJ_MAP;
        if (!decode_volume_index(r, x, &p->ref.volume))
            return false;
        const uint8_t *id = reader_bytes(r, RANDOM_ID_SIZE);
        if (!id)
            return false;
        memcpy(p->ref.id.bytes, id, RANDOM_ID_SIZE);
        p->page_count = (uint32_t)reader_varint_max(r, PART_PAGES_MAX);
        p->entries = (uint32_t)reader_varint_max(r, UINT32_MAX);
        p->sectors = reader_varint_max(r, SECTORS_MAX);
        p->shares_len = (uint32_t)reader_varint_max(r, RUN_SHARES_SIZE_MAX);
        uint64_t gap = reader_varint_max(r, SECTORS_MAX);
        uint64_t span = reader_varint_max(r, SECTORS_MAX);
        p->first_sector = next + gap;
        p->last_sector = p->first_sector + span;
        if (r->bad || !obj_ref_valid(&p->ref) || p->page_count < 1 ||
            p->page_count - 1 > reader_left(r) || p->last_sector >= SECTORS_MAX ||
            !part_counts_valid(p) || !decode_fences(r, p))
            return false;
        next = p->last_sector + 1;
    }
    return true;
}

/* The counts of the header against the limits and the size of the body. */
static bool counts_valid(const struct run_index *x, size_t body_len) {
    return x->volume_count <= RUN_VOLUMES_MAX && x->part_count <= RUN_PARTS_MAX &&
           x->part_count <= body_len / PART_BYTES_MIN && x->usage_count <= RUN_USAGE_MAX &&
           x->usage_count <= body_len / USAGE_BYTES_MIN;
}

static int decode_header(struct view in, struct run_index *x, struct err *e) {
    if (in.len < INDEX_HEADER_SIZE || in.len > RUN_INDEX_SIZE_MAX)
        return err_set(e, -ERR_CORRUPT, "map run: %zu bytes hold no index", in.len);
    const uint8_t *p = in.data;
    if (load_le32(p + INDEX_MAGIC) != MAGIC_INDEX)
        return err_set(e, -ERR_CORRUPT, "map run: these bytes are no index");
    if (load_le32(p + INDEX_CRC) != crc32c(view_of(p, INDEX_CRC)))
        return err_set(e, -ERR_CORRUPT, "map run: the header's checksum does not match");
    if (p[INDEX_VERSION] != VERSION || p[INDEX_CIPHER] != 0 || load_le32(p + INDEX_FLAGS) != 0)
        return err_set(e, -ERR_UNSUPPORTED,
                       "map run: version %u, cipher %u, flags %x were written by a newer portalbd",
                       p[INDEX_VERSION], p[INDEX_CIPHER], load_le32(p + INDEX_FLAGS));
    size_t body_len = in.len - INDEX_HEADER_SIZE;
    if (load_le32(p + INDEX_BODY_LEN) != body_len || load_le32(p + INDEX_KEY) != 0 ||
        load_le16(p + INDEX_RESERVED) != 0)
        return err_set(e, -ERR_CORRUPT, "map run: an index of %u bytes in an object of %zu",
                       load_le32(p + INDEX_BODY_LEN), in.len);
    if (load_le32(p + INDEX_BODY_CRC) != crc32c(view_part(in, INDEX_HEADER_SIZE, body_len)))
        return err_set(e, -ERR_CORRUPT, "map run: the index's checksum does not match");

    memcpy(x->nonce.bytes, p + INDEX_NONCE, RANDOM_ID_SIZE);
    x->entry_count = load_le64(p + INDEX_ENTRIES);
    x->volume_count = load_le32(p + INDEX_VOLUMES);
    x->part_count = load_le32(p + INDEX_PARTS);
    x->usage_count = load_le32(p + INDEX_USAGE);
    if (!counts_valid(x, body_len)) {
        *x = (struct run_index){0}; /* nothing is allocated yet */
        return err_set(e, -ERR_CORRUPT, "map run: more is counted than %zu bytes can hold",
                       body_len);
    }
    return 0;
}

int run_index_decode(struct run_index *ret, struct view in, struct err *e) {
    CLEANUP(run_index_release) struct run_index x = {0};
    int rc = decode_header(in, &x, e);
    if (rc < 0)
        return rc;
    x.volumes = xcalloc(MAX(x.volume_count, 1), sizeof *x.volumes);
    x.parts = xcalloc(MAX(x.part_count, 1), sizeof *x.parts);
    x.usage = xcalloc(MAX(x.usage_count, 1), sizeof *x.usage);
    struct reader r = reader_of(view_part(in, INDEX_HEADER_SIZE, in.len - INDEX_HEADER_SIZE));
    if (!decode_volumes(&r, &x) || !decode_usage(&r, &x) || !decode_parts(&r, &x) || r.bad ||
        reader_left(&r) != 0)
        return err_set(e, -ERR_CORRUPT, "map run: the index is damaged at byte %zu of its body",
                       r.pos);
    uint64_t entries = 0;
    for (size_t i = 0; i < x.part_count; i++)
        entries += x.parts[i].entries;
    if (x.entry_count != entries)
        return err_set(e, -ERR_CORRUPT, "map run: %llu entries, and %llu in its parts",
                       (unsigned long long)x.entry_count, (unsigned long long)entries);
    *ret = x;
    x = (struct run_index){0};
    return 0;
}
