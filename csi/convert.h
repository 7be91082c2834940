/* Between CSI's messages and plain values: what a request may hold, and pieces of answers. Checks
 * give -ERR_INVALID with a text that names the field (csi.proto's general rules: strings of 128
 * bytes, maps of 4 KiB). Any thread. */
#pragma once

#include "csi/rpc/csi_service.h"
#include "portalbd/format/records.h"

enum {
    CSI_NAME_MAX = 128,         /* bytes of names and ids */
    CSI_MAP_MAX = 4096,         /* bytes of all keys and values of a map */
    CSI_PATH_MAX = 1000,        /* bytes of a path; the job's copy has to hold it */
    CSI_SIZE_DEFAULT = 1 << 30, /* bytes of a volume that nobody gave a size */
    CSI_SIZE_STEP = 1 << 20,    /* sizes are rounded up to this where the limit allows */
};

/* protobuf-c makes a type for each map<string, string>, all of the same shape: this walks any of
 * them. Copies into a string_map (the last of equal keys wins); `field` is for the error text. */
#define csi_map_copy(to, request, map, e)                                                          \
    csi_map_copy_((to), #map, (void *const *)(request)->map, (request)->n_##map, (e))
int csi_map_copy_(struct string_map *to, const char *field, void *const *entries, size_t count,
                  struct err *e);
void csi_map_wipe(struct string_map *secrets); /* overwrites the values, then releases */

/* A name or an id: 1..CSI_NAME_MAX bytes without control characters. */
int csi_check_name(const char *value, const char *field, struct err *e);
/* An id: not empty, and not too long. What is not one of ours is NOT_FOUND later. */
int csi_check_id(const char *value, const char *field, struct err *e);
/* An absolute path without "..", for us to mount at. */
int csi_check_path(const char *value, const char *field, struct err *e);

/* What a volume capability asks for. Text is borrowed from the request. */
struct csi_capability {
    bool block;
    const char *fstype;            /* "" : the default; mount only */
    char mount_flags[CSI_MAP_MAX]; /* "a,b"; may be "" */
    Csi__V1__VolumeCapability__AccessMode__Mode mode;
    bool read_only;     /* the mode is one for readers */
    bool single_target; /* the mode allows one target path on a node */
};
int csi_capability_parse(const Csi__V1__VolumeCapability *capability, struct csi_capability *ret,
                         struct err *e);
/* A copy for an answer. */
Csi__V1__VolumeCapability *csi_capability_copy(struct rpc_call *call,
                                               const Csi__V1__VolumeCapability *capability);

/* The size to ask for, and its limit (0: none), in bytes. `missing`: what no wish means; at least
 * `min`. -ERR_INVALID: negative, or limit below required; -ERR_NO_SPACE: no size lies in the range.
 */
int csi_capacity_parse(const Csi__V1__CapacityRange *range, uint64_t missing, uint64_t min,
                       uint64_t *ret_size, uint64_t *ret_limit, struct err *e);

/* Up to the next step, or to the next 4096 where the step passes the limit. */
uint64_t csi_size_round(uint64_t size, uint64_t limit);

/* "none", or a size that a node's disk cache may have for a volume. */
int csi_disk_cache_parse(const char *text, uint64_t *ret_bytes, bool *ret_none, struct err *e);
