/* Manifests on the store. The keys sort the newest first, so a LIST of one key finds it; a manifest
 * is immutable, so the only race is that its writer deletes it between our LIST and our GET: then
 * there is a newer one, and we list again. */
#include "portalbd/volume/manifest_store.h"

enum { SAME_LOOKS_MAX = 16 };

int manifest_newest_number(struct objstore *s, const struct volume_key *v, uint64_t *ret_n,
                           struct err *e) {
    char prefix[KEY_MAX];
    key_manifests_prefix(prefix, v);
    struct obj_list list = {0};
    int rc = objstore_list(s, prefix, NULL, 1, &list, e);
    if (rc < 0)
        return rc;
    uint64_t n = 0;
    if (list.count > 0 && key_parse_numbered(list.entries[0].key, &n) < 0)
        rc = err_set(e, -ERR_CORRUPT, "%s: not a manifest's key", list.entries[0].key);
    obj_list_release(&list);
    if (rc == 0)
        *ret_n = n;
    return rc;
}

int manifest_get(struct objstore *s, const struct volume_key *v, uint64_t n, struct manifest *ret,
                 struct err *e) {
    CHECK(n >= 1);
    char key[KEY_MAX];
    key_manifest(key, v, n);
    CLEANUP_BUF struct buf body = {0};
    int rc = objstore_get(s, key, MANIFEST_SIZE_MAX, &body, e);
    if (rc < 0)
        return rc;
    rc = manifest_decode(ret, n, buf_view(&body), e);
    if (rc == 0 && !volume_key_equal(&ret->root.volumes[0], v)) {
        manifest_release(ret);
        rc = err_set(e, -ERR_CORRUPT, "its root is of another volume");
    }
    return rc < 0 ? err_wrap(e, "%s", key) : 0;
}

int manifest_newest(struct objstore *s, const struct volume_key *v, struct manifest *ret,
                    struct err *e) {
    uint64_t missing = 0; /* the number that was listed and then not there */
    for (int looks = 0;;) {
        uint64_t n = 0;
        int rc = manifest_newest_number(s, v, &n, e);
        if (rc < 0)
            return rc;
        if (n == 0)
            return err_set(e, -ERR_NOT_FOUND, "volume %s does not exist", v->text);
        looks = n == missing ? looks + 1 : 0;
        if (looks == SAME_LOOKS_MAX) /* a newer one deletes it, and would be listed */
            return err_set(e, -ERR_CORRUPT, "manifest %llu of volume %s is listed but not there",
                           (unsigned long long)n, v->text);
        rc = manifest_get(s, v, n, ret, e);
        if (rc != -ERR_NOT_FOUND)
            return rc;
        missing = n;
    }
}

int manifest_put(struct objstore *s, const struct volume_key *v, const struct manifest *m,
                 struct err *e) {
    CHECK(m->number >= 1);
    CHECK(m->root.next_seq >= 1);
    CLEANUP_BUF struct buf body = {0};
    int rc = manifest_encode(&body, m, e);
    if (rc < 0)
        return rc;
    char key[KEY_MAX];
    key_manifest(key, v, m->number);
    return objstore_put(s, key, buf_view(&body), NULL, e);
}

int manifest_check_newest(struct objstore *s, const struct volume_key *v, uint64_t n,
                          struct err *e) {
    uint64_t newest = 0;
    int rc = manifest_newest_number(s, v, &newest, e);
    if (rc < 0)
        return rc;
    if (newest != n)
        return err_set(
            e, -ERR_FENCED,
            "volume %s: manifest %llu is newer than ours (%llu): another writer has the volume",
            v->text, (unsigned long long)newest, (unsigned long long)n);
    return 0;
}
