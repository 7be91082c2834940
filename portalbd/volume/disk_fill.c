/* What goes to the disk cache: what was read from the store, and what was written to it. Trouble of
 * the disk is said once and turns the cache off; reads then go to the store as if it were empty. */
#include "common/log.h"
#include "portalbd/volume/volume_internal.h"

void volume_disk_failed(struct volume *v, const struct err *why) {
    if (disk_cache_stats(v->disk).off)
        return;
    disk_cache_turn_off(v->disk);
    log_warn("the disk cache failed and is off until the volume is opened again",
             LOG_STR("volume", v->config.key.text), LOG_ERR(why));
}

static void fill_fiber(struct volume *v, void *arg) {
    struct err e = {0};
    if (disk_fill_run(arg, &e) < 0)
        volume_disk_failed(v, &e);
}

void volume_fill_disk(struct volume *v, struct disk_fill *fill) {
    if (fill)
        volume_fiber_start(v, fill_fiber, fill);
}

void volume_fill_disk_segment(struct volume *v, struct segment *s) {
    if (!v->disk)
        return;
    const struct segment_table *t = &s->build.table;
    struct obj_ref ref = {.kind = OBJ_LOG, .seq = s->seq};
    struct disk_key key = disk_key_of(&v->config.key, &ref);
    struct disk_fill *fill = disk_fill_new(v->disk, &key, SEGMENT_HEADER_SIZE, &s->build.frames);
    for (size_t i = 0; fill && i < t->extent_count; i++) {
        const struct segment_extent *x = &t->extents[i];
        if (x->kind == EXTENT_DATA)
            disk_fill_frames(fill, x->off, t->lens + x->first_len, extent_frames(x->count));
    }
    volume_fill_disk(v, fill);
}
