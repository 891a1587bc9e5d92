/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "manifest_read.h"

#include "fields.h"
#include "manifest.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>

#define READ_BYTES (64u << 10)
/* A leaf of 64 MiB may have a span for each of its sectors, each of 120 characters; a list of 1,000 inputs with the
 * longest names takes 10 MiB. */
#define MAX_VALUE (32u << 20)

struct qm_manifest_reader {
    struct qm_file *file;
    unsigned char *buf;
    size_t n, i;       /* bytes in it, and the next one */
    uint64_t off;      /* of what comes into it next */
    QM_VEC(char) text; /* one value */
    struct json_object *head;
    struct json_object *leaf;
    enum { BEFORE, FIRST, INSIDE, BEHIND } at; /* of the leaves */
};

int
qm_manifest_bad(const struct qm_manifest_reader *r, const char *what, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_USAGE, qm_at(r->file->path, r->off - r->n + r->i),
                   "no manifest of qmeld, or a damaged one: %s", what);
}

/* ---- characters ---- */

/* -2: an error; -1: the end. */
static int
peek(struct qm_manifest_reader *r, struct qmeld_error *err)
{
    if (r->i < r->n)
        return r->buf[r->i];
    r->n = (size_t)qm_min(READ_BYTES, r->file->size - qm_min(r->off, r->file->size));
    r->i = 0;
    if (r->n == 0)
        return -1;
    if (qm_pread(r->file, r->off, r->buf, r->n, err) < 0)
        return -2;
    r->off += r->n;
    return r->buf[0];
}

/* The next that is no white space, not taken. */
static int
peek_word(struct qm_manifest_reader *r, struct qmeld_error *err)
{
    int c;

    while ((c = peek(r, err)) == ' ' || c == '\t' || c == '\n' || c == '\r')
        r->i++;
    return c;
}

static int
expect(struct qm_manifest_reader *r, char wanted, struct qmeld_error *err)
{
    const char what[] = {'"', wanted, '"', ' ', 'i', 's', ' ', 'm',
                         'i', 's',    's', 'i', 'n', 'g', '\0'};
    const int c = peek_word(r, err);

    if (c == -2)
        return -1;
    if (c != wanted)
        return qm_manifest_bad(r, what, err);
    r->i++;
    return 0;
}

/* ---- values ---- */

static bool
ends_word(int c)
{
    return c == ',' || c == ']' || c == '}' || c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The text of one value to r->text.  What it means is the parser's business. */
static int
collect(struct qm_manifest_reader *r, struct qmeld_error *err)
{
    bool quoted = false, escaped = false;
    unsigned depth = 0;

    qm_vec_clear(&r->text);
    if (peek_word(r, err) == -2)
        return -1;
    for (;;) {
        const int c = peek(r, err);
        const char byte = (char)c;

        if (c == -2)
            return -1;
        if (c == -1)
            return qm_manifest_bad(r, "it ends inside of a value", err);
        if (!quoted && depth == 0 && r->text.n > 0 && ends_word(c))
            return 0;
        if (r->text.n == MAX_VALUE)
            return qm_manifest_bad(r, "a value is longer than any that qmeld writes", err);
        if (!qm_vec_push(&r->text, &byte))
            return qm_fail_nomem(err, "a manifest");
        r->i++;
        if (quoted) {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '{' || c == '[') {
            depth++;
        } else if ((c == '}' || c == ']') && depth > 0) {
            depth--;
        }
        if (!quoted && depth == 0 && (c == '"' || c == '}' || c == ']'))
            return 0;
    }
}

static int
parse(struct qm_manifest_reader *r, struct json_object **out, struct qmeld_error *err)
{
    struct json_tokener *t;
    bool whole;

    *out = NULL;
    if (collect(r, err) < 0)
        return -1;
    t = json_tokener_new();
    if (!t)
        return qm_fail_nomem(err, "a manifest");
    json_tokener_set_flags(t, JSON_TOKENER_STRICT);
    *out = json_tokener_parse_ex(t, r->text.at, (int)r->text.n);
    if (json_tokener_get_error(t) == json_tokener_continue) /* a number does not tell its end */
        *out = json_tokener_parse_ex(t, "", 1);
    whole = json_tokener_get_error(t) == json_tokener_success;
    json_tokener_free(t);
    if (whole)
        return 0;
    json_object_put(*out);
    *out = NULL;
    return qm_manifest_bad(r, "a value is no JSON", err);
}

/* Members up to the leaves, or up to the end. */
static int
read_members(struct qm_manifest_reader *r, struct qmeld_error *err)
{
    for (;;) {
        struct json_object *name, *value, *old;
        int rc;

        if (parse(r, &name, err) < 0)
            return -1;
        if (!json_object_is_type(name, json_type_string) || expect(r, ':', err) < 0) {
            json_object_put(name);
            return err->what[0] ? -1 : qm_manifest_bad(r, "a name is missing", err);
        }
        if (r->at == BEFORE && strcmp(json_object_get_string(name), "leaves") == 0) {
            json_object_put(name);
            r->at = FIRST;
            return expect(r, '[', err);
        }
        rc = parse(r, &value, err);
        if (rc == 0 && json_object_object_get_ex(r->head, json_object_get_string(name), &old)) {
            json_object_put(value);
            rc = qm_manifest_bad(r, "a name comes twice", err);
        }
        if (rc == 0 && json_object_object_add(r->head, json_object_get_string(name), value) < 0)
            rc = qm_fail_nomem(err, "a manifest");
        json_object_put(name);
        if (rc < 0)
            return -1;
        rc = peek_word(r, err);
        if (rc != ',')
            return rc == -2 ? -1 : expect(r, '}', err);
        r->i++;
    }
}

/* ---- calls ---- */

static int
check_version(const struct qm_manifest_reader *r, struct qmeld_error *err)
{
    const char *kind = qm_field_word(r->head, "manifest");
    uint64_t version;

    if (!kind || strcmp(kind, "qmeld") != 0 || !qm_field_number(r->head, "version", &version))
        return qm_manifest_bad(r, "it does not say that it is one", err);
    if (version != QM_MANIFEST_VERSION)
        return qm_fail(err, QMELD_USAGE, qm_in(r->file->path),
                       "a manifest of version %" PRIu64 ": verify it with the qmeld that wrote it",
                       version);
    return r->at == FIRST ? 0 : qm_manifest_bad(r, "it has no leaves", err);
}

int
qm_manifest_open(const char *path, struct qm_manifest_reader **out, struct qmeld_error *err)
{
    struct qm_manifest_reader *r = calloc(1, sizeof *r);

    *out = NULL;
    if (!r)
        return qm_fail_nomem(err, "a manifest");
    r->buf = malloc(READ_BYTES);
    r->head = json_object_new_object();
    if (!r->buf || !r->head) {
        qm_manifest_close(r);
        return qm_fail_nomem(err, "a manifest");
    }
    if (qm_file_open(path, &r->file, err) < 0 || expect(r, '{', err) < 0 ||
        read_members(r, err) < 0 || check_version(r, err) < 0) {
        qm_manifest_close(r);
        return -1;
    }
    *out = r;
    return 0;
}

void
qm_manifest_close(struct qm_manifest_reader *r)
{
    if (!r)
        return;
    qm_file_close(r->file);
    json_object_put(r->head);
    json_object_put(r->leaf);
    qm_vec_release(&r->text);
    free(r->buf);
    free(r);
}

struct json_object *
qm_manifest_head(const struct qm_manifest_reader *r)
{
    return r->head;
}

int
qm_manifest_next_leaf(struct qm_manifest_reader *r, struct json_object **out,
                      struct qmeld_error *err)
{
    int c;

    *out = NULL;
    json_object_put(r->leaf);
    r->leaf = NULL;
    c = r->at == BEHIND ? -1 : peek_word(r, err);
    if (c == -2)
        return -1;
    if (r->at == BEHIND)
        return 0;
    if (c == ']') {
        r->i++;
        r->at = BEHIND;
        c = peek_word(r, err);
        if (c == -2)
            return -1;
        if (c != ',')
            return expect(r, '}', err);
        r->i++;
        return read_members(r, err);
    }
    if (r->at == INSIDE && expect(r, ',', err) < 0)
        return -1;
    r->at = INSIDE;
    if (parse(r, &r->leaf, err) < 0)
        return -1;
    if (!json_object_is_type(r->leaf, json_type_object))
        return qm_manifest_bad(r, "a leaf is no object", err);
    *out = r->leaf;
    return 0;
}

/* ---- members ---- */

static int
digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

char *
qm_manifest_name(struct json_object *j, const char *key)
{
    QM_FREE char *hex_key = NULL;
    const char *hex;
    char *out;
    size_t n;

    if (asprintf(&hex_key, "%s_hex", key) < 0) {
        hex_key = NULL;
        return NULL;
    }
    hex = qm_field_word(j, hex_key);
    if (!hex)
        return qm_field_word(j, key) ? strdup(qm_field_word(j, key)) : NULL;
    n = strlen(hex) / 2;
    out = calloc(1, n + 1);
    for (size_t i = 0; out && i < n; i++) {
        const int high = digit(hex[2 * i]), low = digit(hex[2 * i + 1]);

        out[i] = (char)(high < 0 || low < 0 ? '?' : high << 4 | low);
    }
    return out;
}
