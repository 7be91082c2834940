/* The handshake, byte by byte: what a client says and what it must hear. */
#include "tests/support/test.h"

#include <stdlib.h>

#include "common/bytes.h"
#include "portalbd/nbd/handshake.h"

struct session {
    struct nbd_handshake h;
    struct buf in, out;
    size_t out_read;
    enum nbd_handshake_event event;
};

static const struct nbd_export export_rw = {
    .size_bytes = 1 << 20, .block_size_min = 512, .block_size_preferred = 4096, .description = "d"};

static void start(struct session *s, bool list_denied) {
    *s = (struct session){0};
    nbd_handshake_init(&s->h, list_denied, &s->out);
    assert_int_equal(s->out.len, NBD_GREETING_SIZE);
    assert_true(load_be64(s->out.data) == NBD_MAGIC);
    assert_true(load_be64(s->out.data + 8) == NBD_OPTION_MAGIC);
    assert_int_equal(load_be16(s->out.data + 16), 3);
    s->out_read = NBD_GREETING_SIZE;
}

static void end(struct session *s) {
    buf_release(&s->in);
    buf_release(&s->out);
}

/* Steps until something other than MORE happens or the input is used up. */
static enum nbd_handshake_event run(struct session *s) {
    size_t off = 0;
    do {
        size_t used;
        s->event =
            nbd_handshake_step(&s->h, view_of(s->in.data + off, s->in.len - off), &used, &s->out);
        off += used;
        if (s->event == NBD_HANDSHAKE_MORE && used == 0)
            break;
    } while (s->event == NBD_HANDSHAKE_MORE);
    memmove(s->in.data, s->in.data + off, s->in.len - off);
    s->in.len -= off;
    return s->event;
}

static void put32(struct buf *b, uint32_t v) {
    store_be32(buf_extend(b, 4), v);
}

static void put16(struct buf *b, uint16_t v) {
    store_be16(buf_extend(b, 2), v);
}

static enum nbd_handshake_event flags(struct session *s, uint32_t value) {
    put32(&s->in, value);
    return run(s);
}

static void put_option(struct session *s, uint32_t option, const void *data, size_t len) {
    store_be64(buf_extend(&s->in, 8), NBD_OPTION_MAGIC);
    put32(&s->in, option);
    put32(&s->in, (uint32_t)len);
    buf_append(&s->in, data, len);
}

static enum nbd_handshake_event option(struct session *s, uint32_t opt, const void *data,
                                       size_t len) {
    put_option(s, opt, data, len);
    return run(s);
}

static enum nbd_handshake_event go(struct session *s, uint32_t opt, const char *name,
                                   unsigned infos) {
    struct buf b = {0};
    put32(&b, (uint32_t)strlen(name));
    buf_append_str(&b, name);
    put16(&b, (uint16_t)infos);
    for (unsigned i = 0; i < infos; i++)
        put16(&b, (uint16_t)i);
    enum nbd_handshake_event event = option(s, opt, b.data, b.len);
    buf_release(&b);
    return event;
}

static enum nbd_handshake_event meta(struct session *s, uint32_t opt, const char *name,
                                     const char *query) {
    struct buf b = {0};
    put32(&b, (uint32_t)strlen(name));
    buf_append_str(&b, name);
    put32(&b, query ? 1 : 0);
    if (query) {
        put32(&b, (uint32_t)strlen(query));
        buf_append_str(&b, query);
    }
    enum nbd_handshake_event event = option(s, opt, b.data, b.len);
    buf_release(&b);
    return event;
}

/* The next reply must be of this option and type; returns its data. */
static struct view expect(struct session *s, uint32_t opt, uint32_t type) {
    assert_true(s->out.len - s->out_read >= 20);
    const uint8_t *p = s->out.data + s->out_read;
    assert_true(load_be64(p) == NBD_OPTION_REPLY_MAGIC);
    assert_int_equal(load_be32(p + 8), opt);
    assert_int_equal(load_be32(p + 12), type);
    uint32_t len = load_be32(p + 16);
    assert_true(s->out.len - s->out_read - 20 >= len);
    s->out_read += 20 + len;
    return view_of(p + 20, len);
}

static void expect_nothing(struct session *s) {
    assert_int_equal(s->out.len, s->out_read);
}

static void test_go_gives_all_infos(void **state) {
    (void)state;
    struct session s;
    start(&s, false);
    assert_int_equal(flags(&s, 3), NBD_HANDSHAKE_MORE);
    option(&s, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect(&s, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    assert_int_equal(go(&s, NBD_OPT_GO, "vol", 4), NBD_HANDSHAKE_OPEN);
    assert_string_equal(s.h.name, "vol");
    assert_true(nbd_handshake_opens_to_serve(&s.h));
    expect_nothing(&s);
    assert_int_equal(nbd_handshake_opened(&s.h, &export_rw, &s.out), NBD_HANDSHAKE_READY);

    struct view v = expect(&s, NBD_OPT_GO, NBD_REP_INFO);
    assert_int_equal(v.len, 12);
    assert_int_equal(load_be16(v.data), NBD_INFO_EXPORT);
    assert_int_equal(load_be64(v.data + 2), 1 << 20);
    /* has-flags, flush, FUA, trim, zeroes, DF, multi-conn, cache, fast-zero */
    assert_int_equal(load_be16(v.data + 10), 1 | 4 | 8 | 32 | 64 | 128 | 256 | 1024 | 2048);
    v = expect(&s, NBD_OPT_GO, NBD_REP_INFO);
    assert_memory_equal(v.data, "\0\1vol", 5);
    v = expect(&s, NBD_OPT_GO, NBD_REP_INFO);
    assert_memory_equal(v.data, "\0\2d", 3);
    v = expect(&s, NBD_OPT_GO, NBD_REP_INFO);
    assert_int_equal(load_be16(v.data), NBD_INFO_BLOCK_SIZE);
    assert_int_equal(load_be32(v.data + 2), 512);
    assert_int_equal(load_be32(v.data + 6), 4096);
    assert_int_equal(load_be32(v.data + 10), 32 << 20);
    expect(&s, NBD_OPT_GO, NBD_REP_ACK);
    expect_nothing(&s);
    assert_true(s.h.structured_replies);
    assert_false(s.h.context_allocation);
    end(&s);
}

static void test_info_goes_on(void **state) {
    (void)state;
    struct session s;
    start(&s, false);
    flags(&s, 3);
    assert_int_equal(go(&s, NBD_OPT_INFO, "", 0), NBD_HANDSHAKE_OPEN);
    assert_false(nbd_handshake_opens_to_serve(&s.h));
    struct nbd_export ro = export_rw;
    ro.read_only = true;
    assert_int_equal(nbd_handshake_opened(&s.h, &ro, &s.out), NBD_HANDSHAKE_MORE);
    struct view v = expect(&s, NBD_OPT_INFO, NBD_REP_INFO);
    assert_int_equal(load_be16(v.data + 10), 1 | 2 | 4 | 256 | 1024); /* no DF, nothing writes */
    expect(&s, NBD_OPT_INFO, NBD_REP_ACK);
    expect_nothing(&s);

    /* What is not there: a sentence, and the handshake goes on. */
    assert_int_equal(go(&s, NBD_OPT_GO, "other", 0), NBD_HANDSHAKE_OPEN);
    struct err e;
    err_set_text(&e, -ERR_NOT_FOUND, "no volume 'other'");
    assert_int_equal(nbd_handshake_refused(&s.h, &e, &s.out), NBD_HANDSHAKE_MORE);
    v = expect(&s, NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
    assert_memory_equal(v.data, "no volume 'other'", v.len);
    assert_int_equal(option(&s, NBD_OPT_ABORT, NULL, 0), NBD_HANDSHAKE_CLOSE);
    expect(&s, NBD_OPT_ABORT, NBD_REP_ACK);
    end(&s);
}

static void test_export_name(void **state) {
    (void)state;
    for (unsigned no_zeroes = 0; no_zeroes < 2; no_zeroes++) {
        struct session s;
        start(&s, false);
        flags(&s, no_zeroes ? NBD_FLAG_NO_ZEROES : 0); /* not even fixed newstyle */
        assert_int_equal(option(&s, NBD_OPT_EXPORT_NAME, "vol", 3), NBD_HANDSHAKE_OPEN);
        assert_int_equal(nbd_handshake_opened(&s.h, &export_rw, &s.out), NBD_HANDSHAKE_READY);
        assert_int_equal(s.out.len - s.out_read, no_zeroes ? 10 : 134);
        assert_int_equal(load_be64(s.out.data + s.out_read), 1 << 20);
        end(&s);
        start(&s, false);
        flags(&s, 3);
        option(&s, NBD_OPT_EXPORT_NAME, "vol", 3);
        struct err e;
        err_set_text(&e, -ERR_NOT_FOUND, "no");
        assert_int_equal(nbd_handshake_refused(&s.h, &e, &s.out), NBD_HANDSHAKE_CLOSE);
        expect_nothing(&s);
        end(&s);
    }
}

static void test_list(void **state) {
    (void)state;
    struct session s;
    start(&s, false);
    flags(&s, 3);
    assert_int_equal(option(&s, NBD_OPT_LIST, "x", 1), NBD_HANDSHAKE_MORE);
    expect(&s, NBD_OPT_LIST, NBD_REP_ERR_INVALID);
    assert_int_equal(option(&s, NBD_OPT_LIST, NULL, 0), NBD_HANDSHAKE_LIST);
    const struct nbd_list_entry entries[] = {{"a", "first"}, {"b", NULL}};
    assert_int_equal(nbd_handshake_listed(&s.h, entries, 2, &s.out), NBD_HANDSHAKE_MORE);
    struct view v = expect(&s, NBD_OPT_LIST, NBD_REP_SERVER);
    assert_int_equal(v.len, 10);
    assert_memory_equal(v.data, "\0\0\0\1afirst", 10);
    v = expect(&s, NBD_OPT_LIST, NBD_REP_SERVER);
    assert_memory_equal(v.data, "\0\0\0\1b", 5);
    expect(&s, NBD_OPT_LIST, NBD_REP_ACK);
    end(&s);
    start(&s, true);
    flags(&s, 3);
    option(&s, NBD_OPT_LIST, NULL, 0);
    expect(&s, NBD_OPT_LIST, NBD_REP_ERR_POLICY);
    end(&s);
}

static void test_meta_context(void **state) {
    (void)state;
    struct session s;
    start(&s, false);
    flags(&s, 3);
    meta(&s, NBD_OPT_SET_META_CONTEXT, "vol", "base:allocation");
    expect(&s, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID); /* structured replies first */
    option(&s, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
    expect(&s, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);

    const char *const lists[] = {NULL, "base:", "base:allocation"};
    for (size_t i = 0; i < ARRAY_LEN(lists); i++) {
        meta(&s, NBD_OPT_LIST_META_CONTEXT, "vol", lists[i]);
        struct view v = expect(&s, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
        assert_memory_equal(v.data + 4, "base:allocation", 15);
        expect(&s, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
    }
    const char *const none[] = {NULL, "base:", "base:other", "qemu:dirty-bitmap:x", ""};
    for (size_t i = 0; i < ARRAY_LEN(none); i++) {
        meta(&s, NBD_OPT_SET_META_CONTEXT, "vol", none[i]);
        expect(&s, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
        expect_nothing(&s);
    }
    meta(&s, NBD_OPT_SET_META_CONTEXT, "vol", "base:allocation");
    struct view v = expect(&s, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
    assert_int_equal(load_be32(v.data), NBD_CONTEXT_ALLOCATION_ID);
    expect(&s, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    go(&s, NBD_OPT_GO, "vol", 0);
    nbd_handshake_opened(&s.h, &export_rw, &s.out);
    assert_true(s.h.context_allocation);
    end(&s);
}

/* I3: it holds for its export name only, and a failed one takes away what was set. */
static void test_meta_context_is_replaced(void **state) {
    (void)state;
    for (unsigned how = 0; how < 3; how++) {
        struct session s;
        start(&s, false);
        flags(&s, 3);
        option(&s, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        meta(&s, NBD_OPT_SET_META_CONTEXT, "vol", "base:allocation");
        if (how == 0)
            meta(&s, NBD_OPT_SET_META_CONTEXT, "vol", NULL);
        if (how == 1)
            option(&s, NBD_OPT_SET_META_CONTEXT, "\0\0\0\5", 4);
        go(&s, NBD_OPT_GO, how == 2 ? "other" : "vol", 0);
        assert_int_equal(nbd_handshake_opened(&s.h, &export_rw, &s.out), NBD_HANDSHAKE_READY);
        assert_false(s.h.context_allocation);
        end(&s);
    }
}

/* Options that are wrong and what they get; the handshake goes on after each. */
static void test_malformed_options(void **state) {
    (void)state;
    static const struct {
        uint32_t option;
        const char *data;
        size_t len;
        uint32_t reply;
    } cases[] = {
        {NBD_OPT_GO, "", 0, NBD_REP_ERR_INVALID},
        {NBD_OPT_GO, "\0\0\0", 3, NBD_REP_ERR_INVALID},
        {NBD_OPT_GO, "\0\0\0\4abc\0\0", 9, NBD_REP_ERR_INVALID},            /* name and no count */
        {NBD_OPT_GO, "\xff\xff\xff\xff\0\0", 6, NBD_REP_ERR_INVALID},       /* length overflows */
        {NBD_OPT_GO, "\0\0\0\1a\0\1", 7, NBD_REP_ERR_INVALID},              /* info missing */
        {NBD_OPT_GO, "\0\0\0\1a\0\0\0\0", 9, NBD_REP_ERR_INVALID},          /* one too many */
        {NBD_OPT_GO, "\0\0\0\1\0\0\0", 7, NBD_REP_ERR_INVALID},             /* NUL in the name */
        {NBD_OPT_INFO, "\0\0\0\2\xc0\x80\0\0", 8, NBD_REP_ERR_INVALID},     /* overlong UTF-8 */
        {NBD_OPT_INFO, "\0\0\0\3\xed\xa0\x80\0\0", 9, NBD_REP_ERR_INVALID}, /* surrogate */
        {NBD_OPT_STRUCTURED_REPLY, "x", 1, NBD_REP_ERR_INVALID},
        {NBD_OPT_STARTTLS, "", 0, NBD_REP_ERR_UNSUP},
        {NBD_OPT_STARTTLS, "x", 1, NBD_REP_ERR_INVALID},
        {4, "", 0, NBD_REP_ERR_UNSUP},
        {11, "", 0, NBD_REP_ERR_UNSUP}, /* extended headers */
        {0, "abc", 3, NBD_REP_ERR_UNSUP},
        {0xffffffff, "", 0, NBD_REP_ERR_UNSUP},
    };
    struct session s;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        start(&s, false);
        flags(&s, 3);
        assert_int_equal(option(&s, cases[i].option, cases[i].data, cases[i].len),
                         NBD_HANDSHAKE_MORE);
        expect(&s, cases[i].option, cases[i].reply);
        expect_nothing(&s);
        assert_int_equal(go(&s, NBD_OPT_GO, "vol", 0), NBD_HANDSHAKE_OPEN);
        end(&s);
    }
}

static void test_malformed_queries(void **state) {
    (void)state;
    static const struct {
        const char *data;
        size_t len;
    } cases[] = {
        {"", 0},
        {"\0\0\0\1a", 5},                           /* no count */
        {"\0\0\0\1a\0\0\0\1", 9},                   /* a query that is not there */
        {"\0\0\0\1a\xff\xff\xff\xff", 9},           /* four billion of them */
        {"\0\0\0\1a\0\0\0\1\0\0\0\5base", 17},      /* shorter than it says */
        {"\0\0\0\1a\0\0\0\1\0\0\0\4base!", 18},     /* longer */
        {"\0\0\0\1a\0\0\0\1\xff\xff\xff\xff!", 14}, /* length overflows */
        {"\0\0\0\1a\0\0\0\1\0\0\0\1\0", 14},        /* NUL */
    };
    struct session s;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        start(&s, false);
        flags(&s, 3);
        option(&s, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        s.out_read = s.out.len;
        option(&s, NBD_OPT_SET_META_CONTEXT, cases[i].data, cases[i].len);
        expect(&s, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
        expect_nothing(&s);
        end(&s);
    }
}

static void test_limits(void **state) {
    (void)state;
    struct session s;
    start(&s, false); /* unknown client flags */
    assert_int_equal(flags(&s, 4 | 3), NBD_HANDSHAKE_CLOSE);
    end(&s);

    start(&s, false); /* not an option at all */
    flags(&s, 3);
    memset(buf_extend(&s.in, 16), 0, 16);
    assert_int_equal(run(&s), NBD_HANDSHAKE_CLOSE);
    end(&s);

    start(&s, false); /* a client without fixed newstyle knows no replies */
    flags(&s, 0);
    assert_int_equal(option(&s, NBD_OPT_LIST, NULL, 0), NBD_HANDSHAKE_CLOSE);
    expect_nothing(&s);
    end(&s);

    uint8_t *big = xcalloc(1, NBD_OPTION_SKIP_MAX + 1);
    start(&s, false); /* too long: read over and refused; the largest that is not */
    flags(&s, 3);
    assert_int_equal(option(&s, 77, big, NBD_OPTION_PAYLOAD_MAX + 1), NBD_HANDSHAKE_MORE);
    expect(&s, 77, NBD_REP_ERR_TOO_BIG);
    option(&s, 77, big, NBD_OPTION_PAYLOAD_MAX);
    expect(&s, 77, NBD_REP_ERR_UNSUP);
    assert_int_equal(option(&s, 77, big, NBD_OPTION_SKIP_MAX + 1), NBD_HANDSHAKE_CLOSE);
    end(&s);

    start(&s, false); /* a name that is too long */
    flags(&s, 3);
    memset(big, 'a', NBD_STRING_MAX + 1);
    assert_int_equal(option(&s, NBD_OPT_EXPORT_NAME, big, NBD_STRING_MAX + 1), NBD_HANDSHAKE_CLOSE);
    end(&s);
    start(&s, false);
    flags(&s, 3);
    big[NBD_STRING_MAX] = '\0';
    assert_int_equal(go(&s, NBD_OPT_GO, (char *)big, 0), NBD_HANDSHAKE_OPEN);
    assert_string_equal(s.h.name, (char *)big);
    end(&s);
    free(big);

    start(&s, false); /* too many options */
    flags(&s, 3);
    for (unsigned i = 0; i < NBD_OPTIONS_MAX; i++)
        assert_int_equal(option(&s, 99, NULL, 0), NBD_HANDSHAKE_MORE);
    assert_int_equal(option(&s, 99, NULL, 0), NBD_HANDSHAKE_CLOSE);
    end(&s);
}

/* The same session byte by byte, and all of it in one piece. */
static void test_any_split(void **state) {
    (void)state;
    struct session whole, s;
    for (unsigned step = 0; step < 2; step++) {
        struct session *x = step ? &s : &whole;
        start(x, false);
        struct buf script = {0};
        put32(&x->in, 3);
        put_option(x, NBD_OPT_STRUCTURED_REPLY, NULL, 0);
        put_option(x, NBD_OPT_SET_META_CONTEXT, "\0\0\0\1v\0\0\0\1\0\0\0\17base:allocation", 28);
        put_option(x, 55, "abcdef", 6);
        put_option(x, NBD_OPT_GO, "\0\0\0\1v\0\1\0\3", 9);
        if (step) {
            script = x->in;
            x->in = (struct buf){0};
            for (size_t i = 0; i < script.len; i++) {
                assert_true(i == 0 || x->event == NBD_HANDSHAKE_MORE);
                buf_append(&x->in, script.data + i, 1);
                run(x);
            }
            buf_release(&script);
        } else {
            run(x);
        }
        assert_int_equal(x->event, NBD_HANDSHAKE_OPEN);
        nbd_handshake_opened(&x->h, &export_rw, &x->out);
        assert_true(x->h.context_allocation);
    }
    assert_true(view_equal(buf_view(&whole.out), buf_view(&s.out)));
    end(&whole);
    end(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_go_gives_all_infos),
        cmocka_unit_test(test_info_goes_on),
        cmocka_unit_test(test_export_name),
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_meta_context),
        cmocka_unit_test(test_meta_context_is_replaced),
        cmocka_unit_test(test_malformed_options),
        cmocka_unit_test(test_malformed_queries),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_any_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
