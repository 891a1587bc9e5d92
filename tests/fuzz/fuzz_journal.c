/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_journal.c - any bytes as a journal, and as the intent in one.
 *
 * What is taken for an intent is written as one that is the same when it is read again.
 */
#include "fuzz.h"

#include "journal.h"

#include <stdlib.h>
#include <string.h>

static void
as_intent(const char *text)
{
    struct qm_intent i, again;

    if (qm_intent_parse(text, &i)) {
        char *first = qm_intent_text(&i), *second;

        qm_fuzz_must(first && qm_intent_parse(first, &again), "what we write can be read");
        second = qm_intent_text(&again);
        qm_fuzz_must(second && strcmp(first, second) == 0, "and is the same");
        free(first);
        free(second);
        qm_intent_release(&again);
    }
    qm_intent_release(&i);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = malloc(len + 1);
    struct qm_journal *j;
    struct qmeld_error err;

    qm_fuzz_must(text, "memory");
    if (len > 0)
        memcpy(text, data, len);
    text[len] = 0;
    as_intent(text);
    free(text);

    qm_fuzz_folder();
    qm_fuzz_write("j", data, len);
    if (qm_journal_load("j", &j, &err) == 0)
        qm_journal_close(j);
    else
        qm_fuzz_must(err.what[0], "a failure says why");
    qm_fuzz_must(qm_fuzz_holds("j", data, len), "looking changed the journal");
    qm_fuzz_clean();
    return 0;
}
