/* The real engine as a writer in a pool_fixture, with small segments and frequent checkpoints. All
 * are for fibers. */
#pragma once

#include "portalbd/volume/volume.h"
#include "tests/support/pool_fixture.h"

struct volume *engine_open(struct pool_fixture *f, const struct volume_key *key,
                           uint64_t publish_epoch);
/* Writes, some zeroes or trims, with a flush now and then, in the first size_bytes of the volume.
 */
void engine_write(struct pool_fixture *f, struct volume *v, uint64_t size_bytes, int writes);
/* One write, of at most 128 KiB. */
void engine_put(struct pool_fixture *f, struct volume *v, uint64_t off, uint64_t len,
                const void *data);
/* Trims the first size_bytes. */
void engine_trim(struct pool_fixture *f, struct volume *v, uint64_t size_bytes);
void engine_read(struct pool_fixture *f, struct volume *v, uint64_t off, uint64_t len, void *buf);
/* After a clean close, or as a crash. */
void engine_end(struct pool_fixture *f, struct volume *v, bool close);
