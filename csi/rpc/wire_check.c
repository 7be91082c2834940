/* A walk over an encoded message along its descriptor. It allocates nothing and looks at each byte
 * a bounded number of times: once for each level of nesting. */
#include "csi/rpc/wire_check.h"

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
enum { FIELD_NUMBER_MAX = (1 << 29) - 1 };

/* Takes a varint off the front of v. */
static bool take_varint(struct view *v, uint64_t *ret) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70 && v->len > 0; shift += 7) {
        uint8_t b = v->data[0];
        *v = view_part(*v, 1, v->len - 1);
        if (shift == 63 && b > 1)
            return false;
        value |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) {
            *ret = value;
            return true;
        }
    }
    return false;
}

/* Bytes of the UTF-8 sequence at the front of text; 0 when it is not valid (Unicode, table 3-7) or
 * a NUL. */
static size_t utf8_sequence(struct view text) {
    const uint8_t *s = text.data;
    uint8_t lead = s[0];
    if (lead < 0x80)
        return lead != 0;
    if (lead < 0xc2 || lead > 0xf4)
        return 0;
    size_t len = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (text.len < len)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    bool overlong = (lead == 0xe0 && s[1] < 0xa0) || (lead == 0xf0 && s[1] < 0x90);
    bool surrogate = lead == 0xed && s[1] > 0x9f;
    bool beyond = lead == 0xf4 && s[1] > 0x8f;
    return overlong || surrogate || beyond ? 0 : len;
}

bool wire_text_valid(struct view text) {
    while (text.len > 0) {
        size_t n = utf8_sequence(text);
        if (n == 0)
            return false;
        text = view_part(text, n, text.len - n);
    }
    return true;
}

static const char *check_bytes_field(const ProtobufCFieldDescriptor *field, struct view value,
                                     int depth_max) {
    if (field && field->type == PROTOBUF_C_TYPE_STRING && !wire_text_valid(value))
        return "a string is not valid UTF-8 or holds a NUL";
    if (field && field->type == PROTOBUF_C_TYPE_MESSAGE)
        return wire_check(field->descriptor, value, depth_max - 1);
    return NULL;
}

const char *wire_check(const ProtobufCMessageDescriptor *type, struct view bytes, int depth_max) {
    if (depth_max <= 0)
        return "messages are nested too deeply";
    while (bytes.len > 0) {
        uint64_t key, value;
        if (!take_varint(&bytes, &key))
            return "a field's tag is cut off";
        if (key >> 3 == 0 || key >> 3 > FIELD_NUMBER_MAX)
            return "a field's number is out of range";
        size_t skip = 0;
        switch (key & 7) {
        case WIRE_VARINT:
            if (!take_varint(&bytes, &value))
                return "a number is cut off or too long";
            break;
        case WIRE_FIXED64:
            skip = 8;
            break;
        case WIRE_FIXED32:
            skip = 4;
            break;
        case WIRE_BYTES: {
            if (!take_varint(&bytes, &value) || value > bytes.len)
                return "a field is cut off";
            skip = (size_t)value;
            const char *why = check_bytes_field(
                protobuf_c_message_descriptor_get_field(type, (unsigned)(key >> 3)),
                view_part(bytes, 0, skip), depth_max);
            if (why)
                return why;
            break;
        }
        default:
            return "a field has an unknown wire type";
        }
        if (skip > bytes.len)
            return "a field is cut off";
        bytes = view_part(bytes, skip, bytes.len - skip);
    }
    return NULL;
}
