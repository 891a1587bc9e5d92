/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "manifest.h"

#include "journal.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#define BUFFER (256u << 10)

struct qm_manifest {
    struct qm_file *file;
    const struct qm_chain *chain;
    uint64_t size;
    uint64_t leaf;
    struct qm_digest *view; /* over all bytes, in order */
    struct qm_digest *digest;
    struct qm_tree tree;
    struct qm_sha256 zero; /* of a leaf of zeros */
    char *buf;
    size_t n;     /* bytes in it */
    uint64_t off; /* where they go */
    bool some;    /* a leaf has been written */
    bool broken;  /* no memory, somewhere */
};

/* ---- text ---- */

static int
flush(struct qm_manifest *m, struct qmeld_error *err)
{
    const size_t n = m->n;

    m->n = 0;
    if (n > 0 && qm_pwrite(m->file, m->off, m->buf, n, err) < 0)
        return -1;
    m->off += n;
    return 0;
}

static int
put(struct qm_manifest *m, const char *text, size_t len, struct qmeld_error *err)
{
    while (len > 0) {
        const size_t n = len < BUFFER - m->n ? len : BUFFER - m->n;

        memcpy(m->buf + m->n, text, n);
        m->n += n;
        text += n;
        len -= n;
        if (m->n == BUFFER && flush(m, err) < 0)
            return -1;
    }
    return 0;
}

/* Short texts: numbers and names of ours. */
static int putf(struct qm_manifest *m, struct qmeld_error *err, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static int
putf(struct qm_manifest *m, struct qmeld_error *err, const char *format, ...)
{
    char text[512];
    va_list args;
    int n;

    va_start(args, format);
    n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    assert(n >= 0 && (size_t)n < sizeof text);
    return put(m, text, (size_t)n, err);
}

/* Bytes that begin a character of UTF-8 (RFC 3629), or 0. */
static size_t
utf8_length(const unsigned char *s)
{
    const size_t n = s[0] < 0x80                   ? 1
                     : s[0] >= 0xc2 && s[0] < 0xe0 ? 2
                     : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
                     : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                                   : 0;

    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

/* Names are bytes, and JSON is characters: what is none becomes U+FFFD, and the bytes follow in hexadecimal. */
static struct json_object *
clean(const char *text, bool *out_changed)
{
    QM_FREE char *copy = malloc(3 * strlen(text) + 1);
    const unsigned char *s = (const unsigned char *)text;
    char *out = copy;

    *out_changed = false;
    if (!copy)
        return NULL;
    while (*s) {
        const size_t n = utf8_length(s);

        memcpy(out, n ? (const char *)s : "\xef\xbf\xbd", n ? n : 3);
        *out_changed = *out_changed || n == 0;
        out += n ? n : 3;
        s += n ? n : 1;
    }
    *out = '\0';
    return json_object_new_string(copy);
}

static struct json_object *
hex_of(const char *text)
{
    QM_FREE char *copy = malloc(2 * strlen(text) + 1);

    if (!copy)
        return NULL;
    copy[0] = '\0';
    for (size_t i = 0; text[i]; i++)
        (void)snprintf(copy + 2 * i, 3, "%02x", (unsigned char)text[i]);
    return json_object_new_string(copy);
}

static void
add_name(struct qm_manifest *m, struct json_object *j, const char *key, const char *text)
{
    QM_FREE char *hex_key = NULL;
    struct json_object *value;
    bool changed;

    if (!text)
        return;
    value = clean(text, &changed);
    m->broken = m->broken || !value || json_object_object_add(j, key, value) < 0;
    if (!changed || m->broken)
        return;
    if (asprintf(&hex_key, "%s_hex", key) < 0)
        hex_key = NULL;
    value = hex_of(text);
    m->broken = !hex_key || !value || json_object_object_add(j, hex_key, value) < 0;
}

static void
add_u64(struct qm_manifest *m, struct json_object *j, const char *key, uint64_t value)
{
    m->broken = m->broken || json_object_object_add(j, key, json_object_new_uint64(value)) < 0;
}

/* "key": value, in front of what follows; frees j. */
static int
put_member(struct qm_manifest *m, const char *key, struct json_object *j, struct qmeld_error *err)
{
    const char *text = j && !m->broken
                           ? json_object_to_json_string_ext(j, JSON_C_TO_STRING_PLAIN |
                                                                   JSON_C_TO_STRING_NOSLASHESCAPE)
                           : NULL;
    int rc;

    if (!text)
        rc = qm_fail_nomem(err, "the manifest");
    else
        rc = putf(m, err, "\"%s\":", key) < 0 || put(m, text, strlen(text), err) < 0 ||
                     put(m, ",\n", 2, err) < 0
                 ? -1
                 : 0;
    json_object_put(j);
    return rc;
}

static int
put_time(struct qm_manifest *m, const char *key, struct qmeld_error *err)
{
    struct timespec now;
    struct tm tm;
    char text[32];

    clock_gettime(CLOCK_REALTIME, &now);
    if (!gmtime_r(&now.tv_sec, &tm) || strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &tm) == 0)
        return qm_fail_sys(err, qm_nowhere(), "cannot tell the time");
    return putf(m, err, "\"%s\":\"%s.%06ldZ\"", key, text, now.tv_nsec / 1000);
}

/* ---- the head ---- */

static struct json_object *
make_command(struct qm_manifest *m, const char *const *command)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; list && command && command[i]; i++) {
        bool changed;
        struct json_object *word = clean(command[i], &changed);

        m->broken = m->broken || !word || json_object_array_add(list, word) < 0;
    }
    return list;
}

static struct json_object *
make_image(struct qm_manifest *m, const struct qm_manifest_head *h)
{
    struct json_object *j = json_object_new_object();
    QM_FREE char *path = qm_absolute_path(h->image);

    if (!j || !path) {
        m->broken = true;
        return j;
    }
    add_name(m, j, "path", path);
    add_name(m, j, "format", h->format);
    add_name(m, j, "backing_format", h->backing_format);
    add_name(m, j, "snapshot", h->snapshot);
    return j;
}

static struct json_object *
make_output(struct qm_manifest *m, const struct qm_manifest_head *h)
{
    struct json_object *j = json_object_new_object();
    QM_FREE char *path = h->out ? qm_absolute_path(h->out) : NULL;

    if (!j || (h->out && !path)) {
        m->broken = true;
        return j;
    }
    add_name(m, j, "path", path);
    add_name(m, j, "format", h->out_format);
    return j;
}

static int
put_head(struct qm_manifest *m, const struct qm_manifest_head *h, struct qmeld_error *err)
{
    if (putf(m, err, "{\n\"manifest\":\"qmeld\",\n\"version\":%d,\n\"tool\":\"qmeld %s\",\n",
             QM_MANIFEST_VERSION, qmeld_version()) < 0 ||
        put_member(m, "command", make_command(m, h->command), err) < 0 ||
        put_time(m, "started", err) < 0 || put(m, ",\n", 2, err) < 0 ||
        put_member(m, "image", make_image(m, h), err) < 0 ||
        put_member(m, "output", make_output(m, h), err) < 0)
        return -1;
    return putf(m, err, "\"size\":%" PRIu64 ",\n\"leaf_size\":%" PRIu64 ",\n\"leaves\":[", h->size,
                h->leaf);
}

int
qm_manifest_begin(struct qm_file *file, const struct qm_manifest_head *head,
                  struct qm_manifest **out, struct qmeld_error *err)
{
    struct qm_manifest *m = calloc(1, sizeof *m);

    *out = NULL;
    if (!m)
        return qm_fail_nomem(err, "the manifest");
    m->file = file;
    m->chain = head->chain;
    m->size = head->size;
    m->leaf = head->leaf;
    m->view = qm_digest_new();
    m->digest = qm_digest_new();
    m->buf = malloc(BUFFER);
    if (!m->view || !m->digest || !m->buf) {
        qm_manifest_free(m);
        return qm_fail_nomem(err, "the manifest");
    }
    qm_digest_add_zeros(m->digest, m->leaf);
    m->zero = qm_digest_end(m->digest);
    qm_tree_init(&m->tree, m->digest);
    if (put_head(m, head, err) < 0) {
        qm_manifest_free(m);
        return -1;
    }
    *out = m;
    return 0;
}

void
qm_manifest_free(struct qm_manifest *m)
{
    if (!m)
        return;
    qm_digest_free(m->view);
    qm_digest_free(m->digest);
    free(m->buf);
    free(m);
}

/* ---- leaves ---- */

/* Holes are what takes no place in any file: of a raw layer, behind a layer's end, and where nobody has anything. */
const char *
qm_manifest_kind(const struct qm_map_span *s)
{
    if (s->ext.lost)
        return "lost";
    if (s->layer == QM_NO_LAYER || s->past_end)
        return "hole";
    switch (s->ext.kind) {
    case QM_DATA:
        return "data";
    case QM_COMPRESSED:
        return "compressed";
    case QM_ZERO:
        return "zero";
    case QM_ABSENT:
        break;
    }
    return "hole";
}

/* b begins where a ends, and is the same without that. */
static bool
joins(const struct qm_map_span *a, const struct qm_map_span *b)
{
    if (a->guest.g + a->len != b->guest.g || a->layer != b->layer || a->past_end != b->past_end ||
        a->ext.lost != b->ext.lost || a->ext.kind != b->ext.kind ||
        a->ext.has_host != b->ext.has_host)
        return false;
    if (a->ext.kind == QM_COMPRESSED) /* parts of one cluster */
        return a->ext.host.h == b->ext.host.h && a->ext.skip + a->len == b->ext.skip;
    return !a->ext.has_host || a->ext.host.h + a->len == b->ext.host.h;
}

static const char *
why_lost(enum qm_lost lost)
{
    static const char *const words[] = {[QM_LOST_TABLE] = "table",
                                        [QM_LOST_DATA] = "data",
                                        [QM_LOST_STREAM] = "stream",
                                        [QM_LOST_BELOW] = "backing"};

    return words[lost];
}

static int
put_span(struct qm_manifest *m, const struct qm_map_span *s, bool first, struct qmeld_error *err)
{
    const struct qm_extent *e = &s->ext;

    if (putf(m, err, "%s{\"start\":%" PRIu64 ",\"length\":%" PRIu64 ",\"kind\":\"%s\"",
             first ? "" : ",", s->guest.g, s->len, qm_manifest_kind(s)) < 0)
        return -1;
    if (s->layer != QM_NO_LAYER && putf(m, err, ",\"layer\":%zu", s->layer) < 0)
        return -1;
    if (s->layer != QM_NO_LAYER && e->has_host &&
        putf(m, err, ",\"offset\":%" PRIu64, e->host.h) < 0)
        return -1;
    if (e->lost && putf(m, err, ",\"why\":\"%s\"", why_lost(e->lost)) < 0)
        return -1;
    if (e->kind == QM_COMPRESSED &&
        putf(m, err, ",\"stored\":%" PRIu32 ",\"skip\":%" PRIu32, e->payload_len, e->skip) < 0)
        return -1;
    return put(m, "}", 1, err);
}

static struct qm_map_span
cut(const struct qm_map_span *s, uint64_t from, uint64_t to)
{
    const uint64_t a = qm_max(from, s->guest.g), b = qm_min(to, s->guest.g + s->len);
    struct qm_map_span part = *s;

    part.guest = qm_guest(a);
    part.len = b - a;
    part.ext = qm_extent_part(&s->ext, a - s->guest.g, b - a);
    return part;
}

/* The chunk's spans in [from, to), joined; *i is the first that reaches there. */
static int
put_spans(struct qm_manifest *m, const struct qm_chunk *c, size_t *i, uint64_t from, uint64_t to,
          struct qmeld_error *err)
{
    struct qm_map_span held = {.len = 0};
    bool first = true;

    while (*i < c->spans.n && c->spans.at[*i].guest.g + c->spans.at[*i].len <= from)
        ++*i;
    for (size_t k = *i; k < c->spans.n && c->spans.at[k].guest.g < to; k++) {
        const struct qm_map_span part = cut(&c->spans.at[k], from, to);

        if (held.len > 0 && joins(&held, &part)) {
            held.len += part.len;
            continue;
        }
        if (held.len > 0 && put_span(m, &held, first, err) < 0)
            return -1;
        first = first && held.len == 0;
        held = part;
    }
    return held.len > 0 ? put_span(m, &held, first, err) : 0;
}

/* n leaves alike, from guest byte `from` on. */
static int
put_leaves(struct qm_manifest *m, const struct qm_chunk *c, size_t *span, uint64_t from, uint64_t n,
           const struct qm_sha256 *sha256, struct qmeld_error *err)
{
    const struct qm_hex hex = qm_sha256_hex(sha256);
    const uint64_t end = qm_min(m->size, from + n * m->leaf);

    qm_tree_add(&m->tree, sha256, n);
    if (putf(m, err,
             "%s\n{\"leaf\":%" PRIu64 ",\"count\":%" PRIu64 ",\"sha256\":\"%s\",\"spans\":[",
             m->some ? "," : "", from / m->leaf, n, hex.text) < 0 ||
        put_spans(m, c, span, from, end, err) < 0)
        return -1;
    m->some = true;
    return put(m, "]}", 2, err);
}

/* Zeros: as many whole leaves at once as one span covers, and what is left leaf by leaf. */
static int
add_zeros(struct qm_manifest *m, const struct qm_chunk *c, struct qmeld_error *err)
{
    const uint64_t end = c->guest.g + c->len;
    uint64_t at = c->guest.g, n;
    size_t span = 0;

    qm_digest_add_zeros(m->view, c->len);
    for (; at < end; at += n) {
        struct qm_sha256 sha256 = m->zero;

        n = c->spans.n == 1 ? (end - at) / m->leaf * m->leaf : qm_min(end - at, m->leaf);
        if (end - at < m->leaf) { /* the disk's last leaf */
            n = end - at;
            qm_digest_add_zeros(m->digest, n);
            sha256 = qm_digest_end(m->digest);
        }
        if (put_leaves(m, c, &span, at, qm_div_up(n, m->leaf), &sha256, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_manifest_add(struct qm_manifest *m, const struct qm_chunk *c, struct qmeld_error *err)
{
    size_t span = 0;

    if (c->zero)
        return add_zeros(m, c, err);
    assert(c->leaves.n == qm_div_up(c->len, m->leaf));
    qm_digest_add(m->view, c->bytes, c->len);
    for (size_t i = 0; i < c->leaves.n; i++)
        if (put_leaves(m, c, &span, c->guest.g + i * m->leaf, 1, &c->leaves.at[i], err) < 0)
            return -1;
    return 0;
}

/* ---- the end ---- */

/* sha256 is NULL if the file could not be read to its end. */

static int
make_input(struct qm_manifest *m, size_t layer, const struct qm_sha256 *sha256,
           struct json_object **out, struct qmeld_error *err)
{
    const struct qm_file *file = m->chain->layers[layer].img->file;
    struct json_object *j = json_object_new_object();
    struct qm_journal_layer l;
    struct stat st = {.st_ino = file->ino};

    *out = j;
    if (!j)
        return qm_fail_nomem(err, "the manifest");
    if (qm_file_is_local(file) && fstat(file->fd, &st) < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot stat");
    if (qm_journal_note(&m->chain->layers[layer], &l, err) < 0)
        return -1;
    add_u64(m, j, "layer", layer);
    add_name(m, j, "path", l.path);
    add_name(m, j, "format", l.format);
    add_name(m, j, "backing_name", l.backing_name);
    add_u64(m, j, "device", (uint64_t)st.st_dev);
    add_u64(m, j, "inode", (uint64_t)st.st_ino);
    add_u64(m, j, "length", l.size);
    add_u64(m, j, "mtime_sec", (uint64_t)l.mtime_sec);
    add_u64(m, j, "mtime_nsec", (uint64_t)l.mtime_nsec);
    if (sha256)
        add_name(m, j, "sha256", qm_sha256_hex(sha256).text);
    qm_journal_layer_release(&l);
    return 0;
}

/* The data file of a layer. */
static int
make_data_input(struct qm_manifest *m, size_t layer, const struct qm_sha256 *sha256,
                struct json_object **out, struct qmeld_error *err)
{
    const struct qm_file *file = m->chain->layers[layer].img->data;
    struct json_object *j = json_object_new_object();
    struct qm_journal_layer l;
    struct stat st;

    *out = j;
    if (!j)
        return qm_fail_nomem(err, "the manifest");
    if (fstat(file->fd, &st) < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot stat");
    if (qm_journal_note(&m->chain->layers[layer], &l, err) < 0)
        return -1;
    add_u64(m, j, "layer", layer);
    add_name(m, j, "role", "data");
    add_name(m, j, "path", l.data.path);
    add_name(m, j, "format", "raw");
    add_u64(m, j, "device", (uint64_t)st.st_dev);
    add_u64(m, j, "inode", (uint64_t)st.st_ino);
    add_u64(m, j, "length", file->size);
    add_u64(m, j, "mtime_sec", (uint64_t)l.data.mtime_sec);
    add_u64(m, j, "mtime_nsec", (uint64_t)l.data.mtime_nsec);
    if (sha256)
        add_name(m, j, "sha256", qm_sha256_hex(sha256).text);
    qm_journal_layer_release(&l);
    return 0;
}

static int
put_inputs(struct qm_manifest *m, const struct qm_sha256 *inputs, const bool *known,
           struct qmeld_error *err)
{
    struct json_object *list = json_object_new_array();
    int rc = list ? 0 : qm_fail_nomem(err, "the manifest");

    for (size_t i = 0, n = m->chain->n, data = n; rc == 0 && i < 2 * n; i++) {
        const size_t layer = i < n ? i : i - n;
        const struct qm_image *img = m->chain->layers[layer].img;
        const size_t k = i < n ? i : data;
        struct json_object *j;

        if (i >= n && img->data == img->file)
            continue;
        data += i >= n;
        rc =
            (i < n ? make_input : make_data_input)(m, layer, known[k] ? &inputs[k] : NULL, &j, err);
        if (rc == 0 && json_object_array_add(list, j) < 0)
            rc = qm_fail_nomem(err, "the manifest");
        else if (rc < 0)
            json_object_put(j);
    }
    if (rc == 0)
        return put_member(m, "inputs", list, err);
    json_object_put(list);
    return -1;
}

int
qm_manifest_end(struct qm_manifest *m, const struct qm_sha256 *inputs, const bool *known,
                struct qm_sha256 *out_view, struct qm_sha256 *out_root, struct qmeld_error *err)
{
    *out_root = qm_tree_root(&m->tree, m->size, m->leaf);
    *out_view = qm_digest_end(m->view);
    if (putf(m, err, "],\n\"sha256\":\"%s\",\n", qm_sha256_hex(out_view).text) < 0 ||
        putf(m, err, "\"merkle_root\":\"%s\",\n", qm_sha256_hex(out_root).text) < 0 ||
        put_inputs(m, inputs, known, err) < 0 || put_time(m, "finished", err) < 0 ||
        put(m, "\n}\n", 3, err) < 0 || flush(m, err) < 0)
        return -1;
    return qm_sync(m->file, err);
}
