/* Pages of map runs: entries as deltas, with restart points.
 *
 *   0   u32  CRC32C of bytes 4..4095
 *   4   u32  magic "PBMP"
 *   8   u8   version 1
 *   9   u8   cipher, 0
 *   10  u16  entries, 1..RUN_PAGE_ENTRIES_MAX
 *   12  u16  end of the entries in the page
 *   14  u16  0
 *   16  u32  key id, 0
 *   20  u64  first sector
 *   28       entries, then zeros
 *   4096-2r  restart points: u16 offset of every 16th entry, the first included
 *
 * An entry is a byte of flags, then what they do not say: the gap behind the last entry, count, the
 * object's number in the run's usage table, skip, offset, stored lengths of frames. At a restart
 * nothing is known of earlier entries, and the gap counts from the page's first sector. A 4 KiB
 * extent of a random-write volume takes about ten bytes.
 *
 * I1  Entries are in order of sector and do not overlap.
 * I2  The entry 16 i begins at restart point i. */
#include "portalbd/format/run.h"

#include "common/crc32c.h"
#include "portalbd/format/ids_internal.h"
#include "portalbd/format/wire_internal.h"

enum { MAGIC_PAGE = 0x504d4250, VERSION = 1 };
enum {
    PAGE_CRC = 0,
    PAGE_MAGIC = 4,
    PAGE_VERSION = 8,
    PAGE_CIPHER = 9,
    PAGE_ENTRIES = 10,
    PAGE_END = 12,
    PAGE_RESERVED = 14,
    PAGE_KEY = 16,
    PAGE_FIRST = 20,
    PAGE_HEADER_SIZE = 28,
};
enum {
    F_KIND = 3,          /* extent_kind */
    F_ADJACENT = 1 << 2, /* no gap */
    F_COUNT = 1 << 3,    /* count as before */
    F_REF = 1 << 4,      /* object as before */
    F_SKIP = 1 << 5,     /* skip follows */
    F_FOLLOWS = 1 << 6,  /* frames right behind the last ones in the same object; only with F_REF */
    F_RESERVED = 1 << 7,
    F_DATA_ONLY = F_REF | F_SKIP | F_FOLLOWS,
};
enum {
    RESTART_EVERY = 16,
    STORED_LEN_MIN = FRAME_HEADER_SIZE + 1,
    ENTRY_SIZE_MAX = 1 + 4 * VARINT_MAX + 1 + 2 * EXTENT_FRAMES_MAX, /* bytes */
    NO_REF = UINT32_MAX,
};
_Static_assert(FRAME_SIZE_MAX - STORED_LEN_MIN < 1 << 14, "a stored length is two bytes at most");
_Static_assert(PAGE_HEADER_SIZE + ENTRY_SIZE_MAX + 2 <= RUN_PAGE_SIZE, "an entry fits a page");

static size_t restart_count(size_t entries) {
    return DIV_UP(entries, RESTART_EVERY);
}

/* --- building --- */

void run_page_start(struct run_page_builder *b, uint8_t *page) {
    memset(page, 0, RUN_PAGE_SIZE);
    *b = (struct run_page_builder){.page = page, .len = PAGE_HEADER_SIZE};
}

static void check_entry(const struct map_entry *m) {
    CHECK(m->kind <= EXTENT_HOLE);
    CHECK(m->count >= 1 && m->count <= SECTORS_MAX && m->sector <= SECTORS_MAX - m->count);
    if (m->kind != EXTENT_DATA)
        return;
    CHECK(m->skip < FRAME_SECTORS_MAX);
    CHECK(m->skip + m->count <= EXTENT_SECTORS_MAX);
    CHECK(m->len_count == extent_frames(m->skip + m->count));
    CHECK(m->ref.kind == OBJ_LOG || m->ref.kind == OBJ_MOVED);
    CHECK(m->off >= SEGMENT_HEADER_SIZE && m->off < SEGMENT_SIZE_MAX);
    CHECK(map_entry_stored_len(m) <= SEGMENT_SIZE_MAX - m->off);
}

static size_t encode_entry(const struct run_page_builder *b, bool restart,
                           const struct map_entry *m, uint32_t ref_index, uint8_t *out) {
    uint64_t base = restart ? b->first_sector : b->next_sector;
    uint8_t flags = m->kind;
    uint8_t *p = out + 1;
    if (m->sector == base)
        flags |= F_ADJACENT;
    else
        p += varint_put(p, m->sector - base);
    if (!restart && m->count == b->last_count)
        flags |= F_COUNT;
    else
        p += varint_put(p, m->count);
    if (m->kind == EXTENT_DATA) {
        bool same_ref = !restart && ref_index == b->last_ref;
        bool follows = same_ref && m->off == b->last_end;
        if (same_ref)
            flags |= F_REF;
        else
            p += varint_put(p, ref_index);
        if (m->skip != 0) {
            flags |= F_SKIP;
            *p++ = m->skip;
        }
        if (follows)
            flags |= F_FOLLOWS;
        else
            p += varint_put(p, m->off);
        for (size_t i = 0; i < m->len_count; i++) {
            CHECK(m->lens[i] >= STORED_LEN_MIN && m->lens[i] <= FRAME_SIZE_MAX);
            p += varint_put(p, (uint64_t)(m->lens[i] - STORED_LEN_MIN));
        }
    }
    out[0] = flags;
    return (size_t)(p - out);
}

bool run_page_add(struct run_page_builder *b, const struct map_entry *m, uint32_t ref_index) {
    check_entry(m);
    CHECK(b->entries == 0 || m->sector >= b->next_sector);
    if (b->entries == RUN_PAGE_ENTRIES_MAX)
        return false;
    if (b->entries == 0)
        b->first_sector = m->sector;
    bool restart = b->entries % RESTART_EVERY == 0;
    uint8_t bytes[ENTRY_SIZE_MAX];
    size_t len = encode_entry(b, restart, m, ref_index, bytes);
    CHECK(len <= sizeof bytes);
    if (b->len + len + 2 * restart_count(b->entries + 1) > RUN_PAGE_SIZE) {
        CHECK(b->entries > 0);
        return false;
    }
    if (restart) {
        b->restarts[b->entries / RESTART_EVERY] = (uint16_t)b->len;
        b->last_ref = NO_REF; /* also when this entry has no object: the reader forgets too */
    }
    memcpy(b->page + b->len, bytes, len);
    b->len += len;
    b->entries++;
    b->next_sector = m->sector + m->count;
    b->last_count = m->count;
    if (m->kind == EXTENT_DATA) {
        b->last_ref = ref_index;
        b->last_end = m->off + map_entry_stored_len(m);
    }
    return true;
}

void run_page_finish(struct run_page_builder *b) {
    CHECK(b->entries >= 1);
    CHECK(b->len + 2 * restart_count(b->entries) <= RUN_PAGE_SIZE);
    size_t restarts = restart_count(b->entries);
    uint8_t *at = b->page + RUN_PAGE_SIZE - 2 * restarts;
    for (size_t i = 0; i < restarts; i++)
        store_le16(at + 2 * i, b->restarts[i]);
    store_le32(b->page + PAGE_MAGIC, MAGIC_PAGE);
    b->page[PAGE_VERSION] = VERSION;
    store_le16(b->page + PAGE_ENTRIES, (uint16_t)b->entries);
    store_le16(b->page + PAGE_END, (uint16_t)b->len);
    store_le64(b->page + PAGE_FIRST, b->first_sector);
    store_le32(b->page + PAGE_CRC, crc32c(view_of(b->page + 4, RUN_PAGE_SIZE - 4)));
}

/* --- walking --- */

static uint64_t page_first_sector(const struct run_page_cursor *c) {
    return load_le64(c->page.data + PAGE_FIRST);
}

static size_t restart_off(const struct run_page_cursor *c, size_t i) {
    size_t at = RUN_PAGE_SIZE - 2 * (restart_count(c->count) - i);
    return load_le16(c->page.data + at);
}

static void cursor_forget(struct run_page_cursor *c) {
    c->last_count = 0;
    c->last_ref = NO_REF;
    c->last_end = 0;
}

static void cursor_jump(struct run_page_cursor *c, size_t restart) {
    c->pos = restart_off(c, restart);
    c->index = restart * RESTART_EVERY;
    c->next_sector = page_first_sector(c);
    c->pending = false;
    cursor_forget(c);
}

int run_page_open(struct run_page_cursor *c, const struct run_index *x, struct view page,
                  struct err *e) {
    if (page.len != RUN_PAGE_SIZE)
        return err_set(e, -ERR_CORRUPT, "map page: %zu bytes instead of %d", page.len,
                       RUN_PAGE_SIZE);
    const uint8_t *p = page.data;
    if (load_le32(p + PAGE_MAGIC) != MAGIC_PAGE)
        return err_set(e, -ERR_CORRUPT, "map page: these bytes are none");
    if (load_le32(p + PAGE_CRC) != crc32c(view_of(p + 4, RUN_PAGE_SIZE - 4)))
        return err_set(e, -ERR_CORRUPT, "map page: the checksum does not match");
    if (p[PAGE_VERSION] != VERSION || p[PAGE_CIPHER] != 0)
        return err_set(e, -ERR_UNSUPPORTED,
                       "map page: version %u, cipher %u were written by a newer portalbd",
                       p[PAGE_VERSION], p[PAGE_CIPHER]);
    *c = (struct run_page_cursor){
        .page = page,
        .x = x,
        .count = load_le16(p + PAGE_ENTRIES),
        .end = load_le16(p + PAGE_END),
    };
    size_t restarts = restart_count(c->count);
    if (c->count < 1 || c->count > RUN_PAGE_ENTRIES_MAX || c->end <= PAGE_HEADER_SIZE ||
        c->end + 2 * restarts > RUN_PAGE_SIZE || load_le16(p + PAGE_RESERVED) != 0 ||
        load_le32(p + PAGE_KEY) != 0 || page_first_sector(c) >= SECTORS_MAX)
        return err_set(e, -ERR_CORRUPT, "map page: %zu entries that end at %zu", c->count, c->end);
    for (size_t i = 0; i < restarts; i++) {
        size_t off = restart_off(c, i);
        if (i == 0 ? off != PAGE_HEADER_SIZE : off <= restart_off(c, i - 1) || off >= c->end)
            return err_set(e, -ERR_CORRUPT, "map page: restart point %zu is at %zu", i, off);
    }
    cursor_jump(c, 0);
    return 0;
}

static struct reader entries_reader(const struct run_page_cursor *c) {
    struct reader r = reader_of(view_part(c->page, 0, c->end));
    r.pos = c->pos;
    return r;
}

/* What a DATA entry has behind sector and count. */
static bool decode_data(struct run_page_cursor *c, struct reader *r, uint8_t flags,
                        struct map_entry *m) {
    uint64_t ref = flags & F_REF ? c->last_ref : reader_varint_max(r, RUN_USAGE_MAX);
    m->skip = flags & F_SKIP ? reader_u8(r) : 0;
    uint64_t off = flags & F_FOLLOWS ? c->last_end : reader_varint_max(r, SEGMENT_SIZE_MAX);
    /* The usage table is large and looked at in no order: walks of whole runs leave it alone. */
    if (r->bad || ref >= c->x->usage_count ||
        (!c->numbers_only && run_usage_is_free(&c->x->usage[ref])) || off < SEGMENT_HEADER_SIZE ||
        m->skip >= FRAME_SECTORS_MAX || (flags & F_SKIP && m->skip == 0) ||
        (flags & F_FOLLOWS && !(flags & F_REF)) ||
        m->count > (uint64_t)EXTENT_SECTORS_MAX - m->skip)
        return false;
    size_t frames = extent_frames(m->skip + m->count);
    CHECK(frames <= EXTENT_FRAMES_MAX);
    uint64_t end = off;
    for (size_t i = 0; i < frames; i++) {
        uint64_t len = reader_varint_max(r, FRAME_SIZE_MAX - STORED_LEN_MIN) + STORED_LEN_MIN;
        c->lens[i] = (uint16_t)len;
        end += len;
    }
    if (r->bad || end > SEGMENT_SIZE_MAX)
        return false;
    m->off = (uint32_t)off;
    if (!c->numbers_only)
        m->ref = c->x->usage[ref].ref;
    m->lens = c->lens;
    m->len_count = (uint16_t)frames;
    c->last_ref = (uint32_t)ref;
    c->last_end = (uint32_t)end;
    return true;
}

/* Decodes the entry at pos into c->entry and moves behind it. */
static int decode_entry(struct run_page_cursor *c, struct err *e) {
    uint64_t base = c->next_sector;
    if (c->index % RESTART_EVERY == 0) {
        if (c->pos != restart_off(c, c->index / RESTART_EVERY))
            return err_set(e, -ERR_CORRUPT, "map page: entry %zu is not at its restart point",
                           c->index);
        base = page_first_sector(c);
        cursor_forget(c);
    }
    struct reader r = entries_reader(c);
    struct map_entry m = {0};
    uint8_t flags = reader_u8(&r);
    m.kind = flags & F_KIND;
    uint64_t gap = flags & F_ADJACENT ? 0 : reader_varint_max(&r, SECTORS_MAX);
    m.sector = base + gap;
    m.count = flags & F_COUNT ? c->last_count : reader_varint_max(&r, SECTORS_MAX);
    bool ok = !r.bad && m.kind <= EXTENT_HOLE && !(flags & F_RESERVED) && m.count >= 1 &&
              m.sector >= c->next_sector && m.sector < SECTORS_MAX &&
              m.count <= SECTORS_MAX - m.sector;
    if (ok)
        ok = m.kind == EXTENT_DATA ? decode_data(c, &r, flags, &m) : !(flags & F_DATA_ONLY);
    if (!ok || (c->index == 0 && gap != 0))
        return err_set(e, -ERR_CORRUPT, "map page: entry %zu is damaged", c->index);

    c->entry = m;
    c->pos = r.pos;
    c->index++;
    c->next_sector = m.sector + m.count;
    c->last_count = m.count;
    CHECK(c->pos <= c->end);
    return 0;
}

int run_page_next(struct run_page_cursor *c, struct err *e) {
    if (c->pending) {
        c->pending = false;
        return 1;
    }
    if (c->index == c->count) {
        if (c->pos != c->end)
            return err_set(e, -ERR_CORRUPT, "map page: bytes behind the last entry");
        return 0;
    }
    int rc = decode_entry(c, e);
    return rc < 0 ? rc : 1;
}

/* The sector of the entry at a restart point; false when it is damaged. */
static bool restart_sector(const struct run_page_cursor *c, size_t i, uint64_t *ret) {
    struct reader r = reader_of(view_part(c->page, 0, c->end));
    r.pos = restart_off(c, i);
    uint8_t flags = reader_u8(&r);
    uint64_t gap = flags & F_ADJACENT ? 0 : reader_varint_max(&r, SECTORS_MAX);
    *ret = page_first_sector(c) + gap;
    return !r.bad;
}

int run_page_seek(struct run_page_cursor *c, uint64_t sector, struct err *e) {
    size_t low = 0, high = restart_count(c->count); /* the answer is in [low, high) */
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        uint64_t first;
        if (!restart_sector(c, middle, &first))
            return err_set(e, -ERR_CORRUPT, "map page: restart point %zu is damaged", middle);
        if (first <= sector)
            low = middle;
        else
            high = middle;
    }
    cursor_jump(c, low);
    int rc;
    while ((rc = run_page_next(c, e)) > 0) {
        if (c->next_sector > sector) {
            c->pending = true;
            return 0;
        }
    }
    return rc;
}
