/* Logs are redacted by the field name `secrets`, because protoc-c drops the option csi_secret. This
 * proves on the descriptor set of the unmodified csi.proto that the name and the option mean the
 * same fields, and that our lists of methods are complete. */
#include "tests/support/test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <google/protobuf/descriptor.pb-c.h>

#include "common/buf.h"
#include "csi.pb-c.h"
#include "csi/rpc/wire_check.h"

enum { SECRETS_IN_CSI_1_12 = 19 };

/* csi_secret is extension 1059, a bool: tag 1059 << 3 = 0x2118, as a varint 98 42; true = 01. */
static bool is_marked(const Google__Protobuf__FieldOptions *options) {
    if (!options)
        return false;
    for (size_t i = 0; i < options->base.n_unknown_fields; i++) {
        const ProtobufCMessageUnknownField *f = &options->base.unknown_fields[i];
        if (f->tag == 1059)
            return f->len == 1 && f->data[0] == 1;
    }
    return false;
}

static void read_all(const char *path, struct buf *out) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    uint8_t bytes[4096];
    size_t n;
    while ((n = fread(bytes, 1, sizeof bytes, f)) > 0)
        buf_append(out, bytes, n);
    fclose(f);
}

static unsigned check_message(const Google__Protobuf__DescriptorProto *m) {
    unsigned secrets = 0;
    for (size_t i = 0; i < m->n_field; i++) {
        bool named = strcmp(m->field[i]->name, "secrets") == 0;
        bool marked = is_marked(m->field[i]->options);
        if (named != marked)
            fail_msg("%s.%s is %smarked csi_secret", m->name, m->field[i]->name,
                     marked ? "" : "not ");
        secrets += marked;
    }
    for (size_t i = 0; i < m->n_nested_type; i++)
        secrets += check_message(m->nested_type[i]);
    return secrets;
}

static void test_secrets_are_called_secrets(void **state) {
    (void)state;
    char path[] = "/tmp/portalbd-descriptor-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    char command[256];
    snprintf(command, sizeof command,
             "protoc -Iproto -I/usr/include --descriptor_set_out=%s proto/csi.proto", path);
    assert_int_equal(system(command), 0);
    CLEANUP_BUF struct buf bytes = {0};
    read_all(path, &bytes);
    unlink(path);
    Google__Protobuf__FileDescriptorSet *set =
        google__protobuf__file_descriptor_set__unpack(NULL, bytes.len, bytes.data);
    assert_non_null(set);
    unsigned secrets = 0;
    for (size_t i = 0; i < set->n_file; i++)
        for (size_t k = 0; k < set->file[i]->n_message_type; k++)
            secrets += check_message(set->file[i]->message_type[k]);
    assert_int_equal(secrets, SECRETS_IN_CSI_1_12);
    google__protobuf__file_descriptor_set__free_unpacked(set, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_secrets_are_called_secrets)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
