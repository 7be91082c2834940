/* How large the map may become.
 *
 * The oldest run holds nearly all of it, and a run of the format has so many parts, so many objects
 * and an index of so many bytes. Scattered 4 KiB extents get there at some 20 TiB, larger ones as
 * much later as they are larger. What merges make of all runs is at most about their sum. When that
 * comes near the limit, requests that need more of the map are refused; what is acknowledged
 * already, and what moves and merges of GC add, has room in the rest.
 *
 *   sum < FULL  --a run is stored--> sum >= FULL: WRITE and WRITE_ZEROES of allocated blocks get
 * NO_SPACE; TRIM, reads, flushes, checkpoints, merges and GC go on
 *   sum >= FULL --TRIM, overwrites that are merged--> sum < FULL
 *
 * I1  A merge that is too large after all leaves its sources as they are (levels.c); it never
 *     breaks the volume. */
#include "common/log.h"
#include "portalbd/volume/volume_internal.h"

enum {
    FULL = MAP_FULL,
    FULL_OF_8 = 7, /* eighths of a limit that make it full */
    WARN = 900,
    WARN_AGAIN = 850, /* once it was below */
};

/* Per mille of what makes it full. */
static uint64_t fill_of(uint64_t used, uint64_t limit) {
    CHECK(limit >= 8);
    return used * FULL / (limit / 8 * FULL_OF_8);
}

static void tell(struct volume *v) {
    if (v->map_fill >= FULL && !v->map_full_told)
        log_warn("the map of the volume is full: writes are refused until blocks are trimmed",
                 LOG_STR("volume", v->config.key.text));
    else if (v->map_fill >= WARN && !v->map_warned)
        log_warn("the map of the volume is getting full: at its limit writes are refused",
                 LOG_STR("volume", v->config.key.text), LOG_U64("percent", v->map_fill / 10));
    else if (v->map_fill < FULL && v->map_full_told)
        log_info("the map of the volume has room again: writes go on",
                 LOG_STR("volume", v->config.key.text));
    v->map_full_told = v->map_fill >= FULL;
    v->map_warned = v->map_fill >= (v->map_warned ? WARN_AGAIN : WARN);
}

void map_limit_update(struct volume *v) {
    uint64_t pages = 0, index_bytes = 0, objects = 0;
    CHECK(v->run_count == v->manifest.root.run_count);
    for (size_t i = 0; i < v->run_count; i++) {
        const struct run_index *x = run_reader_index(v->runs[i]);
        uint64_t parts_bytes = 0;
        for (size_t p = 0; p < x->part_count; p++) {
            pages += x->parts[p].page_count;
            parts_bytes += run_part_size(&x->parts[p]);
        }
        index_bytes +=
            v->manifest.root.runs[i].size - MIN(v->manifest.root.runs[i].size, parts_bytes);
        objects += x->usage_count;
    }
    uint64_t fill = fill_of(pages * RUN_PAGE_SIZE, run_shape_capacity(merge_shape(v)));
    fill = MAX(fill, fill_of(index_bytes, RUN_INDEX_SIZE_MAX));
    v->map_fill = MAX(fill, fill_of(objects, RUN_USAGE_MAX));
    if (!v->read_only)
        tell(v);
}

bool map_limit_refuses(const struct volume *v, const struct bd_request *req) {
    CHECK(req->op == BD_WRITE || req->op == BD_WRITE_ZEROES || req->op == BD_TRIM);
    bool adds = req->op == BD_WRITE || (req->op == BD_WRITE_ZEROES && req->flags & BD_NO_HOLE);
    return adds && v->map_fill >= FULL;
}
