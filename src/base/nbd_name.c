/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd_name.c - names of NBD exports, to and from their parts.
 *
 * Export names may have any byte but NUL, and slashes: "nbd://h//x" is the export "/x" (QEMU takes off one
 * slash).  What would have to be guessed is refused.
 */
#include "nbd_name.h"

#include "cleanup.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_EXPORT 4096u /* the NBD protocol, "Values": the longest string */
#define MAX_HOST   255u
#define MAX_SOCKET (sizeof((struct sockaddr_un *)0)->sun_path - 1)

static const struct scheme {
    const char *prefix;
    bool unix_socket;
    bool tls;
} schemes[] = {
    {"nbd://", false, false}, {"nbd+tcp://", false, false}, {"nbd+unix://", true, false},
    {"nbds://", false, true}, {"nbds+tcp://", false, true}, {"nbds+unix://", true, true},
};

static const struct scheme *
scheme_of(const char *path)
{
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++)
        if (strncmp(path, schemes[i].prefix, strlen(schemes[i].prefix)) == 0)
            return &schemes[i];
    return NULL;
}

bool
qm_nbd_is_name(const char *path)
{
    return strncmp(path, "nbd:", 4) == 0 || scheme_of(path);
}

void
qm_nbd_name_release(struct qm_nbd_name *name)
{
    free(name->host);
    free(name->port);
    free(name->socket);
    free(name->export);
    free(name->user);
    free(name->certificates);
    free(name->psk_file);
    *name = (struct qm_nbd_name){.host = NULL};
}

static int
bad(struct qmeld_error *err, const char *path, const char *why)
{
    return qm_fail(err, QMELD_USAGE, qm_in(path), "not the name of an NBD export: %s", why);
}

/* ---- parts ---- */

static int
digit_of(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : isxdigit((unsigned char)c) ? tolower(c) - 'a' + 10 : -1;
}

/* [from, + len) with its %XX decoded; malloc'd. */
static int
decode(const char *path, const char *from, size_t len, char **out, struct qmeld_error *err)
{
    char *to = *out = malloc(len + 1);

    if (!to)
        return qm_fail_nomem(err, "the name of an NBD export");
    for (size_t i = 0; i < len; i++) {
        int c = (unsigned char)from[i];

        if (c == '%') {
            const int hi = i + 2 < len ? digit_of(from[i + 1]) : -1;
            const int lo = i + 2 < len ? digit_of(from[i + 2]) : -1;

            if (hi < 0 || lo < 0 || (hi == 0 && lo == 0))
                return bad(err, path, "a % in it is not followed by two hexadecimal digits");
            c = hi * 16 + lo;
            i += 2;
        }
        *to++ = (char)c;
    }
    *to = '\0';
    return 0;
}

static int
copy(const char *from, size_t len, char **out, struct qmeld_error *err)
{
    *out = strndup(from, len);
    return *out ? 0 : qm_fail_nomem(err, "the name of an NBD export");
}

/* HOST:PORT, [HOST]:PORT or HOST.  *out_len: where the text that begins at from ends. */
static int
take_address(const char *path, const char *from, size_t len, bool need_port,
             struct qm_nbd_name *out, struct qmeld_error *err)
{
    const bool bracket = len > 0 && *from == '[';
    const char *close = bracket ? memchr(from, ']', len) : NULL;
    const char *host = from + bracket, *end = from + len, *colon;

    if (bracket && !close)
        return bad(err, path, "a bracket is open");
    colon = bracket ? close + 1 : memchr(from, ':', len);
    if (bracket && colon < end && *colon != ':')
        return bad(err, path, "something follows the bracket");
    if (!colon || colon == end)
        colon = NULL;
    if (!colon && need_port)
        return bad(err, path, "it has no port: nbd:HOST:PORT, or nbd://HOST");
    if (colon && (memchr(colon + 1, ':', (size_t)(end - colon - 1)) || colon + 1 == end ||
                  memchr(colon, ',', (size_t)(end - colon))))
        return bad(err, path, "its port makes no sense (IPv6 addresses stand in brackets)");
    if (copy(host, (size_t)((bracket ? close : colon ? colon : end) - host), &out->host, err) < 0)
        return -1;
    if (!*out->host || strlen(out->host) > MAX_HOST)
        return bad(err, path, "it names no server");
    return colon ? copy(colon + 1, (size_t)(end - colon - 1), &out->port, err)
                 : copy(QM_NBD_PORT, strlen(QM_NBD_PORT), &out->port, err);
}

/* ---- URIs ---- */

/* "key=value" of a query. */
static int
take_parameter(const char *path, const char *from, size_t len, const struct scheme *scheme,
               struct qm_nbd_name *out, struct qmeld_error *err)
{
    const struct {
        const char *key;
        char **value;
        bool known;
    } keys[] = {{"socket=", &out->socket, scheme->unix_socket},
                {"tls-certificates=", &out->certificates, scheme->tls},
                {"tls-psk-file=", &out->psk_file, scheme->tls}};

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const size_t n = strlen(keys[i].key);

        if (!keys[i].known || len <= n || strncmp(from, keys[i].key, n) != 0)
            continue;
        if (*keys[i].value)
            return bad(err, path, "a parameter in it is given twice");
        return decode(path, from + n, len - n, keys[i].value, err);
    }
    return bad(err, path, "it has a parameter that is not known here");
}

static int
take_query(const char *path, const char *query, const struct scheme *scheme,
           struct qm_nbd_name *out, struct qmeld_error *err)
{
    while (*query) {
        const size_t n = strcspn(query, "&");

        if (take_parameter(path, query, n, scheme, out, err) < 0)
            return -1;
        query += n;
        query += *query == '&';
    }
    return 0;
}

static int
parse_uri(const char *path, const struct scheme *scheme, struct qm_nbd_name *out,
          struct qmeld_error *err)
{
    const char *from = path + strlen(scheme->prefix);
    const size_t authority = strcspn(from, "/?"), len = strcspn(from, "?");
    const size_t start = authority + (from[authority] == '/'); /* of the export's name */
    const char *at = scheme->tls ? memchr(from, '@', authority) : NULL;
    const char *host = at ? at + 1 : from, *slash = from + authority;

    out->tls = scheme->tls;
    if (strchr(from, '#'))
        return bad(err, path, "it has a fragment (#): write %23 in an export's name");
    if (at && decode(path, from, (size_t)(at - from), &out->user, err) < 0)
        return -1;
    if (scheme->unix_socket && host != slash)
        return bad(err, path, "it names a server and a socket: nbd+unix:///EXPORT?socket=PATH");
    if (!scheme->unix_socket &&
        take_address(path, host, (size_t)(slash - host), false, out, err) < 0)
        return -1;
    if (decode(path, from + start, len - start, &out->export, err) < 0)
        return -1;
    return from[len] ? take_query(path, from + len + 1, scheme, out, err) : 0;
}

/* ---- "nbd:..." ---- */

static int
parse_old(const char *path, struct qm_nbd_name *out, struct qmeld_error *err)
{
    static const char key[] = ":exportname=";
    const char *from = path + strlen("nbd:"), *export = strstr(from, key);
    const size_t len = export ? (size_t)(export - from) : strlen(from);

    if (export && !export[strlen(key)])
        return bad(err, path, "the export's name is missing");
    if (copy(export ? export + strlen(key) : "", export ? strlen(export + strlen(key)) : 0,
             &out->export, err) < 0)
        return -1;
    if (strncmp(from, "unix:", 5) == 0)
        return copy(from + 5, len - 5, &out->socket, err);
    return take_address(path, from, len, true, out, err);
}

/* From wherever it is said again, the same socket. */
static int
anchor_socket(struct qm_nbd_name *out, struct qmeld_error *err)
{
    QM_FREE char *cwd = NULL;
    char *full = NULL;

    if (!out->socket || *out->socket == '/')
        return 0;
    cwd = getcwd(NULL, 0);
    if (!cwd)
        return qm_fail_sys(err, qm_in(out->socket), "cannot find the working directory");
    if (asprintf(&full, "%s/%s", cwd, out->socket) < 0)
        return qm_fail_nomem(err, "the name of an NBD export");
    free(out->socket);
    out->socket = full;
    return 0;
}

int
qm_nbd_parse(const char *path, struct qm_nbd_name *out, struct qmeld_error *err)
{
    const struct scheme *scheme = scheme_of(path);
    int rc;

    *out = (struct qm_nbd_name){.host = NULL};
    rc = scheme ? parse_uri(path, scheme, out, err) : parse_old(path, out, err);
    if (rc == 0 && !out->host && (!out->socket || !*out->socket))
        rc = bad(err, path, "it names no socket: nbd+unix:///EXPORT?socket=PATH");
    if (rc == 0)
        rc = anchor_socket(out, err);
    if (rc == 0 && out->socket && strlen(out->socket) > MAX_SOCKET)
        rc = bad(err, path, "the path of its socket is longer than a socket's can be");
    else if (rc == 0 && strlen(out->export) > MAX_EXPORT)
        rc = bad(err, path, "the export's name is longer than the protocol allows");
    if (rc < 0)
        qm_nbd_name_release(out);
    return rc;
}

/* ---- the other way ---- */

/* What must not stand in a URI as it is. */
static char *
encode(char *to, const char *from, const char *also)
{
    for (; *from; from++) {
        const unsigned char c = (unsigned char)*from;

        if (isalnum(c) || strchr("-._~/", c) || strchr(also, c))
            *to++ = (char)c;
        else {
            *to++ = '%';
            *to++ = "0123456789ABCDEF"[c >> 4];
            *to++ = "0123456789ABCDEF"[c & 15];
        }
    }
    *to = '\0';
    return to;
}

char *
qm_nbd_uri(const struct qm_nbd_name *n)
{
    const char *const texts[] = {n->host, n->port,         n->socket,  n->export,
                                 n->user, n->certificates, n->psk_file};
    size_t room = 128;
    char *out, *p;

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        room += texts[i] ? 3 * strlen(texts[i]) : 0;
    p = out = malloc(room);
    if (!out)
        return NULL;
    p = stpcpy(p, n->tls ? "nbds" : "nbd");
    p = stpcpy(p, n->socket ? "+unix://" : "://");
    if (n->user)
        p = stpcpy(encode(p, n->user, ""), "@");
    if (n->host) {
        const bool six = strchr(n->host, ':') != NULL;

        p = stpcpy(stpcpy(stpcpy(p, six ? "[" : ""), n->host), six ? "]" : "");
        p = stpcpy(stpcpy(p, ":"), n->port);
    }
    if (*n->export || n->socket)
        p = encode(stpcpy(p, "/"), n->export, "");
    if (n->socket)
        p = encode(stpcpy(p, "?socket="), n->socket, "");
    if (n->certificates)
        p = encode(stpcpy(p, n->socket ? "&tls-certificates=" : "?tls-certificates="),
                   n->certificates, "");
    if (n->psk_file)
        encode(stpcpy(p, n->socket || n->certificates ? "&tls-psk-file=" : "?tls-psk-file="),
               n->psk_file, "");
    return out;
}

char *
qm_nbd_canonical(const char *path)
{
    struct qmeld_error unheard = {0};
    struct qm_nbd_name name;
    char *uri = NULL;

    if (qm_nbd_is_name(path) && qm_nbd_parse(path, &name, &unheard) == 0) {
        uri = qm_nbd_uri(&name);
        qm_nbd_name_release(&name);
    }
    return uri;
}

/* FNV-1a: for telling files apart, where nobody gains by two that are alike. */
uint64_t
qm_nbd_id(const char *uri)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *uri; uri++)
        h = (h ^ (unsigned char)*uri) * 0x100000001b3u;
    return h & INT64_MAX; /* JSON readers have no more bits */
}

bool
qm_nbd_same(const char *a, const char *b)
{
    QM_FREE char *x = qm_nbd_canonical(a);
    QM_FREE char *y = x ? qm_nbd_canonical(b) : NULL;

    return x && y && strcmp(x, y) == 0;
}

char *
qm_nbd_file_name(const char *path)
{
    QM_FREE char *uri = qm_nbd_canonical(path);
    char *out;

    if (!uri || asprintf(&out, "nbd-%016" PRIx64, qm_nbd_id(uri)) < 0)
        return NULL;
    return out;
}
