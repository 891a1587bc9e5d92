/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge.c - the library in a page: look at a chain, then merge it down.
 *
 *     cc -o merge merge.c $(pkg-config --cflags --libs qmeld)
 *     ./merge disk.qcow2
 *
 * Prints the layers, how many bytes of the disk each of them answers, and, while it merges everything into the
 * bottom layer, how far that is.  Stopped with Ctrl-C it goes on when it is started again.
 */
#include <qmeld.h>

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static volatile sig_atomic_t stop;

static void
ask_to_stop(int number)
{
    (void)number;
    stop = 1;
}

static int
fail(const struct qmeld_error *err)
{
    fprintf(stderr, "merge: %s: %s\n", err->file, err->what);
    return EXIT_FAILURE;
}

/* Extents come in order and without gaps; depth 0 is the top. */
static int
count_extent(const struct qmeld_extent *extent, void *opaque)
{
    uint64_t *by_depth = opaque;

    if (extent->data)
        by_depth[extent->depth] += extent->length;
    return 0;
}

static int
show(const char *path)
{
    struct qmeld_chain *chain = NULL;
    struct qmeld_layer_info layer;
    struct qmeld_error err;
    uint64_t *by_depth = NULL;
    size_t depth;
    int code = EXIT_SUCCESS;

    if (qmeld_chain_open(path, NULL, &chain, &err) < 0)
        return fail(&err);
    depth = qmeld_chain_depth(chain);
    by_depth = calloc(depth, sizeof *by_depth);
    if (!by_depth || qmeld_map(chain, 0, UINT64_MAX, count_extent, by_depth, &err) < 0)
        code = by_depth ? fail(&err) : EXIT_FAILURE;
    for (size_t i = 0; i < depth && code == EXIT_SUCCESS; i++) {
        if (qmeld_chain_layer(chain, i, &layer, &err) < 0)
            code = fail(&err);
        else
            printf("[%zu] %s (%s): answers %" PRIu64 " bytes\n", i + 1, layer.path, layer.format,
                   by_depth[depth - 1 - i]);
    }
    free(by_depth);
    qmeld_chain_close(chain);
    return code;
}

static int
tell(const struct qmeld_progress *now, void *opaque)
{
    (void)opaque;
    if (now->total_bytes > 0)
        fprintf(stderr, "%s %" PRIu64 " of %" PRIu64 "\n", now->phase, now->done_bytes,
                now->total_bytes);
    return stop; /* not 0: end where every file is in order */
}

static int
merge(const char *path)
{
    const struct qmeld_commit_options opts = {.progress = tell};
    struct qmeld_commit_report report;
    struct qmeld_error err;
    int code = EXIT_SUCCESS;

    if (qmeld_commit(path, &opts, &report, &err) < 0) {
        code = fail(&err);
        if (err.disk == QMELD_DISK_OPEN)
            fputs("merge: the disk reads as before; start this again to finish\n", stderr);
    } else if (report.already_merged || report.nothing_to_do) {
        puts("there was nothing to do");
    } else {
        printf("%" PRIu64 " bytes are in %s now\n", report.bytes_copied, report.layers[0].path);
    }
    qmeld_commit_report_free(&report);
    return code;
}

int
main(int argc, char **argv)
{
    if (argc != 2) {
        fputs("usage: merge IMAGE\n", stderr);
        return EXIT_FAILURE;
    }
    signal(SIGINT, ask_to_stop);
    if (show(argv[1]) != EXIT_SUCCESS)
        return EXIT_FAILURE;
    return merge(argv[1]);
}
