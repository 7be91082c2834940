/* What many runs were like together. */
#include <inttypes.h>
#include <stdio.h>

#include "tests/sim/sim.h"

void sim_totals_add(struct sim_totals *to, const struct sim_totals *from) {
    uint64_t *t = (uint64_t *)to;
    const uint64_t *f = (const uint64_t *)from;
    for (size_t i = 0; i < sizeof *to / sizeof *t; i++)
        t[i] += f[i];
}

#define SHOW(name) printf("  %-40s %12" PRIu64 "\n", #name, t->name)

void sim_totals_show(const struct sim_totals *t, uint64_t runs) {
    printf("totals of %" PRIu64 " runs\n", runs);
    SHOW(operations);
    SHOW(reads_checked);
    SHOW(cuts_checked);
    SHOW(records_lost);
    SHOW(opens);
    SHOW(opens_fenced);
    SHOW(crashes);
    SHOW(sleeps);
    SHOW(closes);
    SHOW(fenced);
    SHOW(respawns);
    SHOW(resumes_fenced);
    SHOW(nothing_lost_checked);
    SHOW(replays);
    SHOW(writes_replayed);
    SHOW(journals_set_aside);
    SHOW(reserves_refused);
    SHOW(snapshots);
    SHOW(clones);
    SHOW(restores);
    SHOW(deletes);
    SHOW(read_only_opens);
    SHOW(grows);
    SHOW(checkpoints);
    SHOW(merges);
    SHOW(gc_rounds);
    SHOW(gc_deleted);
    SHOW(objects_freed);
    SHOW(gc_moves);
    SHOW(parts_reused);
    SHOW(collects);
    SHOW(maintained);
    SHOW(fscks);
    SHOW(hedges);
    SHOW(cache_hits);
    SHOW(cache_misses);
    SHOW(disk_hits);
    SHOW(disks_failed);
    SHOW(flushes);
    SHOW(writes_waited);
    SHOW(window_full);
    SHOW(blackouts);
    SHOW(lists);
    printf("  %-40s %12" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", "GET PUT LIST DELETE",
           t->requests[OBJ_GET], t->requests[OBJ_PUT], t->requests[OBJ_LIST],
           t->requests[OBJ_DELETE]);
    SHOW(store_errors);
    SHOW(late_effects);
    SHOW(duplicates);
    SHOW(tasks);
    SHOW(tasks_killed);
    SHOW(pins_swept);
    SHOW(objects_left);
    SHOW(objects_fences);
    SHOW(objects_manifests);
    SHOW(turns);
    SHOW(virtual_ms);
    printf("scenarios met\n");
    for (size_t i = 0; i < SCENARIO_COUNT; i++)
        printf("  %-40s %12" PRIu64 "\n", scenario_names[i], t->scenarios[i]);
}
