/* A message as one line of JSON for the log.
 *
 * Fields called `secrets` are printed as "***": all fields that csi.proto marks csi_secret have
 * that name, which tests/unit/csi/rpc/test_secrets.c proves on the descriptor set (protoc-c drops
 * the mark itself). agent.proto keeps to the same name. Empty fields are left out. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/buf.h"
#include "csi/rpc/rpc.h"

struct dump {
    struct buf *out;
    size_t limit; /* out->len must not pass it */
    bool full;
};

static void put(struct dump *d, const char *bytes, size_t len) {
    if (d->full || len > d->limit - d->out->len)
        d->full = true;
    else
        buf_append(d->out, bytes, len);
}

static void put_str(struct dump *d, const char *s) {
    put(d, s, strlen(s));
}

static void put_quoted(struct dump *d, const char *s) {
    put_str(d, "\"");
    for (; *s && !d->full; s++) {
        unsigned char c = (unsigned char)*s;
        char text[8];
        if (c == '"' || c == '\\')
            snprintf(text, sizeof text, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            snprintf(text, sizeof text, "\\u%04x", c);
        else
            snprintf(text, sizeof text, "%c", c);
        put_str(d, text);
    }
    put_str(d, "\"");
}

static void put_message(struct dump *d, const ProtobufCMessage *message);

static void put_value(struct dump *d, const ProtobufCFieldDescriptor *f, const void *value) {
    char text[32] = "\"?\"";
    switch (f->type) {
    case PROTOBUF_C_TYPE_STRING:
        put_quoted(d, *(char *const *)value ? *(char *const *)value : "");
        return;
    case PROTOBUF_C_TYPE_MESSAGE:
        put_message(d, *(const ProtobufCMessage *const *)value);
        return;
    case PROTOBUF_C_TYPE_BOOL:
        put_str(d, *(const protobuf_c_boolean *)value ? "true" : "false");
        return;
    case PROTOBUF_C_TYPE_ENUM: {
        const ProtobufCEnumValue *known =
            protobuf_c_enum_descriptor_get_value(f->descriptor, *(const int *)value);
        if (known) {
            put_quoted(d, known->name);
            return;
        }
        snprintf(text, sizeof text, "%d", *(const int *)value);
        break;
    }
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
        snprintf(text, sizeof text, "%" PRId32, *(const int32_t *)value);
        break;
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
        snprintf(text, sizeof text, "%" PRIu32, *(const uint32_t *)value);
        break;
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
        snprintf(text, sizeof text, "%" PRId64, *(const int64_t *)value);
        break;
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
        snprintf(text, sizeof text, "%" PRIu64, *(const uint64_t *)value);
        break;
    default: /* bytes and floating point: no service of ours has them */
        break;
    }
    put_str(d, text);
}

static size_t element_size(const ProtobufCFieldDescriptor *f) {
    switch (f->type) {
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_ENUM:
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return 4;
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    default:
        return 8;
    }
}

static void put_array(struct dump *d, const ProtobufCFieldDescriptor *f, const char *items,
                      size_t count) {
    put_str(d, "[");
    for (size_t i = 0; i < count && !d->full; i++) {
        if (i > 0)
            put_str(d, ",");
        put_value(d, f, items + i * element_size(f));
    }
    put_str(d, "]");
}

/* Is there anything to print? Sets the number of elements. */
static bool present(const ProtobufCFieldDescriptor *f, const char *base, size_t *count) {
    const char *value = base + f->offset;
    *count = 1;
    if (f->label == PROTOBUF_C_LABEL_REPEATED) {
        memcpy(count, base + f->quantifier_offset, sizeof *count);
        return *count > 0;
    }
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
        uint32_t chosen;
        memcpy(&chosen, base + f->quantifier_offset, sizeof chosen);
        return chosen == f->id;
    }
    switch (f->type) {
    case PROTOBUF_C_TYPE_MESSAGE:
        return *(void *const *)(const void *)value != NULL;
    case PROTOBUF_C_TYPE_STRING: {
        const char *s = *(char *const *)(const void *)value;
        return s && *s;
    }
    case PROTOBUF_C_TYPE_BYTES:
        return ((const ProtobufCBinaryData *)(const void *)value)->len > 0;
    default: {
        static const char zero[8];
        return memcmp(value, zero, element_size(f)) != 0;
    }
    }
}

static void put_message(struct dump *d, const ProtobufCMessage *message) {
    put_str(d, "{");
    const char *separator = "";
    for (unsigned i = 0; message && i < message->descriptor->n_fields && !d->full; i++) {
        const ProtobufCFieldDescriptor *f = &message->descriptor->fields[i];
        const char *base = (const char *)message;
        size_t count;
        if (!present(f, base, &count))
            continue;
        put_str(d, separator);
        separator = ",";
        put_quoted(d, f->name);
        put_str(d, ":");
        if (strcmp(f->name, "secrets") == 0)
            put_str(d, "\"***\"");
        else if (f->label == PROTOBUF_C_LABEL_REPEATED)
            put_array(d, f, *(const char *const *)(const void *)(base + f->offset), count);
        else
            put_value(d, f, base + f->offset);
    }
    put_str(d, "}");
}

void rpc_dump(struct buf *out, const ProtobufCMessage *message, size_t max) {
    static const char cut[] = "...";
    CHECK(max > sizeof cut);
    struct dump d = {.out = out, .limit = out->len + max - sizeof cut};
    put_message(&d, message);
    if (d.full)
        buf_append_str(out, cut);
}
