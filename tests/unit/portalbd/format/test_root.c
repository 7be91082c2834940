/* Manifests and pins: round trips, every truncation, every flipped bit, limits, strictness. */
#include "tests/support/test.h"

#include <stdlib.h>
#include <string.h>

#include "common/crc32c.h"
#include "portalbd/format/root.h"

static struct volume_key key_of(char digit, uint64_t n) {
    char hash[33];
    struct volume_key k;
    memset(hash, digit, 32);
    hash[32] = '\0';
    id_format_key(&k, ID_VOLUME, hash, n);
    return k;
}

static struct random_id id_of(int byte) {
    struct random_id id;
    memset(id.bytes, byte, sizeof id.bytes);
    return id;
}

static void add_tail(struct root *r, uint16_t volume, uint64_t first, uint64_t count) {
    r->tail = xrealloc(r->tail, (r->tail_count + 1) * sizeof *r->tail);
    r->tail[r->tail_count++] = (struct root_tail){volume, first, count};
}

static struct manifest some_manifest(void) {
    struct volume_key own = key_of('a', 1), other = key_of('b', 0xffffffffffffff);
    struct manifest m = {.number = 9,
                         .epoch = UINT64_C(0xfffffffe00000003),
                         .nonce = id_of(1),
                         .size_bytes = UINT64_C(1) << 60,
                         .block_size = 4096,
                         .journal = id_of(2),
                         .last_write = 77,
                         .closed = true,
                         .depth = 2};
    root_init(&m.root, &own);
    assert_int_equal(root_volume_index(&m.root, &own, NULL), 0);
    assert_int_equal(root_volume_index(&m.root, &other, NULL), 1);
    m.root.runs = xcalloc(2, sizeof *m.root.runs);
    m.root.run_count = 2;
    for (size_t i = 0; i < 2; i++)
        m.root.runs[i] = (struct root_run){
            .index = {.kind = OBJ_MAP, .volume = (uint16_t)i, .id = id_of(40 + (int)i)},
            .age = 100 - i,
            .entry_count = 1000,
            .size = 1 << 20};
    add_tail(&m.root, 1, 5, 3);
    add_tail(&m.root, 0, 100, 20);
    m.root.next_seq = 120;
    m.root.evacuated = xcalloc(2, sizeof *m.root.evacuated);
    m.root.evacuated_count = 2;
    m.root.evacuated[0] = (struct obj_ref){.kind = OBJ_LOG, .seq = 3};
    m.root.evacuated[1] = (struct obj_ref){.kind = OBJ_MOVED, .volume = 1, .id = id_of(50)};
    m.held_pins = xcalloc(1, sizeof *m.held_pins);
    m.held_pin_count = 1;
    m.held_pins[0] = (struct held_pin){.volume = other, .pin = id_of(60)};
    m.condemned = xcalloc(2, sizeof *m.condemned);
    m.condemned_count = 2;
    m.condemned[0] = (struct condemned_range){.kind = OBJ_LOG, .first = 1, .count = 99};
    m.condemned[1] = (struct condemned_range){.kind = OBJ_MAP, .count = 1, .id = id_of(61)};
    return m;
}

static void test_manifest(void **state) {
    (void)state;
    struct manifest m = some_manifest(), back, copy;
    CLEANUP_BUF struct buf a = {0};
    CLEANUP_BUF struct buf b = {0};
    assert_int_equal(manifest_encode(&a, &m, NULL), 0);
    struct err e = {0};
    if (manifest_decode(&back, 9, buf_view(&a), &e) < 0)
        fail_msg("%s", e.text);
    assert_true(back.number == 9 && back.epoch == m.epoch && back.size_bytes == m.size_bytes);
    assert_true(back.last_write == 77 && back.closed && !back.deleted && back.depth == 2);
    assert_true(random_id_equal(&back.nonce, &m.nonce));
    assert_true(random_id_equal(&back.journal, &m.journal));
    assert_int_equal(back.root.volume_count, 2);
    assert_true(obj_ref_equal(&back.root.runs[1].index, &m.root.runs[1].index));
    assert_true(back.root.runs[1].age == 99);
    assert_true(back.root.tail[1].first == 100 && back.root.tail[0].volume == 1);
    assert_true(obj_ref_equal(&back.root.evacuated[1], &m.root.evacuated[1]));
    assert_true(random_id_equal(&back.held_pins[0].pin, &m.held_pins[0].pin));
    assert_true(back.condemned[0].count == 99 && back.condemned[1].kind == OBJ_MAP);
    copy = manifest_next(&back);
    manifest_release(&back);
    assert_true(copy.number == m.number + 1);
    copy.number--;
    assert_int_equal(manifest_encode(&b, &copy, NULL), 0);
    assert_true(view_equal(buf_view(&a), buf_view(&b)));
    manifest_release(&copy);
    manifest_release(&m);
}

static void test_manifest_damage(void **state) {
    (void)state;
    struct manifest m = some_manifest(), back;
    CLEANUP_BUF struct buf a = {0};
    assert_int_equal(manifest_encode(&a, &m, NULL), 0);
    manifest_release(&m);
    for (size_t len = 0; len < a.len; len++) {
        uint8_t *exact = xmalloc(len + 1);
        memcpy(exact, a.data, len);
        assert_int_equal(manifest_decode(&back, 9, view_of(exact, len), NULL), -ERR_CORRUPT);
        free(exact);
    }
    for (size_t bit = 0; bit < a.len * 8; bit++) {
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_true(manifest_decode(&back, 9, buf_view(&a), NULL) < 0);
        a.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

/* body: an object without its closing brace, to which a right checksum is added. */
static int decode_text(const char *body) {
    CLEANUP_BUF struct buf b = {0};
    struct manifest m;
    buf_printf(&b, "%s}", body); /* sorted and compact already */
    uint32_t crc = crc32c(buf_view(&b));
    const char *at = strstr(body, "\"deleted\"");
    assert_non_null(at);
    buf_clear(&b);
    buf_printf(&b, "%.*s\"crc\":%u,%s}", (int)(at - body), body, crc, at);
    int rc = manifest_decode(&m, 1, buf_view(&b), NULL);
    if (rc == 0)
        manifest_release(&m);
    return rc;
}

#define HEAD "{\"block_size\":4096,\"closed\":false,\"condemned\":[],"
#define MID(format, extra)                                                                         \
    "\"deleted\":false,\"depth\":0," extra "\"format\":" format                                    \
    ",\"held_pins\":[],\"journal\":\"00000000000000000000000000000000\",\"last_write\":0,"         \
    "\"nonce\":\"00000000000000000000000000000001\",\"open_count\":1,\"publish_epoch\":0,"
#define ROOT(seq, tail)                                                                            \
    "\"root\":{\"evacuated\":[],\"next_seq\":" seq ",\"runs\":[],\"tail\":" tail                   \
    ",\"volumes\":[\"pv-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1\"]},"
#define TAIL(size) "\"size\":" size ",\"type\":\"manifest\""

static void test_strict(void **state) {
    (void)state;
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("1", "[]") TAIL("4096")), 0);
    assert_int_equal(decode_text(HEAD MID("2", "") ROOT("1", "[]") TAIL("4096")), -ERR_UNSUPPORTED);
    assert_int_equal(decode_text(HEAD MID("1", "\"extra\":1,") ROOT("1", "[]") TAIL("4096")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("0", "[]") TAIL("4096")), -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("9223372036854775808", "[]") TAIL("4096")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("1.0", "[]") TAIL("4096")), -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("5", "[[0,1,4]]") TAIL("4096")), 0);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("5", "[[0,1,5]]") TAIL("4096")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("5", "[[1,1,4]]") TAIL("4096")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("5", "[[0,0,1]]") TAIL("4096")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("5", "[[[[[[[1]]]]]]]") TAIL("4096")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("1", "[]") TAIL("0")), -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("1", "[]") TAIL("512")), -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("1", "[]") TAIL("1152921504606851072")),
                     -ERR_CORRUPT);
    assert_int_equal(decode_text(HEAD MID("1", "") ROOT("1", "[]") "\"size\":4096," TAIL("4096")),
                     -ERR_CORRUPT);
}

static void test_depth_bomb(void **state) {
    (void)state;
    uint8_t *deep = xmalloc(MANIFEST_SIZE_MAX + 1);
    struct manifest m;
    memset(deep, '[', MANIFEST_SIZE_MAX + 1);
    assert_int_equal(manifest_decode(&m, 1, view_of(deep, MANIFEST_SIZE_MAX), NULL), -ERR_CORRUPT);
    assert_int_equal(manifest_decode(&m, 1, view_of(deep, MANIFEST_SIZE_MAX + 1), NULL),
                     -ERR_CORRUPT);
    free(deep);
}

/* The largest lists that format 1 allows fit a manifest; one more is refused. */
static void test_limits(void **state) {
    (void)state;
    struct volume_key own = key_of('a', 1);
    struct manifest m = {.size_bytes = 4096, .block_size = 4096}, back;
    root_init(&m.root, &own);
    m.root.next_seq = INT64_MAX;
    for (uint64_t i = 0; i < ROOT_TAIL_MAX; i++)
        add_tail(&m.root, 0, 1 + (UINT64_C(1) << 40) + i * 8, 4);
    m.condemned_count = ROOT_LIST_MAX;
    m.condemned = xcalloc(ROOT_LIST_MAX, sizeof *m.condemned);
    for (size_t i = 0; i < ROOT_LIST_MAX; i++)
        m.condemned[i] = (struct condemned_range){.kind = OBJ_MAP, .count = 1, .id = id_of(7)};
    CLEANUP_BUF struct buf a = {0};
    assert_int_equal(manifest_encode(&a, &m, NULL), 0);
    assert_int_equal(manifest_decode(&back, 1, buf_view(&a), NULL), 0);
    assert_int_equal(back.root.tail_count, ROOT_TAIL_MAX);
    manifest_release(&back);
    add_tail(&m.root, 0, 1, 1);
    assert_int_equal(manifest_encode(&a, &m, NULL), -ERR_OVERLOAD);
    manifest_release(&m);
}

static void test_volume_table_full(void **state) {
    (void)state;
    struct volume_key own = key_of('a', 1);
    struct root r;
    root_init(&r, &own);
    for (uint64_t i = 2; i <= ROOT_VOLUMES_MAX; i++) {
        struct volume_key k = key_of('a', i);
        assert_int_equal(root_volume_index(&r, &k, NULL), (int)i - 1);
    }
    struct volume_key one_more = key_of('b', 1);
    assert_int_equal(root_volume_index(&r, &one_more, NULL), -ERR_OVERLOAD);
    root_release(&r);
}

static void test_pins(void **state) {
    (void)state;
    struct volume_key own = key_of('c', 4);
    struct pin_claim c = {.pin = id_of(3), .nonce = id_of(4), .created_ms = 12345}, c_back;
    key_snapshot(c.commit.key, "0123456789abcdef0123456789abcdef", 5);
    CLEANUP_BUF struct buf a = {0};
    pin_claim_encode(&a, &c);
    assert_int_equal(pin_claim_decode(&c_back, buf_view(&a), NULL), 0);
    assert_string_equal(c_back.commit.key, c.commit.key);
    assert_true(random_id_equal(&c_back.pin, &c.pin) && c_back.created_ms == 12345);

    struct pin_root p = {.pin = id_of(3),
                         .nonce = id_of(5),
                         .size_bytes = 1 << 20,
                         .block_size = 4096,
                         .depth = 1},
                    back;
    p.commit.is_clone = true;
    key_manifest(p.commit.key, &own, 1);
    root_init(&p.root, &own);
    buf_clear(&a);
    assert_int_equal(pin_root_encode(&a, &p, NULL), 0);
    assert_int_equal(pin_root_decode(&back, buf_view(&a), NULL), 0);
    assert_true(back.commit.is_clone && !back.expired && back.size_bytes == 1 << 20);
    assert_string_equal(back.root.volumes[0].text, own.text);
    pin_root_release(&back);
    p.expired = true;
    buf_clear(&a);
    assert_int_equal(pin_root_encode(&a, &p, NULL), 0);
    assert_int_equal(pin_root_decode(&back, buf_view(&a), NULL), 0);
    assert_true(back.expired && back.root.volumes == NULL);
    pin_root_release(&back);
    pin_root_release(&p);
}

/* A commit key names a snapshot record or a first manifest and nothing else. */
static void test_commit_keys(void **state) {
    (void)state;
    static const char *const bad[] = {
        "portalbd.json",
        "records/0123456789abcdef0123456789abcdef/fffffffffffffffe.json",
        "snapshots/../0123456789abcdef0123456789ab/fffffffffffffffe.json",
        "snapshots/0123456789abcdef0123456789abcdef0/fffffffffffffffe.json",
        "snapshots/0123456789abcdef/fffffffffffffffe.json",
        "snapshots/0123456789abcdef0123456789abcdef/x/fffffffffffffffe.json",
        "volumes/pv-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-1/manifest/fffffffffffffffe.json",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        CLEANUP_BUF struct buf a = {0};
        CLEANUP_BUF struct buf crc = {0};
        struct pin_claim back;
        buf_printf(&crc,
                   "{\"clone\":false,\"commit\":\"%s\",\"created_ms\":0,\"format\":1,\"nonce\":"
                   "\"00000000000000000000000000000001\",\"pin\":"
                   "\"00000000000000000000000000000001\",\"type\":\"pin-claim\"}",
                   bad[i]);
        buf_printf(&a, "{\"crc\":%u,%s", crc32c(buf_view(&crc)), buf_cstr(&crc) + 1);
        struct err e = {0};
        assert_int_equal(pin_claim_decode(&back, buf_view(&a), &e), -ERR_CORRUPT);
        assert_non_null(strstr(e.text, "commit"));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_manifest), cmocka_unit_test(test_manifest_damage),
        cmocka_unit_test(test_strict),   cmocka_unit_test(test_depth_bomb),
        cmocka_unit_test(test_limits),   cmocka_unit_test(test_volume_table_full),
        cmocka_unit_test(test_pins),     cmocka_unit_test(test_commit_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
