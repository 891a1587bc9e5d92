/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_recipe.c - from the text of a recipe to layers.
 *
 * A line that starts in column one is a layer ("NAME | PICTURE option=value ...") or "all"
 * (options for the layers that follow); indented lines belong to the layer above them.
 */
#include "forge_recipe.h"
#include "cleanup.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>

#define MAX_WORDS 64

struct parser {
    struct qm_forge *forge;
    struct qm_forge_layer defaults;
    unsigned line;
    char *words[MAX_WORDS];
    size_t n_words;
    struct qmeld_error *err;
};

#define WRONG(p, ...)                                                                              \
    qm_fail((p)->err, QMELD_USAGE, qm_at((p)->forge->name, (p)->line), __VA_ARGS__)

const struct qm_forge_cell *
qm_forge_cell_at(const struct qm_forge_cells *cells, uint64_t index)
{
    size_t lo = 0;
    size_t hi = cells->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;

        if (cells->at[mid].index < index)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < cells->n && cells->at[lo].index == index ? &cells->at[lo] : NULL;
}

bool
qm_forge_number(const char *word, uint64_t cluster, uint64_t *out)
{
    static const char units[] = "kMGTPE";
    uint64_t unit = 1;
    uint64_t v;
    const char *at;
    char *end;

    if (!isdigit((unsigned char)word[0]))
        return false;
    errno = 0;
    v = strtoull(word, &end, 0);
    if (errno)
        return false;
    if (*end == 'c') {
        unit = cluster;
        end++;
    } else if (*end && (at = strchr(units, *end))) {
        unit = 1ull << (10 * (at - units + 1));
        end++;
    }
    return !*end && !__builtin_mul_overflow(v, unit, out);
}

static char *
keep(struct parser *p, const char *s, size_t len)
{
    char *copy = malloc(len + 1);

    if (!copy || !qm_vec_push(&p->forge->strings, &copy)) {
        free(copy);
        qm_fail_nomem(p->err, "a recipe");
        return NULL;
    }
    memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

static int
put_cell(struct parser *p, struct qm_forge_cells *cells, uint64_t index, char mark)
{
    struct qm_forge_cell cell = {.index = index, .mark = mark};
    struct qm_forge_cell *known = (struct qm_forge_cell *)qm_forge_cell_at(cells, index);

    if (!isalpha((unsigned char)mark) && !strchr(".0=~#^", mark))
        return WRONG(p, "'%c' is no mark of a picture", mark);
    if (known) { /* a later line paints over an earlier one */
        *known = cell;
        return 0;
    }
    if (mark == '.')
        return 0;
    if (cells->n >= QM_FORGE_MAX_CELLS)
        return WRONG(p, "more than %u clusters in one layer", QM_FORGE_MAX_CELLS);
    if (!qm_vec_push(cells, &cell))
        return qm_fail_nomem(p->err, "a picture");
    for (size_t i = cells->n - 1; i && cells->at[i - 1].index > index; i--) {
        cells->at[i] = cells->at[i - 1];
        cells->at[i - 1] = cell;
    }
    return 0;
}

static int
put_picture(struct parser *p, struct qm_forge_cells *cells, uint64_t from, const char *picture)
{
    if (!strcmp(picture, "-"))
        return 0;
    for (size_t i = 0; picture[i]; i++)
        if (put_cell(p, cells, from + i, picture[i]) < 0)
            return -1;
    return 0;
}

static int
number(struct parser *p, const struct qm_forge_layer *l, const char *word, uint64_t *out)
{
    if (!qm_forge_number(word, l->cluster, out))
        return WRONG(p, "'%s' is no number", word);
    return 0;
}

static int
set_extension(struct parser *p, struct qm_forge_layer *l, const char *value)
{
    struct qm_forge_ext ext = {0};
    const char *colon = strchr(value, ':');
    QM_FREE char *type = colon ? strndup(value, (size_t)(colon - value)) : NULL;
    uint64_t v;

    if (!type || !qm_forge_number(type, 0, &v) || v > UINT32_MAX)
        return WRONG(p, "ext=%s: write ext=0xTYPE:TEXT", value);
    ext.type = (uint32_t)v;
    ext.bytes = colon + 1;
    ext.len = strlen(colon + 1);
    if (!qm_vec_push(&l->exts, &ext))
        return qm_fail_nomem(p->err, "a recipe");
    return 0;
}

static int
set_style(struct parser *p, struct qm_forge_layer *l, const char *value)
{
    static const char *const names[] = {"relative", "absolute", "file", "json"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(value, names[i])) {
            l->style = (enum qm_forge_style)i;
            return 0;
        }
    return WRONG(p, "style=%s is not relative, absolute, file or json", value);
}

static int
set_word_option(struct parser *p, struct qm_forge_layer *l, const char *key, const char *value,
                bool *known)
{
    *known = true;
    if (!strcmp(key, "format")) {
        if (strcmp(value, "raw") && strcmp(value, "qcow2"))
            return WRONG(p, "format=%s is not raw or qcow2", value);
        l->raw = !strcmp(value, "raw");
    } else if (!strcmp(key, "compression")) {
        if (strcmp(value, "zlib") && strcmp(value, "zstd"))
            return WRONG(p, "compression=%s is not zlib or zstd", value);
        l->compression = !strcmp(value, "zstd");
    } else if (!strcmp(key, "backing")) {
        l->backing = value;
    } else if (!strcmp(key, "backing_format")) {
        l->backing_format = value;
    } else if (!strcmp(key, "over")) {
        l->over = value;
    } else if (!strcmp(key, "data_file")) {
        l->data_file = value;
    } else if (!strcmp(key, "luks")) {
        l->luks = value;
    } else if (!strcmp(key, "aes")) {
        l->aes = value;
    } else if (!strcmp(key, "style")) {
        return set_style(p, l, value);
    } else if (!strcmp(key, "ext")) {
        return set_extension(p, l, value);
    } else {
        *known = false;
    }
    return 0;
}

static int
set_number_option(struct parser *p, struct qm_forge_layer *l, const char *key, uint64_t v)
{
    if (!strcmp(key, "cluster"))
        l->cluster = v;
    else if (!strcmp(key, "size"))
        l->size = v, l->has_size = true;
    else if (!strcmp(key, "version"))
        l->version = (unsigned)v;
    else if (!strcmp(key, "refcount_bits"))
        l->refcount_bits = (unsigned)v;
    else if (!strcmp(key, "extended_l2"))
        l->extended_l2 = v != 0;
    else if (!strcmp(key, "lazy"))
        l->compatible |= v ? 1 : 0;
    else if (!strcmp(key, "dirty"))
        l->incompatible |= v ? 1 : 0;
    else if (!strcmp(key, "corrupt"))
        l->incompatible |= v ? 2 : 0;
    else if (!strcmp(key, "incompatible"))
        l->incompatible |= v;
    else if (!strcmp(key, "compatible"))
        l->compatible |= v;
    else if (!strcmp(key, "autoclear"))
        l->autoclear |= v;
    else if (!strcmp(key, "header_len"))
        l->header_len = (unsigned)v;
    else if (!strcmp(key, "feature_table"))
        l->feature_table = v != 0;
    else if (!strcmp(key, "scatter"))
        l->scatter = v;
    else if (!strcmp(key, "luks_slots"))
        l->luks_slots = v > 8 ? 8 : (unsigned)v;
    else if (!strcmp(key, "l1_extra"))
        l->l1_extra = (unsigned)v;
    else
        return WRONG(p, "there is no option '%s'", key);
    return 0;
}

static int
set_option(struct parser *p, struct qm_forge_layer *l, char *word)
{
    char *equals = strchr(word, '=');
    bool known;
    uint64_t v;

    if (!equals)
        return WRONG(p, "'%s' is no option=value", word);
    *equals = '\0';
    if (set_word_option(p, l, word, equals + 1, &known) < 0)
        return -1;
    if (known)
        return 0;
    return number(p, l, equals + 1, &v) < 0 ? -1 : set_number_option(p, l, word, v);
}

static int
set_options(struct parser *p, struct qm_forge_layer *l, size_t first)
{
    for (size_t i = first; i < p->n_words; i++)
        if (set_option(p, l, p->words[i]) < 0)
            return -1;
    return 0;
}

static bool
ends_with(const char *s, const char *end)
{
    size_t n = strlen(s);
    size_t m = strlen(end);

    return n >= m && !strcmp(s + n - m, end);
}

static int
parse_layer(struct parser *p)
{
    struct qm_forge_layer l = p->defaults;
    struct qm_forge_layer *mine;

    if (p->n_words < 3 || strcmp(p->words[1], "|"))
        return WRONG(p, "write NAME | PICTURE option=value ...");
    if (strchr(p->words[0], '/') || p->words[0][0] == '.')
        return WRONG(p, "'%s': a layer is a plain file name", p->words[0]);
    if (p->forge->layers.n >= QM_FORGE_MAX_LAYERS)
        return WRONG(p, "more than %u layers", QM_FORGE_MAX_LAYERS);
    l.line = p->line;
    l.file = p->words[0];
    l.raw = ends_with(l.file, ".raw") || ends_with(l.file, ".img");
    memset(&l.exts, 0, sizeof l.exts);
    QM_VEC_EACH (ext, &p->defaults.exts) {
        if (!qm_vec_push(&l.exts, ext))
            return qm_fail_nomem(p->err, "a recipe");
    }
    if (!qm_vec_push(&p->forge->layers, &l)) {
        qm_vec_release(&l.exts);
        return qm_fail_nomem(p->err, "a recipe");
    }
    mine = qm_vec_last(&p->forge->layers);
    if (set_options(p, mine, 3) < 0 || put_picture(p, &mine->cells, 0, p->words[2]) < 0)
        return -1;
    if (!mine->has_size && strcmp(p->words[2], "-"))
        mine->size = strlen(p->words[2]) * mine->cluster;
    return 0;
}

/* at OFFSET PICTURE | fill OFFSET CLUSTERS MARK */
static int
parse_paint(struct parser *p, struct qm_forge_layer *l)
{
    uint64_t off;
    uint64_t n;

    if (!strcmp(p->words[0], "at")) {
        if (p->n_words != 3 || number(p, l, p->words[1], &off) < 0 || off % l->cluster)
            return WRONG(p, "write: at OFFSET PICTURE, the offset a multiple of the cluster size");
        return put_picture(p, &l->cells, off / l->cluster, p->words[2]);
    }
    if (p->n_words != 4 || number(p, l, p->words[1], &off) < 0 || off % l->cluster ||
        number(p, l, p->words[2], &n) < 0 || n > QM_FORGE_MAX_CELLS || strlen(p->words[3]) != 1)
        return WRONG(p, "write: fill OFFSET CLUSTERS MARK");
    for (uint64_t i = 0; i < n; i++)
        if (put_cell(p, &l->cells, off / l->cluster + i, p->words[3][0]) < 0)
            return -1;
    return 0;
}

/* sub CLUSTER 32-MARKS */
static int
parse_sub(struct parser *p, struct qm_forge_layer *l)
{
    struct qm_forge_cell *cell = NULL;
    uint64_t index;

    if (p->n_words == 3 && qm_forge_number(p->words[1], 1, &index))
        cell = (struct qm_forge_cell *)qm_forge_cell_at(&l->cells, index);
    if (!cell || cell->mark != '#')
        return WRONG(p, "write: sub CLUSTER MARKS, for a cluster that is # in the picture");
    if (strlen(p->words[2]) != 32)
        return WRONG(p, "a cluster has 32 subclusters, here are %zu", strlen(p->words[2]));
    for (const char *s = p->words[2]; *s; s++)
        if (!isupper((unsigned char)*s) && !strchr(".0=~", *s))
            return WRONG(p, "'%c' is no mark of a subcluster", *s);
    cell->sub = p->words[2];
    return 0;
}

/* stream CLUSTER KIND */
static int
parse_stream(struct parser *p, struct qm_forge_layer *l)
{
    static const char *const kinds[] = {"plain",   "short", "long", "trailing", "garbage",
                                        "wrapped", "noend", "wide", "frames"};
    struct qm_forge_cell *cell = NULL;
    uint64_t index;

    if (p->n_words == 3 && qm_forge_number(p->words[1], 1, &index))
        cell = (struct qm_forge_cell *)qm_forge_cell_at(&l->cells, index);
    if (!cell || !islower((unsigned char)cell->mark))
        return WRONG(p, "write: stream CLUSTER KIND, for a compressed cluster");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (!strcmp(p->words[2], kinds[i])) {
            cell->stream = (enum qm_forge_stream)i;
            return 0;
        }
    return WRONG(p, "'%s' is no kind of stream", p->words[2]);
}

/* snapshot NAME PICTURE [size=N] */
static int
parse_snapshot(struct parser *p, struct qm_forge_layer *l)
{
    struct qm_forge_snapshot snap = {.size = l->size};
    char id[24];

    if (p->n_words < 3 || p->n_words > 4)
        return WRONG(p, "write: snapshot NAME PICTURE [size=BYTES]");
    snprintf(id, sizeof id, "%zu", l->snapshots.n + 1);
    snap.name = p->words[1];
    snap.id = keep(p, id, strlen(id));
    if (!snap.id)
        return -1;
    if (p->n_words == 4 &&
        (strncmp(p->words[3], "size=", 5) || number(p, l, p->words[3] + 5, &snap.size) < 0))
        return WRONG(p, "'%s' is not size=BYTES", p->words[3]);
    if (!qm_vec_push(&l->snapshots, &snap))
        return qm_fail_nomem(p->err, "a recipe");
    return put_picture(p, &qm_vec_last(&l->snapshots)->cells, 0, p->words[2]);
}

/* bitmap NAME GRANULARITY FLAGS [BITS] */
static int
parse_bitmap(struct parser *p, struct qm_forge_layer *l)
{
    struct qm_forge_bitmap map = {.bits = ""};
    uint64_t flags;

    if (p->n_words < 4 || p->n_words > 5 || number(p, l, p->words[2], &map.granularity) < 0 ||
        number(p, l, p->words[3], &flags) < 0 || map.granularity < 512 ||
        (map.granularity & (map.granularity - 1)))
        return WRONG(p, "write: bitmap NAME GRANULARITY FLAGS [BITS]");
    map.name = p->words[1];
    map.flags = (uint32_t)flags;
    if (p->n_words == 5)
        map.bits = p->words[4];
    if (!qm_vec_push(&l->bitmaps, &map))
        return qm_fail_nomem(p->err, "a recipe");
    return 0;
}

static int
parse_detail(struct parser *p, struct qm_forge_layer *l, const char *whole)
{
    const char *verb = p->words[0];
    struct qm_forge_damage damage = {.line = p->line};

    if (!strcmp(verb, "at") || !strcmp(verb, "fill"))
        return parse_paint(p, l);
    if (!strcmp(verb, "sub"))
        return parse_sub(p, l);
    if (!strcmp(verb, "stream"))
        return parse_stream(p, l);
    if (!strcmp(verb, "snapshot"))
        return parse_snapshot(p, l);
    if (!strcmp(verb, "bitmap"))
        return parse_bitmap(p, l);
    if (!strcmp(verb, "set"))
        return set_options(p, l, 1);
    if (strcmp(verb, "poke") && strcmp(verb, "truncate"))
        return WRONG(p, "there is no line '%s ...'", verb);
    damage.text = whole + strspn(whole, " \t");
    if (!qm_vec_push(&l->damages, &damage))
        return qm_fail_nomem(p->err, "a recipe");
    return 0;
}

/* Words are split at blanks; inside double quotes a blank is a character. */
static int
split(struct parser *p, char *s)
{
    p->n_words = 0;
    for (;;) {
        char *to;
        bool quoted = false;

        s += strspn(s, " \t");
        if (!*s)
            return 0;
        if (p->n_words == MAX_WORDS)
            return WRONG(p, "more than %d words in a line", MAX_WORDS);
        p->words[p->n_words++] = to = s;
        for (; *s && (quoted || (*s != ' ' && *s != '\t')); s++) {
            if (*s == '"')
                quoted = !quoted;
            else
                *to++ = *s;
        }
        if (quoted)
            return WRONG(p, "a quote has no end");
        if (*s)
            s++;
        *to = '\0';
    }
}

static int
parse_line(struct parser *p, const char *start, size_t len)
{
    char *whole = keep(p, start, len);
    char *cut = keep(p, start, len);
    bool indented = len && (start[0] == ' ' || start[0] == '\t');

    if (!whole || !cut || split(p, cut) < 0)
        return -1;
    if (!p->n_words || p->words[0][0] == '#')
        return 0;
    if (indented && !p->forge->layers.n)
        return WRONG(p, "an indented line belongs to a layer, and there is none above it");
    if (indented)
        return parse_detail(p, qm_vec_last(&p->forge->layers), whole);
    if (!strcmp(p->words[0], "all"))
        return set_options(p, &p->defaults, 1);
    return parse_layer(p);
}

static bool
power_of_two(uint64_t v)
{
    return v && !(v & (v - 1));
}

static int
check_cells(struct parser *p, const struct qm_forge_layer *l, const struct qm_forge_cells *cells,
            uint64_t size)
{
    QM_VEC_EACH (cell, cells) {
        if (cell->index > size / l->cluster || cell->index * l->cluster >= size)
            return WRONG(p, "cluster %" PRIu64 " lies past the virtual end", cell->index);
        if (l->raw && !isupper((unsigned char)cell->mark) && cell->mark != '0')
            return WRONG(p, "a raw layer has letters, 0 (zeros written) and . (holes) only");
        if (l->version == 2 && !l->raw && strchr("0=", cell->mark))
            return WRONG(p, "version 2 has no zero clusters");
        if (cell->mark == '#' && (!l->extended_l2 || !cell->sub))
            return WRONG(p, "# needs extended_l2=1 and a sub line");
        if (cell->mark == '^' && cells == &l->cells)
            return WRONG(p, "^ is for snapshots");
    }
    return 0;
}

static int
check_layer(struct parser *p, struct qm_forge_layer *l)
{
    p->line = l->line;
    if (!power_of_two(l->cluster) || l->cluster < 512 || l->cluster > (2u << 20))
        return WRONG(p, "cluster size %" PRIu64 " is not a power of two of 512 to 2M", l->cluster);
    if (!power_of_two(l->refcount_bits) || l->refcount_bits > 64)
        return WRONG(p, "refcount_bits=%u is not 1, 2, 4, ... 64", l->refcount_bits);
    if (l->version == 2)
        l->refcount_bits = 16;
    if ((l->version != 2 && l->version != 3) || (l->version == 2 && l->extended_l2))
        return WRONG(p, "version %u cannot be, or not with extended_l2", l->version);
    if (l->extended_l2 && l->cluster < 16384)
        return WRONG(p, "extended_l2 needs clusters of 16k or more");
    if (l->header_len < 104 || l->header_len > l->cluster)
        return WRONG(p, "header_len=%u is not 104 to the cluster size", l->header_len);
    if (l->version == 3 && l->compression && l->header_len < 105)
        return WRONG(p, "zstd has its field at byte 104: header_len=%u is too short for it",
                     l->header_len);
    if (l->luks && l->aes)
        return WRONG(p, "luks or aes");
    if (l->raw &&
        (l->exts.n || l->snapshots.n || l->bitmaps.n || l->data_file || l->luks || l->aes))
        return WRONG(p, "a raw layer has only bytes");
    if (l->size > (uint64_t)INT64_MAX / 2)
        return WRONG(p, "a size of %" PRIu64 " is for poke header.size", l->size);
    if (check_cells(p, l, &l->cells, l->size) < 0)
        return -1;
    QM_VEC_EACH (snap, &l->snapshots) {
        if (check_cells(p, l, &snap->cells, snap->size) < 0)
            return -1;
        if (l->refcount_bits == 1 || l->data_file)
            return WRONG(p, "no snapshots with refcount_bits=1 or data_file");
    }
    return 0;
}

/* Which layer stands on which: the next row, unless over= names another one. */
static int
link_layers(struct parser *p)
{
    for (size_t i = 0; i < p->forge->layers.n; i++) {
        struct qm_forge_layer *l = &p->forge->layers.at[i];

        if (check_layer(p, l) < 0)
            return -1;
        l->below = i + 1 < p->forge->layers.n && !l->raw ? i + 1 : QM_FORGE_NONE;
        if (!l->over)
            continue;
        l->below = QM_FORGE_NONE;
        for (size_t k = i + 1; k < p->forge->layers.n; k++)
            if (!strcmp(p->forge->layers.at[k].file, l->over))
                l->below = k;
        if (l->below == QM_FORGE_NONE && strcmp(l->over, "none"))
            return WRONG(p, "over=%s names no layer further down", l->over);
    }
    if (!p->forge->layers.n)
        return WRONG(p, "a recipe without a layer");
    return 0;
}

int
qm_forge_parse(const char *text, const char *name, struct qm_forge **out, struct qmeld_error *err)
{
    struct parser p = {.err = err};
    int r = 0;

    p.defaults = (struct qm_forge_layer){
        .cluster = 65536, .version = 3, .refcount_bits = 16, .header_len = 112};
    p.forge = calloc(1, sizeof *p.forge);
    if (!p.forge || !(p.forge->name = strdup(name)) || !(p.forge->text = strdup(text))) {
        qm_forge_free(p.forge);
        return qm_fail_nomem(err, "a recipe");
    }
    for (const char *s = p.forge->text; *s && r == 0;) {
        size_t len = strcspn(s, "\n");

        p.line++;
        r = parse_line(&p, s, len);
        s += len + (s[len] == '\n');
    }
    if (r == 0)
        r = link_layers(&p);
    qm_vec_release(&p.defaults.exts);
    if (r < 0)
        qm_forge_free(p.forge);
    else
        *out = p.forge;
    return r;
}

void
qm_forge_free(struct qm_forge *forge)
{
    if (!forge)
        return;
    QM_VEC_EACH (l, &forge->layers) {
        QM_VEC_EACH (snap, &l->snapshots) {
            qm_vec_release(&snap->cells);
        }
        qm_vec_release(&l->snapshots);
        qm_vec_release(&l->cells);
        qm_vec_release(&l->exts);
        qm_vec_release(&l->bitmaps);
        qm_vec_release(&l->damages);
    }
    QM_VEC_EACH (s, &forge->strings) {
        free(*s);
    }
    qm_vec_release(&forge->layers);
    qm_vec_release(&forge->strings);
    free(forge->text);
    free(forge->name);
    free(forge);
}
