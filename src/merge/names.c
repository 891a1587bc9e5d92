/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * names.c - backing names: where they lead, and how to write one.
 *
 * Why this way.  The rules are QEMU's, traps included (qemu 7.2, block.c: path_has_protocol,
 * path_combine, parse_json_filename), as a name must lead where QEMU would go.  Of its protocols
 * only local files and NBD are ours, and of json:{} only what means "this file, whole": any option that
 * would change which bytes are read is refused by name, never ignored.
 */
#include "chain.h"

#include "nbd_name.h"

#include <errno.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A header holds at most 1023 bytes of name; nesting beyond format-over-file is refused anyway. */
#define ASIDE          ".merged"
#define MAX_JSON_DEPTH 8
#define MAX_JSON_KEY   128

static int
bad_name(struct qmeld_error *err, enum qmeld_code code, const char *overlay, const char *name,
         const char *why)
{
    return qm_fail(err, code, qm_in(overlay), "backing name \"%.300s\": %s", name, why);
}

/* qemu 7.2, block.c, path_has_protocol */
static bool
has_protocol(const char *name)
{
    return name[strcspn(name, ":/")] == ':';
}

/* Bytes of path up to and with its last '/'; 0 if it has none. */
static size_t
dir_len(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* ---- json: names ---- */

struct json_name {
    const char *overlay; /* for messages */
    const char *name;
    const char *driver; /* borrowed from the object, as the next two */
    const char *file_driver;
    const char *filename;      /* file.filename */
    const char *bare_filename; /* filename, of a file node without a format on top */
    struct nbd_options {
        const char *type, *host, *port, *path, *export;
    } nbd, bare_nbd;            /* likewise of an NBD node */
    char unknown[MAX_JSON_KEY]; /* the first option that is none of ours; "": there is none */
};

/* Options of a node that do not change which bytes it reads. */
static bool
is_harmless(const char *key)
{
    static const char *const keys[] = {
        "node-name",
        "read-only",
        "auto-read-only",
        "discard",
        "detect-zeroes",
        "force-share",
        "locking",
        "aio",
        "aio-max-batch",
        "drop-cache",
        "cache.direct",
        "cache.no-flush",
        "x-check-cache-dropped",
    };

    if (strncmp(key, "file.", 5) == 0)
        key += 5;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (strcmp(key, keys[i]) == 0)
            return true;
    return false;
}

/* Options of an NBD node, and the older form of some (qemu 7.2, block/nbd.c, nbd_process_options). */
static const char **
nbd_slot(struct json_name *j, const char *key)
{
    const bool wrapped = strncmp(key, "file.", 5) == 0;
    struct nbd_options *o = wrapped ? &j->nbd : &j->bare_nbd;
    const struct {
        const char *key;
        const char **slot;
    } slots[] = {{"host", &o->host},        {"server.host", &o->host}, {"port", &o->port},
                 {"server.port", &o->port}, {"path", &o->path},        {"server.path", &o->path},
                 {"server.type", &o->type}, {"export", &o->export}};

    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++)
        if (strcmp(key + (wrapped ? 5 : 0), slots[i].key) == 0)
            return slots[i].slot;
    return NULL;
}

static int
take_option(struct json_name *j, const char *key, struct json_object *value,
            struct qmeld_error *err)
{
    char why[MAX_JSON_KEY + 80];
    const char **slot = NULL;

    if (strcmp(key, "driver") == 0)
        slot = &j->driver;
    else if (strcmp(key, "file.driver") == 0)
        slot = &j->file_driver;
    else if (strcmp(key, "file.filename") == 0)
        slot = &j->filename;
    else if (strcmp(key, "filename") == 0)
        slot = &j->bare_filename;
    else if (is_harmless(key))
        return 0;
    else
        slot = nbd_slot(j, key);
    if (!slot) { /* told when the driver is known, whose it may be */
        if (!*j->unknown)
            snprintf(j->unknown, sizeof j->unknown, "%s", key);
        return 0;
    }
    if (*slot || (!json_object_is_type(value, json_type_string) &&
                  !(strstr(key, "port") && json_object_is_type(value, json_type_int)))) {
        snprintf(why, sizeof why, "option \"%s\" is %s", key,
                 *slot ? "given twice" : "not a string");
        return bad_name(err, QMELD_CORRUPT, j->overlay, j->name, why);
    }
    *slot = json_object_get_string(value);
    if (json_object_is_type(value, json_type_string) &&
        strlen(*slot) != (size_t)json_object_get_string_len(value))
        return bad_name(err, QMELD_CORRUPT, j->overlay, j->name, "contains a NUL");
    return 0;
}

/* Nested objects as dotted keys, as QEMU flattens them; the parser has limited the depth. */
static int
take_options(struct json_name *j, const char *prefix, struct json_object *obj,
             struct qmeld_error *err)
{
    json_object_object_foreach(obj, name, value)
    {
        char key[MAX_JSON_KEY];
        int n = snprintf(key, sizeof key, "%s%s%s", prefix, *prefix ? "." : "", name);
        int r;

        if (n < 0 || (size_t)n >= sizeof key)
            return bad_name(err, QMELD_UNSUPPORTED, j->overlay, j->name,
                            "an option name in it is too long");
        if (json_object_is_type(value, json_type_object))
            r = take_options(j, key, value, err);
        else
            r = take_option(j, key, value, err);
        if (r < 0)
            return -1;
    }
    return 0;
}

static bool
is_file_driver(const char *driver)
{
    return strcmp(driver, "file") == 0 || strcmp(driver, "host_device") == 0;
}

static bool
is_nbd(const char *driver)
{
    return strcmp(driver, "nbd") == 0;
}

static bool
says_anything(const struct nbd_options *o)
{
    return o->type || o->host || o->port || o->path || o->export;
}

/* The options as the one spelling of their export. */
static int
nbd_path(const struct json_name *j, const struct nbd_options *o, char **out,
         struct qmeld_error *err)
{
    const char *port = o->port ? o->port : QM_NBD_PORT;
    const struct qm_nbd_name name = {.host = (char *)o->host,
                                     .port = (char *)(o->host ? port : NULL),
                                     .socket = (char *)o->path,
                                     .export = (char *)(o->export ? o->export : "")};
    QM_FREE char *uri = NULL;

    if (!o->host == !o->path || (o->path && o->port) ||
        (o->type && strcmp(o->type, o->host ? "inet" : "unix") != 0))
        return bad_name(err, QMELD_CORRUPT, j->overlay, j->name,
                        "it has to name either an NBD server's host or its socket");
    uri = qm_nbd_uri(&name);
    if (!uri)
        return qm_fail_nomem(err, "a backing name");
    *out = qm_nbd_canonical(uri);
    return *out ? 0 : bad_name(err, QMELD_CORRUPT, j->overlay, j->name, "it names no NBD export");
}

/* A local file's name that would be taken for an export. */
static char *
plain_path(const char *path)
{
    char *out;

    return asprintf(&out, "%s%s", qm_nbd_is_name(path) ? "./" : "", path) < 0 ? NULL : out;
}

/* A driver that is not ours is the reason, and what options it has is not.  No option is passed over in silence. */
static int
check_known(const struct json_name *j, struct qmeld_error *err)
{
    char why[MAX_JSON_KEY + 80];

    if (j->file_driver && !is_file_driver(j->file_driver) && !is_nbd(j->file_driver))
        snprintf(why, sizeof why,
                 "driver \"%.60s\" under the format is not supported: only local files and NBD are",
                 j->file_driver);
    else if (j->driver && !is_file_driver(j->driver) && !is_nbd(j->driver) &&
             strcmp(j->driver, "qcow2") != 0 && strcmp(j->driver, "raw") != 0)
        snprintf(why, sizeof why,
                 "driver \"%.60s\" is not supported: as formats qcow2 and raw are, as protocols "
                 "local files and NBD",
                 j->driver);
    else if (*j->unknown)
        snprintf(why, sizeof why, "option \"%s\" is not supported: give the file itself a name",
                 j->unknown);
    else
        return 0;
    return bad_name(err, QMELD_UNSUPPORTED, j->overlay, j->name, why);
}

/* From the options to a path and a format. */
static int
settle_options(const struct json_name *j, char **out, char **out_format, struct qmeld_error *err)
{
    const bool bare = j->driver && (is_file_driver(j->driver) || is_nbd(j->driver));
    const bool nbd = is_nbd(bare ? j->driver : j->file_driver ? j->file_driver : "");
    const char *path = bare ? j->bare_filename : j->filename;
    const char *format = bare ? "raw" : j->driver; /* a file node alone is its bytes */

    if (bare ? j->filename || j->file_driver : j->bare_filename != NULL)
        return bad_name(err, QMELD_CORRUPT, j->overlay, j->name,
                        "\"filename\" and \"file\" contradict each other");
    if ((path && nbd) || says_anything(bare ? &j->nbd : &j->bare_nbd) ||
        (!nbd && says_anything(bare ? &j->bare_nbd : &j->nbd)))
        return bad_name(err, QMELD_UNSUPPORTED, j->overlay, j->name,
                        "it has options of an NBD server where they have no meaning");
    if (nbd && nbd_path(j, bare ? &j->bare_nbd : &j->nbd, out, err) < 0)
        return -1;
    if (nbd)
        path = *out;
    if (!path || !*path)
        return bad_name(err, QMELD_CORRUPT, j->overlay, j->name, "names no file");
    if (strlen(path) >= PATH_MAX)
        return bad_name(err, QMELD_CORRUPT, j->overlay, j->name, "the path is too long");
    if (format && !(*out_format = strdup(format)))
        return qm_fail_nomem(err, "a backing format");
    if (!nbd)
        *out = plain_path(path); /* verbatim: QEMU looks for no "file:" in it */
    if (!*out) {
        free(*out_format);
        *out_format = NULL;
        return qm_fail_nomem(err, "a backing name");
    }
    return 0;
}

static int
json_path(const char *overlay, const char *name, char **out, char **out_format,
          struct qmeld_error *err)
{
    const char *text = name + strlen("json:");
    const size_t len = strlen(text);
    struct json_name j = {.overlay = overlay, .name = name};
    struct json_tokener *tok;
    struct json_object *obj;
    int r;

    if (len > PATH_MAX)
        return bad_name(err, QMELD_CORRUPT, overlay, name, "too long");
    tok = json_tokener_new_ex(MAX_JSON_DEPTH);
    if (!tok)
        return qm_fail_nomem(err, "the parser of a json: name");
    /* the NUL goes along: it ends the text */
    obj = json_tokener_parse_ex(tok, text, (int)len + 1);
    if (json_tokener_get_error(tok) != json_tokener_success ||
        !json_object_is_type(obj, json_type_object) || json_tokener_get_parse_end(tok) < len)
        r = bad_name(err, QMELD_CORRUPT, overlay, name, "not a JSON object");
    else if ((r = take_options(&j, "", obj, err)) == 0 && (r = check_known(&j, err)) == 0)
        r = settle_options(&j, out, out_format, err);
    json_object_put(obj);
    json_tokener_free(tok);
    return r;
}

/* ---- where a name leads ---- */

/* What QEMU would not follow is not followed either: its names know no TLS, and what such a name says of files with secrets
 * is not for an image to say. */
static int
export_path(const char *overlay, const char *name, char **out, struct qmeld_error *err)
{
    struct qm_nbd_name n;

    if (qm_nbd_parse(name, &n, err) < 0)
        return bad_name(err, QMELD_CORRUPT, overlay, name, "it names no NBD export");
    *out = n.tls ? NULL : qm_nbd_uri(&n);
    qm_nbd_name_release(&n);
    if (*out)
        return 0;
    return strncmp(name, "nbds", 4) == 0
               ? bad_name(err, QMELD_UNSUPPORTED, overlay, name,
                          "NBD with TLS is only for names on the command line")
               : qm_fail_nomem(err, "a backing name");
}

int
qm_backing_path(const char *overlay_path, const char *name, char **out, char **out_format,
                struct qmeld_error *err)
{
    const size_t dir = dir_len(overlay_path), len = strlen(name);
    char why[128];

    *out = *out_format = NULL;
    if (strncmp(name, "json:", 5) == 0)
        return json_path(overlay_path, name, out, out_format, err);
    if (strncmp(name, "file:", 5) == 0)
        *out = plain_path(name + 5);
    else if (qm_nbd_is_name(name))
        return export_path(overlay_path, name, out, err);
    else if (has_protocol(name)) {
        snprintf(why, sizeof why,
                 "protocol \"%.*s\" is not supported: only local files and NBD are",
                 (int)qm_min(strcspn(name, ":"), 60), name);
        return bad_name(err, QMELD_UNSUPPORTED, overlay_path, name, why);
    } else if (*name == '/')
        *out = strdup(name);
    else if ((*out = malloc(dir + len + 1))) {
        memcpy(*out, overlay_path, dir);
        memcpy(*out + dir, name, len + 1);
    }
    if (!*out)
        return qm_fail_nomem(err, "a backing name");
    if (**out && *name && strlen(*out) < PATH_MAX)
        return 0;
    free(*out);
    *out = NULL;
    return bad_name(err, QMELD_CORRUPT, overlay_path, name,
                    *name && len > 5 ? "the path is too long" : "names no file");
}

/* ---- how to write a name ---- */

/* The directory of path without symbolic links, malloc'd; NULL with errno. */
static char *
real_dir_of(const char *path)
{
    const size_t n = dir_len(path);
    QM_FREE char *dir = n ? strndup(path, n) : strdup(".");

    return dir ? realpath(dir, NULL) : NULL;
}

/* The last part of path. */
static const char *
base_of(const char *path)
{
    return path + dir_len(path);
}

static char *
join(const char *dir, const char *name)
{
    char *out = NULL;

    if (asprintf(&out, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name) < 0)
        return NULL;
    return out;
}

/* path without its directories' symbolic links.  The last part stays: a link there (a logical
 * volume, "current") is a name that somebody chose. */
static char *
real_name(const char *path)
{
    QM_FREE char *dir = real_dir_of(path);

    return dir ? join(dir, base_of(path)) : NULL;
}

/* How to go from the directory `from` to the file `to`, both real and absolute. */
static char *
relative(const char *from, const char *to)
{
    size_t common = 0, ups = 0, room;
    char *out, *p;

    /* common: up to and with the last '/' both share as a whole directory */
    for (size_t i = 0;; i++) {
        const char f = from[i] ? from[i] : '/';

        if (f != to[i])
            break;
        if (f == '/')
            common = i + 1;
        if (!from[i])
            break;
    }
    for (const char *s = from + qm_min(common, strlen(from)); *s; s++)
        ups += *s == '/';
    ups += strlen(from) > common;
    room = 3 * ups + strlen(to + common) + 3;
    out = p = malloc(room);
    if (!out)
        return NULL;
    *p = '\0';
    for (; ups; ups--)
        p = stpcpy(p, "../");
    if (p == out && has_protocol(to + common))
        p = stpcpy(p, "./"); /* or "a:b" would be taken for a protocol */
    memcpy(p, to + common, strlen(to + common) + 1);
    return out;
}

/* True if `name`, stored in child, leads to target. */
static bool
leads_to(const char *child, const char *name, const char *target)
{
    QM_FREE char *path = NULL;
    QM_FREE char *format = NULL;
    struct qmeld_error ignored = {0};
    struct stat a, b;

    if (qm_backing_path(child, name, &path, &format, &ignored) < 0)
        return false;
    if (qm_nbd_is_name(path) || qm_nbd_is_name(target))
        return qm_nbd_same(path, target);
    return stat(path, &a) == 0 && stat(target, &b) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* True if a part of path is "..". */
static bool
goes_up(const char *path)
{
    for (const char *p = path; *p;) {
        const size_t n = strcspn(p, "/");

        if (n == 2 && p[0] == '.' && p[1] == '.')
            return true;
        p += n;
        p += *p == '/';
    }
    return false;
}

/* A relative name for target in child, or NULL.  Where target was reached through the child's
 * directory, its name stays as it was, symbolic links included: the folder may move. */
static char *
relative_name(const char *child, const char *target)
{
    const size_t dir = dir_len(child);
    QM_FREE char *from = NULL;
    QM_FREE char *to = NULL;
    QM_FREE char *name = NULL;

    if (*target != '/' || *child == '/') {
        const char *rest = target + dir;

        if (strncmp(child, target, dir) == 0 && *rest && *rest != '/' && !goes_up(rest)) {
            char *kept = NULL;

            if (asprintf(&kept, "%s%s", has_protocol(rest) ? "./" : "", rest) < 0)
                return NULL;
            if (leads_to(child, kept, target))
                return kept;
            free(kept);
        }
    }
    from = real_dir_of(child);
    to = real_name(target);
    if (!from || !to)
        return NULL;
    name = relative(from, to);
    return name && leads_to(child, name, target) ? QM_TAKE(name) : NULL;
}

int
qm_backing_name_for(const char *child_path, const char *old_name, const char *target_path,
                    bool must_be_relative, char **out, struct qmeld_error *err)
{
    const bool export = qm_nbd_is_name(target_path);
    const bool was_relative =
        old_name && *old_name && *old_name != '/' && !has_protocol(old_name) && !export;
    QM_FREE char *name = was_relative ? relative_name(child_path, target_path) : NULL;

    *out = NULL;
    if (export && must_be_relative)
        return qm_fail(err, QMELD_USAGE, qm_in(child_path),
                       "no relative backing name leads to %s: allow an absolute one", target_path);
    if (export && strncmp(target_path, "nbds", 4) == 0)
        return qm_fail(err, QMELD_USAGE, qm_in(child_path),
                       "its backing name cannot be %s: QEMU knows no such names", target_path);
    if (!name && must_be_relative)
        return qm_fail(err, QMELD_USAGE, qm_in(child_path),
                       was_relative
                           ? "no relative backing name leads to %s: allow an absolute one"
                           : "the backing name is not relative now, so it cannot stay so for %s: "
                             "allow an absolute one",
                       target_path);
    if (export)
        name = qm_nbd_canonical(target_path);
    else if (!name)
        name = *target_path == '/' ? strdup(target_path) : real_name(target_path);
    if (!name)
        return qm_fail_sys(err, qm_in(target_path), "cannot find the absolute name");
    if (!leads_to(child_path, name, target_path))
        return qm_fail(err, QMELD_STALE, qm_in(target_path),
                       "the name does not lead to the same file any more: run again");
    if (strlen(name) >= PATH_MAX)
        return qm_fail(err, QMELD_NOSPACE, qm_in(child_path),
                       "the backing name for %s is too long: move the images closer together",
                       target_path);
    *out = QM_TAKE(name);
    return 0;
}

char *
qm_aside_name(const char *path, unsigned n)
{
    char *out;
    const int rc =
        n == 0 ? asprintf(&out, "%s" ASIDE, path) : asprintf(&out, "%s" ASIDE ".%u", path, n);

    return rc < 0 ? NULL : out;
}

bool
qm_aside_is(const char *path)
{
    size_t end = strlen(path), digits = end;

    while (digits > 0 && path[digits - 1] >= '0' && path[digits - 1] <= '9')
        digits--;
    if (digits > 0 && digits < end && path[digits - 1] == '.')
        end = digits - 1;
    return end > strlen(ASIDE) && memcmp(path + end - strlen(ASIDE), ASIDE, strlen(ASIDE)) == 0;
}
