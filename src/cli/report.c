/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * report.c - how results and failures leave the program.
 *
 * Names come out of images, which may be hostile: nothing of them reaches a terminal or a
 * JSON reader before it was made harmless here.
 */
#include "cli.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

/* Length of the UTF-8 sequence at s, 0 if it is none: overlong forms, surrogates and what lies
 * above U+10FFFF are none (RFC 3629). */
static size_t
utf8_length(const unsigned char *s)
{
    size_t n;
    uint32_t c;

    if (s[0] < 0x80)
        return 1;
    if (s[0] >= 0xc2 && s[0] <= 0xdf)
        n = 2;
    else if (s[0] >= 0xe0 && s[0] <= 0xef)
        n = 3;
    else if (s[0] >= 0xf0 && s[0] <= 0xf4)
        n = 4;
    else
        return 0;
    c = s[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) { /* the closing NUL is no continuation: stops here */
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        c = c << 6 | (s[i] & 0x3f);
    }
    if ((n == 3 && (c < 0x800 || (c >= 0xd800 && c <= 0xdfff))) ||
        (n == 4 && (c < 0x10000 || c > 0x10ffff)))
        return 0;
    return n;
}

void
qm_cli_no_memory(void)
{
    fputs("qmeld: out of memory\n", stderr);
    exit(QM_EXIT_FAILED);
}

static void *
allocate(size_t length)
{
    void *memory = malloc(length);

    if (!memory)
        qm_cli_no_memory();
    return memory;
}

/* Control characters: C0, DEL, and C1 in its two-byte form. */
static bool
is_control(const unsigned char *s)
{
    return s[0] < 0x20 || s[0] == 0x7f || (s[0] == 0xc2 && s[1] < 0xa0);
}

char *
qm_cli_quote(const char *name)
{
    const unsigned char *s = (const unsigned char *)name;
    char *quoted = allocate(strlen(name) * 4 + 1), *out = quoted;

    while (*s) {
        const size_t n = utf8_length(s);

        if (n > 0 && !is_control(s)) {
            memcpy(out, s, n);
            out += n;
            s += n;
        } else {
            out += snprintf(out, 5, "\\x%02x", *s++);
        }
    }
    *out = '\0';
    return quoted;
}

char *
qm_cli_shell_word(const char *name)
{
    char *word = allocate(strlen(name) * 4 + 3), *out = word;
    QM_CLI_FREE char *raw = word;
    const bool plain =
        *name && strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
                              "_-./+@%:,=") == strlen(name);

    if (!plain)
        *out++ = '\'';
    for (const char *s = name; *s; s++)
        if (*s == '\'')
            out = mempcpy(out, "'\\''", 4);
        else
            *out++ = *s;
    if (!plain)
        *out++ = '\'';
    *out = '\0';
    return qm_cli_quote(raw);
}

void
qm_cli_free(char **text)
{
    free(*text);
}

struct qm_cli_size
qm_cli_size(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    struct qm_cli_size size;
    unsigned unit = 0;
    uint64_t whole = bytes, tenths;

    while (whole >= 1024) {
        whole >>= 10;
        unit++;
    }
    if (unit == 0 || bytes == whole << (10 * unit)) {
        snprintf(size.text, sizeof size.text, "%" PRIu64 " %s", whole, units[unit]);
        return size;
    }
    tenths = ((bytes >> (10 * (unit - 1))) & 1023) * 10 / 1024; /* cut, never rounded up */
    if (whole >= 100)
        snprintf(size.text, sizeof size.text, "%" PRIu64 " %s", whole, units[unit]);
    else
        snprintf(size.text, sizeof size.text, "%" PRIu64 ".%" PRIu64 " %s", whole, tenths,
                 units[unit]);
    return size;
}

void
qm_cli_complain(const struct qmeld_error *err)
{
    QM_CLI_FREE char *file = qm_cli_quote(err->file);
    QM_CLI_FREE char *what = qm_cli_quote(err->what);

    if (*file)
        fprintf(stderr, "qmeld: %s: %s\n", file, what);
    else
        fprintf(stderr, "qmeld: %s\n", what);
}

int
qm_cli_exit_code(const struct qmeld_error *err)
{
    if (err->code == QMELD_CANCELED)
        return QM_EXIT_STOPPED;
    /* half-way it may be, but this call did nothing, and trying again at once will not help */
    if (err->code == QMELD_STALE || err->code == QMELD_BUSY)
        return QM_EXIT_REFUSED;
    if (err->disk != QMELD_DISK_OLD)
        return QM_EXIT_OPEN;
    if (err->code == QMELD_IO || err->code == QMELD_NOMEM)
        return QM_EXIT_FAILED;
    return QM_EXIT_REFUSED;
}

const char *
qm_cli_result_word(const struct qmeld_error *err)
{
    if (!err)
        return "done";
    return err->code == QMELD_CANCELED ? "stopped" : "failed";
}

int
qm_cli_fail(const struct qmeld_error *err)
{
    qm_cli_complain(err);
    return qm_cli_exit_code(err);
}

struct json_object *
qm_cli_json_string(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    QM_CLI_FREE char *clean = NULL;
    char *out;

    if (!text)
        return NULL;
    out = clean = allocate(strlen(text) * 3 + 1);
    while (*s) {
        const size_t n = utf8_length(s);

        memcpy(out, n ? (const char *)s : "\xef\xbf\xbd", n ? n : 3);
        out += n ? n : 3;
        s += n ? n : 1;
    }
    *out = '\0';
    return json_object_new_string(clean);
}

void
qm_cli_json_add(struct json_object *object, const char *key, struct json_object *value)
{
    json_object_object_add(object, key, value);
}

void
qm_cli_json_add_u64(struct json_object *object, const char *key, uint64_t value)
{
    json_object_object_add(object, key, json_object_new_uint64(value));
}

void
qm_cli_json_add_bool(struct json_object *object, const char *key, bool value)
{
    json_object_object_add(object, key, json_object_new_boolean(value));
}

struct json_object *
qm_cli_json_error(const struct qmeld_error *err)
{
    /* words of our own, not qmeld_code_name's: programs compare these, they never change */
    static const char *const codes[] = {"ok",   "usage", "io",    "corrupt", "unsupported",
                                        "busy", "stale", "nomem", "nospace", "canceled"};
    static const char *const disks[] = {"old", "open", "new"};
    struct json_object *object = json_object_new_object();

    qm_cli_json_add(object, "code", qm_cli_json_string(codes[err->code]));
    qm_cli_json_add(object, "disk", qm_cli_json_string(disks[err->disk]));
    if (err->file[0])
        qm_cli_json_add(object, "filename", qm_cli_json_string(err->file));
    if (err->has_off)
        qm_cli_json_add_u64(object, "offset", err->off);
    qm_cli_json_add(object, "message", qm_cli_json_string(err->what));
    return object;
}

void
qm_cli_json_print(struct json_object *value)
{
    puts(json_object_to_json_string_ext(value, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                   JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(value);
}
