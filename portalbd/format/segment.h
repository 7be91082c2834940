/* Segments and frames: bytes <-> structs, pure and bounded. docs/format.md holds every byte. Any
 * thread.
 *
 *   segment = header | frames | extent table | footer
 *
 * The footer repeats what recovery needs of the header, so that one suffix GET of
 * SEGMENT_TAIL_GUESS bytes usually reads a segment's meta and table. A fence is a segment without
 * extents of exactly SEGMENT_FENCE_SIZE bytes; no other has that size (the encoder pads off it), so
 * that a LIST knows it. */
#pragma once

#include "portalbd/format/ids.h"

enum {
    FRAME_SECTORS_MAX = 32, /* 16 KiB */
    FRAME_HEADER_SIZE = 12, /* codec, raw and stored length, crc32c */
    FRAME_SIZE_MAX = FRAME_HEADER_SIZE + FRAME_SECTORS_MAX * SECTOR_SIZE,
    EXTENT_SECTORS_MAX = 2048, /* of a DATA extent: 1 MiB, so at most EXTENT_FRAMES_MAX frames */
    EXTENT_FRAMES_MAX = EXTENT_SECTORS_MAX / FRAME_SECTORS_MAX,
    SEGMENT_SIZE_MAX = 16 * 1024 * 1024,
    SEGMENT_EXTENTS_MAX = 64 * 1024,
    SEGMENT_FENCE_SIZE = 512,
    SEGMENT_TAIL_GUESS = 64 * 1024,
};
#define SECTORS_MAX (UINT64_C(1) << 51) /* sectors of a volume: 2^60 bytes */

enum extent_kind { EXTENT_DATA, EXTENT_ZERO, EXTENT_HOLE };
enum segment_kind { SEGMENT_DATA = 1, SEGMENT_FENCE = 2, SEGMENT_MOVED = 3 };

struct segment_meta {
    uint8_t kind;            /* segment_kind */
    uint8_t volume_hash[16]; /* first bytes of sha256 of the volume key: a segment in the wrong
                                place is refused */
    uint64_t epoch;
    uint64_t seq; /* 0 for SEGMENT_MOVED */
    struct random_id nonce;
    struct random_id journal; /* of the writer; zero: none */
    uint64_t last_write; /* number of the last write in this segment, under that journal; 0: none */
};
void segment_volume_hash(uint8_t ret[16], const struct volume_key *v);

/* One extent of a segment's table, in the order of the writes. A DATA extent starts on a frame:
 * ceil(count / 32) frames, all but the last of 32 sectors; their stored lengths (header included)
 * lie at lens[first_len ...] of the table. */
struct segment_extent {
    uint64_t sector;
    uint64_t count;     /* sectors, >= 1; DATA: <= EXTENT_SECTORS_MAX */
    uint8_t kind;       /* extent_kind */
    uint32_t off;       /* DATA: of its first frame in the object, bytes */
    uint32_t first_len; /* DATA: index into lens */
};
struct segment_table {
    struct segment_extent *extents; /* owned */
    size_t extent_count;
    uint16_t *lens; /* owned */
    size_t len_count;
};
void segment_table_release(struct segment_table *t);
static inline size_t extent_frames(uint64_t sectors) {
    return (size_t)DIV_UP(sectors, FRAME_SECTORS_MAX);
}

/* Encodes the header, SEGMENT_HEADER_SIZE bytes. */
enum { SEGMENT_HEADER_SIZE = 96 };
void segment_encode_header(uint8_t out[SEGMENT_HEADER_SIZE], const struct segment_meta *m);
/* Appends table and footer to `out`. body_len: bytes of header and frames before it. Offsets and
 * lengths in the table must tile the frames from SEGMENT_HEADER_SIZE on in order. */
void segment_encode_tail(struct buf *out, const struct segment_meta *m,
                         const struct segment_table *t, size_t body_len);
/* A whole fence object. */
void segment_encode_fence(uint8_t out[SEGMENT_FENCE_SIZE], const struct segment_meta *m);

/* Decodes the end of a segment of object_size bytes, of which `tail` holds the last tail.len. When
 * that is too little, returns -ERR_OVERLOAD and sets *ret_need to the bytes wanted. Damage:
 * -ERR_CORRUPT. A fence has an empty table. */
int segment_decode_tail(struct view tail, uint64_t object_size, struct segment_meta *ret_meta,
                        struct segment_table *ret_table, size_t *ret_need, struct err *e);
/* Decodes a header (the start of an object, for settling who wrote it). */
int segment_decode_header(struct view head, struct segment_meta *ret, struct err *e);

/* Encodes 1..FRAME_SECTORS_MAX sectors into at most FRAME_SIZE_MAX bytes at out: LZ4, or raw when
 * that is not smaller or when compress is false. Returns the stored length, header included. */
size_t frame_encode(uint8_t *out, const uint8_t *data, size_t sectors, bool compress);
/* Decodes one frame at the start of `in` into out (room for FRAME_SECTORS_MAX sectors). Verifies
 * the checksum. The frame must hold at least `sectors`: a map entry that was cut on its right no
 * longer knows how many more its last frame has. *ret_len: stored length. */
int frame_decode(struct view in, uint8_t *out, size_t sectors, size_t *ret_len, struct err *e);
