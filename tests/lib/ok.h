/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * ok.h - calls that must succeed.
 *
 * Why.  Most calls of a test are only the way to the fact it is about.  OK(call(..., err)) makes
 * them, with an err of its own, and fails the test with the library's sentence and the line.
 * Include it behind cmocka.h.
 */
#ifndef QM_OK_H
#define QM_OK_H

#include "err.h"

#define OK(call)                                                                                   \
    do {                                                                                           \
        struct qmeld_error err_ = {0};                                                             \
        struct qmeld_error *err = &err_;                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", err_.file, err_.what);                                              \
    } while (0)

#endif
