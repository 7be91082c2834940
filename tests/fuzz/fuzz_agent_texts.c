/* libFuzzer: the texts that the node agent reads: attach files, mountinfo, metrics of daemons. Each
 * input is taken as all three. */
#include <stdlib.h>

#include "common/buf.h"
#include "node-agent/attach/mountinfo.h"
#include "node-agent/scrape.h"
#include "node-agent/state.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void as_attach_file(struct view in) {
    struct attach_state s, again;
    struct err e = {0};
    if (attach_state_decode(&s, in, &e) < 0) {
        CHECK(e.code == -ERR_CORRUPT);
        return;
    }
    CHECK(strlen(s.volume) < sizeof s.volume && strlen(s.backend) < sizeof s.backend);
    CHECK(!strchr(s.volume, '/'));
    CLEANUP_BUF struct buf text = {0};
    CLEANUP_BUF struct buf text_again = {0};
    attach_state_encode(&text, &s);
    CHECK(attach_state_decode(&again, buf_view(&text), &e) == 0);
    attach_state_encode(&text_again, &again);
    CHECK(view_equal(buf_view(&text), buf_view(&text_again)));
}

static bool check_entry(void *arg, const struct mountinfo_entry *m) {
    size_t *count = arg;
    CHECK(m->point[0] == '/' && strlen(m->point) < sizeof m->point);
    CHECK(m->type[0] && strlen(m->source) < sizeof m->source);
    return ++*count < 100;
}

static void as_metrics(struct view in) {
    struct scrape *s = scrape_new();
    CLEANUP_BUF struct buf out = {0};
    scrape_add(s, "v", in);
    scrape_add(s, "w", in);
    scrape_render(s, &out);
    CHECK(out.len <= 2 * in.len * 20 + 2);
    scrape_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    CLEANUP_FREE uint8_t *copy = xmalloc(size); /* of exactly this size */
    if (size)
        memcpy(copy, data, size);
    struct view in = view_of(copy, size);
    size_t count = 0;
    as_attach_file(in);
    mountinfo_each(in, check_entry, &count);
    as_metrics(in);
    return 0;
}
