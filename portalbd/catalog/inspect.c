/* Objects as JSON. Members have the words of docs/format.md; the strict decoders run first, so what
 * is printed is what a reader would accept. */
#include "portalbd/catalog/inspect.h"

#include <stdlib.h>

#include "portalbd/format/records.h"

static const char *const extent_names[] = {
    [EXTENT_DATA] = "data", [EXTENT_ZERO] = "zero", [EXTENT_HOLE] = "hole"};
static const char *const kind_names[] = {
    [OBJ_LOG] = "log", [OBJ_MOVED] = "moved", [OBJ_MAP] = "map"};

static json_t *of_id(const struct random_id *id) {
    char hex[RANDOM_ID_HEX];
    random_id_to_hex(id, hex);
    return json_string(hex);
}

static json_t *of_u64(uint64_t n) {
    return json_integer((json_int_t)n);
}

static json_t *of_ref(const struct obj_ref *ref, const struct volume_key *volumes) {
    json_t *o =
        json_pack("{s:s,s:s}", "volume", volumes[ref->volume].text, "kind", kind_names[ref->kind]);
    if (ref->kind == OBJ_LOG)
        json_object_set_new(o, "seq", of_u64(ref->seq));
    else
        json_object_set_new(o, "id", of_id(&ref->id));
    return o;
}

/* --- segments --- */

/* "" when all frames of the extent decode, else what is wrong. */
static void check_frames(struct view body, const struct segment_extent *x, const uint16_t *lens,
                         struct err *ret) {
    uint8_t out[FRAME_SECTORS_MAX * SECTOR_SIZE];
    uint32_t off = x->off;
    *ret = (struct err){0};
    for (size_t i = 0; x->kind == EXTENT_DATA && i < extent_frames(x->count); i++) {
        uint64_t sectors = MIN(x->count - i * FRAME_SECTORS_MAX, (uint64_t)FRAME_SECTORS_MAX);
        size_t len;
        if (lens[i] > body.len - off ||
            frame_decode(view_part(body, off, lens[i]), out, (size_t)sectors, &len, ret) < 0)
            return;
        off += lens[i];
    }
}

/* bad: one more when its frames are. */
static json_t *of_extent(struct view body, const struct segment_table *t, size_t i, size_t *bad) {
    const struct segment_extent *x = &t->extents[i];
    json_t *o = json_pack("{s:I,s:I,s:s}", "sector", (json_int_t)x->sector, "count",
                          (json_int_t)x->count, "kind", extent_names[x->kind]);
    if (x->kind != EXTENT_DATA)
        return o;
    size_t stored = 0;
    struct err e;
    for (size_t k = 0; k < extent_frames(x->count); k++)
        stored += t->lens[x->first_len + k];
    check_frames(body, x, t->lens + x->first_len, &e);
    *bad += e.code != 0;
    json_object_set_new(o, "off", of_u64(x->off));
    json_object_set_new(o, "stored_bytes", of_u64(stored));
    json_object_set_new(o, "frames", json_string(e.code ? e.text : "good"));
    return o;
}

static int describe_segment(struct view body, json_t **ret, struct err *e) {
    static const char *const kinds[] = {
        [SEGMENT_DATA] = "data", [SEGMENT_FENCE] = "fence", [SEGMENT_MOVED] = "moved"};
    struct segment_meta m;
    struct segment_table t;
    size_t need, bad = 0;
    char hash[33] = "";
    int rc = segment_decode_tail(body, body.len, &m, &t, &need, e);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < sizeof m.volume_hash; i++)
        snprintf(hash + 2 * i, 3, "%02x", m.volume_hash[i]);
    json_t *extents = json_array();
    for (size_t i = 0; i < t.extent_count; i++)
        json_array_append_new(extents, of_extent(body, &t, i, &bad));
    *ret = json_pack(
        "{s:s,s:s,s:I,s:s,s:I,s:I,s:I,s:o,s:o,s:I,s:I,s:o}", "type", "segment", "kind",
        kinds[m.kind], "size_bytes", (json_int_t)body.len, "volume_hash", hash, "publish_epoch",
        (json_int_t)(m.epoch >> 32), "open_count", (json_int_t)(m.epoch & UINT32_MAX), "seq",
        (json_int_t)m.seq, "nonce", of_id(&m.nonce), "journal", of_id(&m.journal), "last_write",
        (json_int_t)m.last_write, "frame_count", (json_int_t)t.len_count, "extents", extents);
    segment_table_release(&t);
    if (bad == 0)
        return 0;
    return err_set(e, -ERR_CORRUPT, "the frames of %zu of its %zu extents are damaged", bad,
                   json_array_size(extents));
}

/* --- runs --- */

static int describe_index(struct view body, json_t **ret, struct err *e) {
    struct run_index x;
    int rc = run_index_decode(&x, body, e);
    if (rc < 0)
        return rc;
    json_t *volumes = json_array(), *parts = json_array(), *objects = json_array();
    for (size_t i = 0; i < x.volume_count; i++)
        json_array_append_new(volumes, json_string(x.volumes[i].text));
    for (size_t i = 0; i < x.part_count; i++) {
        json_t *o = of_ref(&x.parts[i].ref, x.volumes);
        json_object_set_new(o, "first_sector", of_u64(x.parts[i].first_sector));
        json_object_set_new(o, "last_sector", of_u64(x.parts[i].last_sector));
        json_object_set_new(o, "pages", of_u64(x.parts[i].page_count));
        json_object_set_new(o, "entries", of_u64(x.parts[i].entries));
        json_array_append_new(parts, o);
    }
    for (size_t i = 0; i < x.usage_count; i++) {
        if (run_usage_is_free(&x.usage[i]))
            continue;
        json_t *o = json_pack("{s:I}", "object", (json_int_t)i),
               *name = of_ref(&x.usage[i].ref, x.volumes);
        json_object_update(o, name);
        json_decref(name);
        json_object_set_new(o, "used_bytes", of_u64(x.usage[i].bytes));
        json_array_append_new(objects, o);
    }
    *ret = json_pack("{s:s,s:I,s:o,s:I,s:o,s:o,s:o}", "type", "run", "size_bytes",
                     (json_int_t)body.len, "nonce", of_id(&x.nonce), "entries",
                     (json_int_t)x.entry_count, "volumes", volumes, "parts", parts, "objects",
                     objects);
    run_index_release(&x);
    return 0;
}

/* Pages name objects by their number in the index, which is another object: any number may be. */
static int describe_page(struct view page, json_t *entries, struct err *e) {
    static const struct run_index any = {.usage_count = RUN_USAGE_MAX};
    struct run_page_cursor c;
    int rc = run_page_open(&c, &any, page, e);
    c.numbers_only = true;
    while (rc >= 0 && (rc = run_page_next(&c, e)) > 0) {
        json_t *o = json_pack("{s:I,s:I,s:s}", "sector", (json_int_t)c.entry.sector, "count",
                              (json_int_t)c.entry.count, "kind", extent_names[c.entry.kind]);
        if (c.entry.kind == EXTENT_DATA) {
            json_object_set_new(o, "object", of_u64(c.last_ref));
            json_object_set_new(o, "off", of_u64(c.entry.off));
            json_object_set_new(o, "skip", of_u64(c.entry.skip));
            json_object_set_new(o, "stored_bytes", of_u64(map_entry_stored_len(&c.entry)));
        }
        json_array_append_new(entries, o);
    }
    return rc;
}

/* The pages that a part begins with; its shares lie behind them. */
static size_t pages_len(struct view body) {
    size_t len = 0;
    while (body.len - len >= RUN_PAGE_SIZE && memcmp(body.data + len + 4, "PBMP", 4) == 0)
        len += RUN_PAGE_SIZE;
    return len;
}

static int describe_pages(struct view pages, json_t *entries, struct err *e) {
    int rc = 0;
    for (size_t off = 0; rc == 0 && off < pages.len; off += RUN_PAGE_SIZE) {
        rc = describe_page(view_part(pages, off, RUN_PAGE_SIZE), entries, e);
        if (rc < 0)
            err_wrap(e, "page %zu", off / RUN_PAGE_SIZE);
    }
    return rc;
}

static int describe_shares(struct view body, json_t *ret, struct err *e) {
    struct run_share *shares;
    size_t count;
    int rc = run_shares_decode(&shares, &count, body, e);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < count; i++)
        json_array_append_new(ret, json_pack("{s:I,s:I}", "object", (json_int_t)shares[i].number,
                                             "used_bytes", (json_int_t)shares[i].bytes));
    free(shares);
    return 0;
}

static int describe_part(struct view body, json_t **ret, struct err *e) {
    struct view pages = view_part(body, 0, pages_len(body));
    json_t *entries = json_array(), *shares = json_array();
    int rc = describe_pages(pages, entries, e);
    if (rc == 0)
        rc = describe_shares(view_part(body, pages.len, body.len - pages.len), shares, e);
    if (rc < 0) {
        json_decref(entries);
        json_decref(shares);
        return rc;
    }
    *ret = json_pack("{s:s,s:I,s:I,s:o,s:o}", "type", "map part", "size_bytes",
                     (json_int_t)body.len, "pages", (json_int_t)(pages.len / RUN_PAGE_SIZE),
                     "entries", entries, "shares", shares);
    return 0;
}

/* --- JSON objects --- */

/* The decoder of each type; what it returns is of no use here. */
static int verify(const char *type, uint64_t n, struct view body, struct err *e) {
    union {
        struct manifest manifest;
        struct pin_claim claim;
        struct pin_root root;
        struct volume_record volume;
        struct snapshot_record snapshot;
        struct node_record node;
        struct pool_record pool;
    } u;
    int rc;
    if (strcmp(type, "manifest") == 0) {
        if ((rc = manifest_decode(&u.manifest, n, body, e)) == 0)
            manifest_release(&u.manifest);
    } else if (strcmp(type, "pin-claim") == 0) {
        rc = pin_claim_decode(&u.claim, body, e);
    } else if (strcmp(type, "pin-root") == 0) {
        if ((rc = pin_root_decode(&u.root, body, e)) == 0)
            pin_root_release(&u.root);
    } else if (strcmp(type, "volume") == 0) {
        if ((rc = volume_record_decode(&u.volume, n, body, e)) == 0)
            volume_record_release(&u.volume);
    } else if (strcmp(type, "snapshot") == 0) {
        if ((rc = snapshot_record_decode(&u.snapshot, n, body, e)) == 0)
            snapshot_record_release(&u.snapshot);
    } else if (strcmp(type, "node") == 0) {
        if ((rc = node_record_decode(&u.node, n, body, e)) == 0)
            node_record_release(&u.node);
    } else if (strcmp(type, "pool") == 0) {
        if ((rc = pool_record_decode(&u.pool, body, e)) == 0)
            pool_record_release(&u.pool);
    } else {
        rc = err_set(e, -ERR_UNSUPPORTED, "an object of type '%.40s'", type);
    }
    return rc;
}

static int describe_json(const char *key, struct view body, json_t **ret, struct err *e) {
    json_error_t why;
    uint64_t n = 0;
    bool numbered = key_parse_numbered(key, &n) == 0 && n > 0;
    json_t *o = json_loadb((const char *)body.data, body.len, JSON_REJECT_DUPLICATES, &why);
    const char *type = json_string_value(json_object_get(o, "type"));
    int rc = !o      ? err_set(e, -ERR_CORRUPT, "not JSON: %s", why.text)
             : !type ? err_set(e, -ERR_INVALID, "JSON without a type: none of our objects")
                     : verify(type, numbered ? n : 1, body, e);
    if (rc < 0) {
        json_decref(o);
        return rc;
    }
    if (numbered)
        json_object_set_new(o, "number", of_u64(n));
    *ret = o;
    return 0;
}

/* --- what is it? --- */

int object_describe(const char *key, struct view body, json_t **ret, struct err *e) {
    static const struct {
        char magic[5];
        int (*describe)(struct view body, json_t **ret, struct err *e);
    } kinds[] = {{"PBDS", describe_segment}, {"PBMI", describe_index}};
    for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
        if (body.len >= 4 && memcmp(body.data, kinds[i].magic, 4) == 0)
            return kinds[i].describe(body, ret, e);
    if (body.len >= RUN_PAGE_SIZE && memcmp(body.data + 4, "PBMP", 4) == 0)
        return describe_part(body, ret, e);
    if (body.len >= 2 && body.data[0] == '{')
        return describe_json(key, body, ret, e);
    return err_set(e, -ERR_INVALID, "these %zu bytes begin like none of our objects", body.len);
}
