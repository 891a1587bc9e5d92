/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * A stranger's program: what somebody would write first against libqmeld.  consumer IMAGE prints the version, the
 * depth of its chain and the first byte of the disk.
 */
#include <qmeld.h>
#include <stdio.h>

int
main(int argc, char **argv)
{
    struct qmeld_chain *chain;
    struct qmeld_error err;
    unsigned char first;
    int rc;

    if (argc != 2)
        return 2;
    rc = qmeld_chain_open(argv[1], NULL, &chain, &err);
    if (rc == 0) {
        rc = qmeld_read(chain, 0, &first, 1, &err);
        if (rc == 0)
            printf("%s %zu %c\n", qmeld_version(), qmeld_chain_depth(chain), first);
        qmeld_chain_close(chain);
    }
    if (rc < 0)
        fprintf(stderr, "%s: %s\n", err.file, err.what);
    return rc < 0;
}
