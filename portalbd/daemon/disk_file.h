/* The file behind a volume's disk cache: private to this process, without a name, so that it goes
 * when the process goes, however that ends. */
#pragma once

#include "portalbd/cache/disk_cache.h"

struct disk_file;

/* dir: made (0700) when it is not there. size: bytes that the file may grow to. Blocks. */
int disk_file_open(const char *dir, uint64_t size, struct disk_file **ret, struct err *e);
/* Borrowed, as long as the file. */
struct disk_medium *disk_file_medium(struct disk_file *f);
void disk_file_close(struct disk_file *f); /* nobody uses the medium any more; NULL is fine */
