/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domxml.h - what libvirt's XML says about disks, and the few changes a merge makes to it.
 *
 * Why.  A disk's chain, the indexes of its layers, a running block job and who else mentions a file
 * are all told by XML: of domains (running or as they are kept), of snapshots, of a managed save.
 * After a merge the same XML has to be put right.  All of that is here, as functions from text to text
 * that need neither libvirt nor the images; what is unknown to us in an element stays in it.
 *
 * Source     libvirt, docs/formatdomain.rst "Hard drives, floppy disks, CDROMs"; docs/formatsnapshot.rst
 * Calls      parse, then look, then free; or an edit, whose text the caller frees.
 * Threads    Any; no state.
 * Ownership  What parse fills belongs to it.  Texts that are returned are malloc'd.
 * Errors     0 or -1 with *err: CORRUPT (no XML, or not what it should be), UNSUPPORTED (too large),
 *            USAGE (no such disk), NOMEM.
 */
#ifndef QM_DOMXML_H
#define QM_DOMXML_H

#include "cleanup.h"
#include "err.h"
#include "vec.h"

/* libvirt's protocol carries texts of 4 MiB (virnetprotocol.x); what is longer did not come from it */
#define QM_DOMXML_MAX_LEN (8u << 20)

enum qm_source_type {
    QM_SOURCE_NONE = 0, /* an empty drive */
    QM_SOURCE_FILE,
    QM_SOURCE_BLOCK,
    QM_SOURCE_VOLUME,  /* pool and volume: the storage driver knows the path */
    QM_SOURCE_NETWORK, /* protocol, name, host */
    QM_SOURCE_OTHER,   /* dir, nvme, vhostuser, ... */
};

/* One layer, as XML tells of it.  Strings are NULL where nothing is said. */
struct qm_domxml_source {
    enum qm_source_type type;
    char *path; /* of file and block */
    char *pool;
    char *volume;
    char *protocol;
    char *name; /* of network: of the export, volume, ... */
    char *host; /* of network: "host:port" or the socket's path; the first one */
    char *format;
    char *data_file; /* <dataStore>: its path */
    unsigned index;  /* N of "vda[N]"; 0: none is told */
    bool slices;     /* only a part of the file is the image */
    bool encrypted;
};

struct qm_domxml_mirror {
    bool present;
    bool ready; /* ready='yes': a pivot is possible */
    char *job;  /* "copy", "active-commit" */
    struct qm_domxml_source source;
};

struct qm_domxml_disk {
    char *target;
    char *bus;
    char *device; /* "disk", "cdrom", "floppy", "lun" */
    bool readonly;
    bool shareable;
    bool transient;
    bool no_ioeventfd; /* <driver ioeventfd='off'/>: a vCPU itself hands requests to the image */
    bool no_relabel;   /* <seclabel relabel='no'/>: libvirt leaves the file's owner alone */
    bool terminated;   /* the chain ends in <backingStore/>: nothing lies under the last layer */
    struct qm_domxml_mirror mirror;
    QM_VEC(struct qm_domxml_source) layers; /* [0] = active; empty: no medium */
};

enum qm_domxml_kind {
    QM_DOMXML_DOMAIN,   /* <domain>: also that of a managed save */
    QM_DOMXML_SNAPSHOT, /* <domainsnapshot> */
};

/* A disk of a snapshot's own list. */
struct qm_domxml_snap_disk {
    char *target;                   /* of name='vda'; a path here is kept as it is */
    bool external;                  /* snapshot='external' */
    bool internal;                  /* snapshot='internal': kept inside of the image */
    struct qm_domxml_source source; /* the file that the snapshot put on top of the chain */
};

struct qm_domxml {
    enum qm_domxml_kind kind;
    char *name;
    char *uuid;       /* of a domain; of a snapshot that of the domain inside */
    char *parent;     /* of a snapshot; NULL: a root */
    char *memory;     /* of a snapshot: the file with the machine's memory */
    bool internal;    /* of a snapshot: it has, or may have, state inside of images */
    bool virtio_scsi; /* no SCSI controller of it is of another model, or has ioeventfd='off' */
    bool no_relabel;  /* the domain's own <seclabel type='none'> or relabel='no' */
    QM_VEC(struct qm_domxml_disk) disks;
    QM_VEC(struct qm_domxml_snap_disk) snap_disks;
};

/* Of a domain, or a snapshot (whose disks are those of the <domain> in it). */
int qm_domxml_parse(const char *text, struct qm_domxml **out, struct qmeld_error *err) QM_CHECK;
void qm_domxml_free(struct qm_domxml *x); /* NULL is fine */

/* By target ("vda"), or by path of its active layer, word for word.  NULL: none. */
const struct qm_domxml_disk *qm_domxml_find(const struct qm_domxml *x, const char *disk);

/* "/x", "nbd://host:port/name", "pool/volume": for people.  malloc'd, NULL: no memory. */
char *qm_domxml_source_text(const struct qm_domxml_source *s);

/* ---- who mentions a file ---- */

/* Not 0 ends the walk, and is returned.  target is that of the disk around it, "" if there is none. */
typedef int qm_domxml_source_fn(const struct qm_domxml_source *s, const char *target, void *opaque);

/* Every source anywhere in text: of disks, the layers under them, mirrors, data stores, a snapshot's
 * list and the domains in it; and of whatever else has a <source> with an absolute path. -1 with *err
 * if it cannot be read. */
int qm_domxml_each_source(const char *text, qm_domxml_source_fn *fn, void *opaque,
                          struct qmeld_error *err) QM_CHECK;

/* ---- changes ---- */

/* What a merge made of a layer. */
enum qm_layer_role {
    QM_LAYER_OTHER = 0,
    QM_LAYER_MERGED, /* its bytes are in the base now */
    QM_LAYER_BASE,
};

struct qm_domxml_edit {
    const char *target; /* of the disk */
    /* tells the role of a layer; may be called more than once for each */
    enum qm_layer_role (*role)(const struct qm_domxml_source *s, void *opaque);
    void *opaque;
    const char *base; /* path: what a source becomes whose layer was merged */
    const char *base_format;
    bool base_blockdev;
};

/* The <disk> of edit->target in a domain's XML as it has to be: merged layers gone from its chain,
 * the rest relinked, a terminator only where one was.  If the active layer was merged the base takes its
 * place: source and driver type change, all else stays.  *out is NULL if nothing changes. */
int qm_domxml_edit_disk(const char *domain, const struct qm_domxml_edit *edit, char **out,
                        struct qmeld_error *err) QM_CHECK;

/* The same in place, for each edit, in a whole document: a domain's, or a snapshot's with both
 * domains in it; there, disks of the snapshot's own list whose file was merged become snapshot='no'.
 * *out is NULL if nothing changes. */
int qm_domxml_edit_all(const char *text, const struct qm_domxml_edit *edits, size_t n, char **out,
                       struct qmeld_error *err) QM_CHECK;

#endif
