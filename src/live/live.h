/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * live.h - between the program and its live module, qmeld-live.so.
 *
 * Why.  Merging under a running virtual machine is QEMU's work, asked for through libvirt, and a
 * stopped machine's definition has to be put right after a merge.  Both need libvirt; everything
 * else must run on machines that have none.  So what needs libvirt is a module, loaded only by the
 * commands that cannot do without, and this is all that the two sides know of each other.
 *
 * Calls      The program finds the symbol QM_LIVE_SYMBOL, calls it once with its host struct, and
 *            gets the module's functions.  The module is never unloaded: libvirt's threads live in it.
 * Threads    One thread of the program calls.  The module has threads of its own; callbacks run on
 *            the thread that called.
 * Ownership  What a call fills in is released by the module's matching function, also after a
 *            failure.  Strings in requests are borrowed.
 * Errors     0, or -1 with *err filled.  err->disk is OPEN if something is left half-way (a job
 *            still runs, a definition is not put right), CANCELED if it was asked to stop.
 * Remote     A connection to another machine never makes the module look at local files.
 */
#ifndef QM_LIVE_H
#define QM_LIVE_H

#include "qmeld.h"

/* Raised with every change of the structs below: program and module are installed together. */
enum { QM_LIVE_ABI = 6 };

#define QM_LIVE_SYMBOL "qm_live_module"

/* What the module needs of libqmeld.  The program has it linked already; a second copy in the
 * module would be a second set of everything. */
struct qm_live_host {
    unsigned abi;
    __typeof__(qmeld_chain_open) *chain_open;
    __typeof__(qmeld_chain_close) *chain_close;
    __typeof__(qmeld_chain_depth) *chain_depth;
    __typeof__(qmeld_chain_layer) *chain_layer;
    __typeof__(qmeld_dependants) *dependants;
    __typeof__(qmeld_commit) *commit;
    __typeof__(qmeld_commit_report_free) *commit_report_free;
    __typeof__(qmeld_status) *status;
    __typeof__(qmeld_resume) *resume;
    __typeof__(qmeld_note_path) *note_path;
    __typeof__(qmeld_note_write) *note_write;
    __typeof__(qmeld_note_read) *note_read;
    __typeof__(qmeld_note_step) *note_step;
    __typeof__(qmeld_note_remove) *note_remove;
    __typeof__(qmeld_notes) *notes;
};

/* A list of sentences for the user: what was found, what was left, what to do.  No newline. */
struct qm_live_notes {
    char **at;
    size_t n;
};

/* ---- blockcommit ---- */

/* What to do with an active commit once the base has everything and only follows the guest. */
enum qm_live_finish {
    QM_LIVE_FINISH_NONE = 0, /* leave the job mirroring */
    QM_LIVE_FINISH_PIVOT,    /* the machine goes on on the base */
    QM_LIVE_FINISH_KEEP,     /* the job ends, the machine stays on the overlay */
};

struct qm_live_commit {
    const char *uri;    /* NULL: as virsh finds it, otherwise qemu:///system */
    const char *domain; /* name, UUID or id */
    const char *disk;   /* target, or path of the source */
    const char *base;   /* path, "vda[N]" or "[N]"; NULL: the bottom of the chain */
    const char *top;    /* likewise; NULL: the active layer */
    bool all_disks;     /* of a stopped machine: all of them, and disk is NULL */
    bool update_saved;  /* of a stopped machine: its saved state is put right, too */
    bool shallow;       /* base is what lies directly under top */
    bool active;        /* merging the active layer is meant */
    bool if_active;     /* active and finish count only if the top is the active layer */
    enum qm_live_finish finish;
    bool remove;        /* merged files are to go, once nothing can need them */
    bool keep_relative; /* the overlay's backing name must stay relative */
    bool wait;          /* until the job has ended or, without a finish, is ready */
    bool async;         /* a cancelled job is not waited for */
    bool
        settles_snapshots; /* the caller puts right what libvirt keeps of snapshots: nothing is said of it */
    uint64_t bandwidth; /* bytes a second, 0: no limit */

    /* Called several times a second while something is waited for; not 0: stop.  phase is "copy",
     * or "mirror" once the job is ready.  It is called before the job begins, too. */
    qmeld_progress_fn *progress;
    void *opaque;

    /* For a machine that is stopped: threads and journal_dir count. */
    struct qmeld_commit_options offline;
};

enum qm_live_end {
    QM_LIVE_NOTHING = 0, /* the disk has one layer */
    QM_LIVE_STARTED,     /* the job runs, nobody asked to wait */
    QM_LIVE_MERGED,      /* done; the chain is shorter */
    QM_LIVE_READY,       /* the job mirrors and waits for a pivot or an abort */
    QM_LIVE_PIVOTED,     /* done; the machine runs on the base */
    QM_LIVE_KEPT,        /* the base has all of it, the machine stays on the overlay */
};

struct qm_live_file {
    char *path; /* as the machine's definition names it */
    bool removed;
};

struct qm_live_report {
    enum qm_live_end end;
    bool running;   /* the machine was running: QEMU did it */
    char *domain;   /* its name */
    char *disk;     /* the target */
    char *base;     /* merged into; a name for what has no path */
    char *top;      /* the uppermost layer merged */
    size_t n_files; /* layers that were merged away, the lowest first */
    struct qm_live_file *files;
    struct qm_live_notes notes;
    struct qmeld_commit_report merge; /* of a stopped machine */
};

/* ---- who uses a file, and what a domain has ---- */

struct qm_live_layer {
    unsigned index; /* N of "vda[N]"; 0: the definition tells none (a stopped machine) */
    char *format;   /* NULL: not told */
    char *type;     /* "file", "block", "network", "volume", ... */
    char *name;     /* path, or protocol://host/name; NULL: an empty drive */
    bool local;     /* name is a path on this machine */
};

struct qm_live_disk {
    char *target; /* "vda" */
    char *device; /* "disk", "cdrom", ... */
    bool readonly, shareable, transient;
    char *job;                    /* kind of block job that runs on it, NULL: none */
    bool job_ready;               /* it waits for a pivot or an abort */
    bool chain_ends;              /* the definition says that nothing lies under the last layer */
    size_t n_layers;              /* 0: an empty drive */
    struct qm_live_layer *layers; /* the active one first */
};

struct qm_live_domain {
    char *uri; /* as the connection names itself */
    char *name;
    char *uuid;
    char *state; /* "running", "paused", "shut off", ... */
    bool running;
    bool persistent;
    bool managed_save;
    size_t n_disks;
    struct qm_live_disk *disks;
};

struct qm_live_use {
    char *uri;
    char *domain;
    char *uuid;
    bool running;   /* the file is in the chain of a machine that runs */
    char *target;   /* of the disk */
    unsigned depth; /* layers above it: 0 is the active layer */
    unsigned index; /* N of "vda[N]", 0: none */
    bool by_job;    /* a block job writes to it; it is not in the chain (yet) */
};

struct qm_live_uses {
    size_t n;
    struct qm_live_use *at;
    struct qm_live_notes notes; /* hypervisors that could not be asked, and why */
};

/* A file of this machine that a definition of a domain names, and that is there. */
struct qm_live_image {
    char *path;
    char *domain;
    bool running; /* the definition is the one that runs */
};

struct qm_live_images {
    size_t n;
    struct qm_live_image *at;   /* one file may be named by several, or by several names */
    struct qm_live_notes notes; /* who could not be asked, and why */
};

/* ---- the module ---- */

struct qm_live_module {
    unsigned abi;

    /* Merges layers of a domain's disk, whether it runs or not. */
    int (*blockcommit)(const struct qm_live_commit *request, struct qm_live_report *report,
                       struct qmeld_error *err);
    void (*report_free)(struct qm_live_report *report);

    /* Deletes an external snapshot of request->domain: the layer it put on each disk is merged into the
     * one under it and removed, and what libvirt keeps is put right.  disk, base and top do not count. */
    int (*snapshot_delete)(const struct qm_live_commit *request, const char *snapshot,
                           struct qm_live_report *report, struct qmeld_error *err);

    /* Ends an unfinished change of a stopped domain, by its note (.NAME.qmeld-domain).  Of the request
     * uri (NULL: the note's), progress and what is for stopped machines count. */
    int (*resume)(const char *note, const struct qm_live_commit *request,
                  struct qm_live_report *report, struct qmeld_error *err);

    /* A domain's disks and their chains. */
    int (*domain)(const char *uri, const char *name, struct qm_live_domain *out,
                  struct qmeld_error *err);
    void (*domain_free)(struct qm_live_domain *domain);

    /* Which domains use the file.  uri NULL: the hypervisors that this user can ask.  Finding none is
     * no failure. */
    int (*uses)(const char *uri, const char *path, struct qm_live_uses *out,
                struct qmeld_error *err);
    void (*uses_free)(struct qm_live_uses *uses);

    /* All regular files that definitions of all domains name anywhere: running, kept, saved ones, those of
     * snapshots.  uri as above.  Who does not answer within so many seconds, in all, is noted, and so is who
     * cannot be asked: no failure. */
    int (*images)(const char *uri, unsigned seconds, struct qm_live_images *out,
                  struct qmeld_error *err);
    void (*images_free)(struct qm_live_images *images);
};

/* QM_LIVE_SYMBOL.  NULL: program and module are of different versions. */
typedef const struct qm_live_module *qm_live_module_fn(const struct qm_live_host *host);

#endif
