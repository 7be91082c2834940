/* The journal in memory that may outlive the process:
 *
 *   header page = identity, written once | head | tail      ring = records
 *   record = magic u32 | kind u8 | 0 u8[3] | number u64 | sector u64 | count u64 | data_len u32 |
 * length u32 | 0 u32 | crc u32 | data
 *
 * `length` is the distance to the next record (16-byte aligned); a PAD record fills the end of the
 * ring. crc covers the record's header before it.
 *
 * What is to survive is the death of the process, not of the node: the memory is whole whenever
 * somebody looks at it, only the order of our own stores counts. A record is written behind the
 * head, then the head is stored with release: what lies below it was complete. So data has no
 * checksum of its own: it would cost more than the copy and could only find what the memory itself
 * got wrong. Headers have one because a wrong length would be followed.
 *
 * The header page is written by journal_format alone, never at a restart: the manifest names the
 * journal by its id, and an id that changed between two kills would make the journal a stranger's.
 *
 * I1 Write numbers are contiguous. I2 tail <= head <= tail + size. I3 Bytes are touched only in
 * chunks that the memory has reserved: on a full tmpfs a store would be a SIGBUS. */
#include "portalbd/volume/journal.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "common/bytes.h"
#include "common/crc32c.h"
#include "common/mutant.h"
#include "portalbd/volume/volume.h"

enum { HEADER_MAGIC = 0x4a4c4250, RECORD_MAGIC = 0x4a445250, VERSION = 1 };
enum { KIND_PAD = 0xff, ALIGNMENT = 16, REC_CRC = 44 };
enum { /* offsets in the header page; head and tail have cache lines of their own */
       OFF_VERSION = 4,
       OFF_SIZE = 8,
       OFF_VOLUME = 16,
       OFF_ID = 32,
       OFF_CRC = 60,
       OFF_HEAD = 64,
       OFF_TAIL = 128,
};
enum {
    CHUNK = 256 * 1024,  /* bytes that are reserved at once */
    KEEP_CHUNKS_MAX = 8, /* a drained journal keeps no more: 2 MiB */
};

struct journal {
    struct journal_memory *memory; /* borrowed, or = &anonymous */
    struct journal_memory anonymous;
    uint8_t volume_hash[16];
    struct random_id id;
    const char *damage; /* NULL: none */
    uint8_t *ring;
    uint64_t size; /* of the ring */
    uint64_t head;
    uint64_t tail;
    uint64_t next_number;
    bool *reserved; /* owned; a flag for each chunk of the ring */
    uint64_t reserved_count;
    bool starved;
};

/* --- memory --- */

static bool anonymous_reserve(struct journal_memory *m, uint64_t off, uint64_t len) {
    (void)m, (void)off, (void)len;
    return true;
}

static void anonymous_punch(struct journal_memory *m, uint64_t off, uint64_t len) {
    if (madvise(m->base + off, len, MADV_DONTNEED) == 0)
        return;
#ifdef MADV_DONTNEED_LOCKED
    madvise(m->base + off, len, MADV_DONTNEED_LOCKED); /* the process has locked its memory */
#endif
}

static struct journal_memory anonymous_memory(uint64_t size) {
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    CHECK(p != MAP_FAILED);
    return (struct journal_memory){
        .base = p, .size = size, .reserve = anonymous_reserve, .punch = anonymous_punch};
}

static uint64_t chunk_len(const struct journal *j, uint64_t chunk) {
    return MIN((uint64_t)CHUNK, j->size - chunk * CHUNK);
}

/* I3, for len > 0 bytes from position pos on, which do not wrap. */
static bool reserve(struct journal *j, uint64_t pos, uint64_t len) {
    uint64_t off = pos % j->size;
    CHECK(len > 0 && len <= j->size - off);
    for (uint64_t c = off / CHUNK; c <= (off + len - 1) / CHUNK; c++) {
        if (j->reserved[c])
            continue;
        if (!j->memory->reserve(j->memory, JOURNAL_HEADER_SIZE + c * CHUNK, chunk_len(j, c)))
            return false;
        j->reserved[c] = true;
        j->reserved_count++;
    }
    return true;
}

/* Gives back all chunks of an empty ring but the one that comes next. */
static void punch_idle(struct journal *j) {
    CHECK(j->tail == j->head);
    uint64_t count = DIV_UP(j->size, (uint64_t)CHUNK), keep = j->head % j->size / CHUNK;
    for (uint64_t c = 0; c < count;) {
        uint64_t n = 0, len = 0;
        while (c + n < count && j->reserved[c + n] && c + n != keep) {
            j->reserved[c + n] = false;
            len += chunk_len(j, c + n);
            n++;
        }
        if (n > 0)
            j->memory->punch(j->memory, JOURNAL_HEADER_SIZE + c * CHUNK, len);
        j->reserved_count -= n;
        c += n + 1;
    }
    CHECK(j->reserved_count <= 1);
}

/* --- header --- */

static uint64_t *word(const struct journal *j, size_t off) {
    return (uint64_t *)(void *)(j->memory->base + off); /* page-aligned base, off a multiple of 8 */
}

static uint64_t load_word(const struct journal *j, size_t off) {
    return le64toh(__atomic_load_n(word(j, off), __ATOMIC_ACQUIRE));
}

/* The commit: everything that was written before is there once this is. Nothing that is written
 * later comes before it either: behind a freed tail records are overwritten. */
static void store_word(struct journal *j, size_t off, uint64_t value) {
    __atomic_store_n(word(j, off), htole64(value), __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static void use_ring(struct journal *j, uint64_t memory_size) {
    j->ring = j->memory->base + JOURNAL_HEADER_SIZE;
    j->size = memory_size - JOURNAL_HEADER_SIZE;
    free(j->reserved);
    j->reserved = xcalloc(DIV_UP(j->size, (uint64_t)CHUNK), sizeof *j->reserved);
    j->reserved_count = 0;
}

/* What is wrong with the header of a journal of our version; NULL: nothing, then it is in use. */
static const char *use_header(struct journal *j) {
    const uint8_t *h = j->memory->base;
    uint64_t size = load_le64(h + OFF_SIZE);
    uint64_t head = load_word(j, OFF_HEAD), tail = load_word(j, OFF_TAIL);
    struct random_id id;
    memcpy(id.bytes, h + OFF_ID, sizeof id.bytes);
    if (memcmp(h + OFF_VOLUME, j->volume_hash, sizeof j->volume_hash) != 0)
        return "it is another volume's";
    if (size < JOURNAL_SIZE_MIN || size % 4096 != 0 || size > j->memory->size)
        return "it was made with another size";
    if (tail > head || head - tail > size - JOURNAL_HEADER_SIZE || head % ALIGNMENT != 0 ||
        tail % ALIGNMENT != 0 || random_id_is_zero(&id))
        return "its header makes no sense";
    j->id = id;
    j->head = head;
    j->tail = tail;
    use_ring(j, size);
    return NULL;
}

/* 0 also when the memory is new, or damaged. */
static int read_header(struct journal *j, struct err *e) {
    const uint8_t *h = j->memory->base;
    if (load_le32(h) == 0)
        return 0;
    if (load_le32(h) != HEADER_MAGIC || load_le32(h + OFF_CRC) != crc32c(view_of(h, OFF_CRC)))
        j->damage = "its header is damaged";
    else if (h[OFF_VERSION] != VERSION)
        return err_set(e, -ERR_UNSUPPORTED,
                       "the journal has version %u, this program knows %d: use the program that "
                       "wrote it",
                       h[OFF_VERSION], VERSION);
    else
        j->damage = use_header(j);
    return 0;
}

static void write_identity(struct journal *j, const struct random_id *id) {
    uint8_t *h = j->memory->base;
    h[OFF_VERSION] = VERSION;
    store_le64(h + OFF_SIZE, JOURNAL_HEADER_SIZE + j->size);
    memcpy(h + OFF_VOLUME, j->volume_hash, sizeof j->volume_hash);
    memcpy(h + OFF_ID, id->bytes, sizeof id->bytes);
    uint8_t whole[OFF_CRC];
    memcpy(whole, h, sizeof whole);
    store_le32(whole, HEADER_MAGIC);
    store_le32(h + OFF_CRC, crc32c(view_of(whole, sizeof whole)));
}

void journal_format(struct journal *j, const struct random_id *id) {
    CHECK(!random_id_is_zero(id));
    uint32_t *magic = (uint32_t *)(void *)j->memory->base;
    /* A kill in the middle leaves memory without a magic number: new. */
    __atomic_store_n(magic, 0, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memset(j->memory->base + 4, 0, JOURNAL_HEADER_SIZE - 4);
    use_ring(j, j->memory->size);
    j->memory->punch(j->memory, JOURNAL_HEADER_SIZE, j->size);
    write_identity(j, id);
    __atomic_store_n(magic, htole32(HEADER_MAGIC), __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    j->id = *id;
    j->damage = NULL;
    j->head = j->tail = 0;
    j->next_number = 1;
}

int journal_open(struct journal_memory *m, uint64_t size, const struct volume_key *volume,
                 struct journal **ret, struct err *e) {
    size = m ? m->size : size;
    if (size < JOURNAL_SIZE_MIN || size % 4096 != 0)
        return err_set(e, -ERR_INVALID,
                       "a journal of %llu bytes: it has at least %d, and a multiple of 4096",
                       (unsigned long long)size, JOURNAL_SIZE_MIN);
    struct journal *j = NEW(struct journal);
    segment_volume_hash(j->volume_hash, volume);
    if (!m)
        j->anonymous = anonymous_memory(size);
    j->memory = m ? m : &j->anonymous;
    CHECK((uintptr_t)j->memory->base % 4096 == 0);
    use_ring(j, size);
    int rc = 0;
    if (!j->memory->reserve(j->memory, 0, JOURNAL_HEADER_SIZE))
        rc = err_set(e, -ERR_BUSY, "there is no room for the journal");
    if (rc == 0)
        rc = read_header(j, e);
    if (rc < 0) {
        journal_free(j);
        return rc;
    }
    *ret = j;
    return 0;
}

void journal_free(struct journal *j) {
    if (!j)
        return;
    if (j->memory == &j->anonymous)
        munmap(j->anonymous.base, j->anonymous.size);
    free(j->reserved);
    free(j);
}

const struct random_id *journal_id(const struct journal *j) {
    return &j->id;
}

const char *journal_damage(const struct journal *j) {
    return j->damage;
}

bool journal_outlives(const struct journal *j) {
    return j->memory != &j->anonymous;
}

/* --- records --- */

static uint8_t *at(const struct journal *j, uint64_t pos) {
    return j->ring + pos % j->size;
}

static void write_header(struct journal *j, uint64_t pos, uint8_t kind, uint64_t number,
                         uint64_t sector, uint64_t count, uint32_t data_len, uint32_t length) {
    uint8_t *h = at(j, pos);
    memset(h, 0, JOURNAL_RECORD_HEADER);
    store_le32(h, RECORD_MAGIC);
    h[4] = kind;
    store_le64(h + 8, number);
    store_le64(h + 16, sector);
    store_le64(h + 24, count);
    store_le32(h + 32, data_len);
    store_le32(h + 36, length);
    store_le32(h + REC_CRC, crc32c(view_of(h, REC_CRC)));
}

static uint64_t record_length(uint64_t data_len) {
    return ALIGN_UP(JOURNAL_RECORD_HEADER + data_len, (uint64_t)ALIGNMENT);
}

bool journal_append(struct journal *j, uint8_t kind, uint64_t sector, uint64_t count,
                    const uint8_t *data, struct journal_record *ret) {
    CHECK(count >= 1 && j->next_number >= 1);
    CHECK(kind != EXTENT_DATA || count * SECTOR_SIZE <= JOURNAL_DATA_MAX);
    uint32_t data_len = kind == EXTENT_DATA ? (uint32_t)(count * SECTOR_SIZE) : 0;
    uint64_t need = record_length(data_len);
    uint64_t to_end = j->size - j->head % j->size;
    uint64_t pad = to_end < need ? to_end : 0;
    uint64_t pos = j->head + pad;
    j->starved = false;
    if (pos + need > j->tail + j->size)
        return false;
    /* Less than a header at the end of the ring is padding that everybody can see. */
    bool pad_header = pad >= JOURNAL_RECORD_HEADER;
    if ((pad_header && !reserve(j, j->head, JOURNAL_RECORD_HEADER)) || !reserve(j, pos, need)) {
        j->starved = true;
        return false;
    }
    if (pad_header)
        write_header(j, j->head, KIND_PAD, 0, 0, 0, 0, (uint32_t)pad);
    write_header(j, pos, kind, j->next_number, sector, count, data_len, (uint32_t)need);
    if (data_len)
        memcpy(at(j, pos + JOURNAL_RECORD_HEADER), data, data_len);
    *ret = (struct journal_record){
        .pos = pos,
        .end = pos + need,
        .number = j->next_number,
        .sector = sector,
        .count = count,
        .kind = kind,
        .data_pos = data_len ? pos + JOURNAL_RECORD_HEADER : pos,
    };
    __atomic_store_n(&j->head, pos + need, __ATOMIC_RELAXED); /* journal_read: on a worker */
    j->next_number++;
    CHECK(j->head - j->tail <= j->size);
    store_word(j, OFF_HEAD, j->head);
    return true;
}

bool journal_starved(const struct journal *j) {
    return j->starved;
}

static void load_record(const struct journal *j, uint64_t pos, struct journal_record *ret) {
    const uint8_t *h = at(j, pos);
    *ret = (struct journal_record){
        .pos = pos,
        .end = pos + load_le32(h + 36),
        .number = load_le64(h + 8),
        .sector = load_le64(h + 16),
        .count = load_le64(h + 24),
        .kind = h[4],
        .data_pos = h[4] == EXTENT_DATA ? pos + JOURNAL_RECORD_HEADER : pos,
    };
}

void journal_read(const struct journal *j, uint64_t pos, struct journal_record *ret) {
    for (;;) {
        uint64_t to_end = j->size - pos % j->size;
        CHECK(pos < __atomic_load_n(&j->head, __ATOMIC_RELAXED));
        if (to_end >= JOURNAL_RECORD_HEADER) {
            CHECK(load_le32(at(j, pos)) == RECORD_MAGIC);
            load_record(j, pos, ret);
            if (ret->kind != KIND_PAD)
                return;
        }
        pos += to_end;
    }
}

const uint8_t *journal_data(const struct journal *j, uint64_t pos) {
    return at(j, pos);
}

void journal_free_to(struct journal *j, uint64_t pos) {
    CHECK(pos >= j->tail && pos <= j->head);
    j->tail = pos;
    store_word(j, OFF_TAIL, pos);
    if (j->tail == j->head && j->reserved_count > KEEP_CHUNKS_MAX)
        punch_idle(j);
}

uint64_t journal_head(const struct journal *j) {
    return j->head;
}

uint64_t journal_tail(const struct journal *j) {
    return j->tail;
}

uint64_t journal_size(const struct journal *j) {
    return j->size;
}

/* --- what a restart finds --- */

/* The lengths of a record that is not PAD. */
static bool lengths_agree(const struct journal_record *r, uint64_t data_len, uint64_t length) {
    if (r->kind == EXTENT_DATA)
        return data_len <= JOURNAL_DATA_MAX && data_len % SECTOR_SIZE == 0 &&
               r->count == data_len / SECTOR_SIZE && length == record_length(data_len);
    return (r->kind == EXTENT_ZERO || r->kind == EXTENT_HOLE) && data_len == 0 &&
           length == JOURNAL_RECORD_HEADER;
}

/* The record at *pos, padding skipped; nothing of it is believed. False: it is not good. */
static bool check_record(const struct journal *j, uint64_t *pos, struct journal_record *ret) {
    for (;;) {
        uint64_t used = j->head - *pos, to_end = j->size - *pos % j->size;
        if (to_end < JOURNAL_RECORD_HEADER && to_end < used) {
            *pos += to_end;
            continue;
        }
        const uint8_t *h = at(j, *pos);
        if (MIN(used, to_end) < JOURNAL_RECORD_HEADER || load_le32(h) != RECORD_MAGIC ||
            load_le32(h + REC_CRC) != crc32c(view_of(h, REC_CRC)))
            return false;
        uint64_t length = load_le32(h + 36);
        if (length > MIN(used, to_end))
            return false;
        load_record(j, *pos, ret);
        if (ret->kind != KIND_PAD)
            return ret->count >= 1 && lengths_agree(ret, load_le32(h + 32), length);
        if (length != to_end || length >= used)
            return false;
        *pos += length;
    }
}

/* The pages in use are there; after this they also count as reserved. */
static bool reserve_used(struct journal *j) {
    for (uint64_t pos = j->tail; pos < j->head;) {
        uint64_t off = pos % j->size;
        uint64_t len = MIN(j->head - pos, MIN(j->size - off, (uint64_t)CHUNK));
        if (!reserve(j, pos, len))
            return false;
        pos += len;
    }
    return true;
}

uint64_t journal_count_writes(struct journal *j) {
    uint64_t count = 0;
    if (!reserve_used(j))
        return 0;
    struct journal_record r;
    for (uint64_t pos = j->tail; pos < j->head && check_record(j, &pos, &r); pos = r.end)
        count++;
    return count;
}

int journal_scan(struct journal *j, uint64_t last_write, uint64_t sectors,
                 struct journal_found *ret, struct err *e) {
    CHECK(!random_id_is_zero(&j->id));
    if (!reserve_used(j))
        return err_set(e, -ERR_BUSY, "there is no room for the journal");
    *ret = (struct journal_found){.from = j->tail, .end = j->tail, .number = last_write};
    uint64_t skip_to = MUTANT("replay-off-by-one")         ? last_write + 1
                       : MUTANT("replay-below-last-write") ? 0
                                                           : last_write;
    bool foreign = MUTANT("replay-foreign-journal");
    for (uint64_t pos = j->tail, before = 0; pos < j->head;) {
        struct journal_record r;
        uint64_t at_pos = pos;
        if (!check_record(j, &pos, &r)) {
            err_set_text(&ret->damage, -ERR_CORRUPT, "the record at %llu is damaged",
                         (unsigned long long)at_pos);
            return 0;
        }
        bool replayed = r.number > last_write;
        bool beyond = r.sector >= sectors || r.count > sectors - r.sector;
        if ((before > 0 && r.number != before + 1) || r.number == 0 || (replayed && beyond) ||
            (before == 0 && r.number > last_write + 1 && !foreign)) {
            err_set_text(&ret->damage, -ERR_CORRUPT,
                         "write %llu at sector %llu does not follow %llu",
                         (unsigned long long)r.number, (unsigned long long)r.sector,
                         (unsigned long long)(before ? before : last_write));
            return 0;
        }
        before = r.number;
        pos = ret->end = r.end;
        if (r.number <= skip_to)
            ret->from = r.end;
        ret->number = MAX(r.number, last_write);
    }
    return 0;
}

void journal_recover(struct journal *j, const struct journal_found *found) {
    CHECK(found->from >= j->tail && found->from <= found->end && found->end <= j->head);
    if (found->end < j->head) {
        j->head = found->end;
        store_word(j, OFF_HEAD, j->head);
    }
    if (found->from < found->end && MUTANT("header-rewritten-at-restart")) {
        j->id.bytes[0]++;
        write_identity(j, &j->id);
    }
    j->next_number = found->number + 1;
    journal_free_to(j, found->from);
}
