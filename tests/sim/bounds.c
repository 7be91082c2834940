/* What an open volume may hold in memory, and a manifest in its lists, whatever clients and store
 * do: looked at with each request of a client and each step of the director. It draws no random
 * numbers, so that a seed stays the same run. */
#include <inttypes.h>

#include "common/mem.h"
#include "portalbd/cache/ram_cache.h"
#include "tests/sim/sim.h"

enum {
    /* Writes wait from 512 Ki on; what one segment of a tail or a record brings comes on top. */
    EXTENTS_MAX = 512 * 1024 + SEGMENT_EXTENTS_MAX,
};

static void at_most(const struct daemon *d, const char *what, uint64_t found, uint64_t limit) {
    if (found > limit)
        sim_fail(d->sim, "%s has %" PRIu64 " %s: at most %" PRIu64 " are allowed", d->proc.name,
                 found, what, limit);
}

void bounds_check(const struct daemon *d) {
    if (!d->volume || d->dead)
        return;
    struct volume_status st;
    volume_status(d->volume, &st);
    at_most(d, "segments in flight", st.segments_in_flight, WINDOW); /* I1 */
    at_most(d, "bytes in its journal", st.journal_used, st.journal_size);
    at_most(d, "bytes of journal", st.journal_size, d->sim->limits.journal_size);
    at_most(d, "extents in memory", st.memtable_extents, EXTENTS_MAX);
    at_most(d, "runs", st.run_count, ROOT_RUNS_MAX);
    at_most(d, "bytes in its RAM cache", st.cache_bytes,
            d->sim->limits.cache_size + RAM_CACHE_PAGE);
    at_most(d, "bytes in its disk cache", st.disk_cache_bytes, st.disk_cache_size);
}

void bounds_check_all(struct sim *s) {
    list_for_each (&s->daemons, node)
        bounds_check(list_entry(node, struct daemon, node));
}

void bounds_check_manifest(struct sim *s, const char *key, const struct manifest *m) {
    size_t most = MAX(m->condemned_count, m->root.evacuated_count);
    if (most > ROOT_LIST_MAX || m->root.tail_count > ROOT_TAIL_MAX)
        sim_fail(s, "%s has a list of %zu condemned, %zu evacuated, %zu of the tail", key,
                 m->condemned_count, m->root.evacuated_count, m->root.tail_count);
}
