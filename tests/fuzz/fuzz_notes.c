/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_notes.c - any bytes as what qmeld finds beside an image: journal, note of a flattening, note of a domain.
 *
 * Input: kind, one byte; how the checksums are, one byte; the file.  A fuzzer finds no checksum, so they are put right
 * for it, in three of four inputs.  Looking (status, partials, notes) changes nothing.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define INTENT_OFF 4096u /* docs/format.md, "The journal" */
#define NOTE_TEXT  64u   /* "Notes" */

static void
put32(uint8_t *at, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void
mend_journal(uint8_t *at, size_t len)
{
    if (len < INTENT_OFF + 2)
        return;
    memcpy(at, "qmeld journal\n\0", 16);
    put32(at + 16, 2);
    put32(at + 20, (uint32_t)(len - INTENT_OFF));
    put32(at + 24, (uint32_t)crc32(0, at + INTENT_OFF, (unsigned)(len - INTENT_OFF)));
    put32(at + 28, (uint32_t)crc32(0, at, 28));
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *cursor = at + 512 + 512 * (size_t)i;

        memcpy(cursor, "curs", 4);
        put32(cursor + 120, (uint32_t)crc32(0, cursor, 120));
    }
}

static void
mend_note(uint8_t *at, size_t len)
{
    if (len < NOTE_TEXT)
        return;
    memcpy(at, "qmeld note\n\0\0\0\0", 16);
    put32(at + 16, 1);
    put32(at + 20, (uint32_t)(len - NOTE_TEXT));
    put32(at + 24, (uint32_t)crc32(0, at + NOTE_TEXT, (unsigned)(len - NOTE_TEXT)));
    put32(at + 32, (uint32_t)crc32(0, at, 32));
}

static int
unfinished(const struct qmeld_unfinished *m, void *opaque)
{
    (void)opaque;
    qm_fuzz_must(m->journal, "it has a journal");
    if (m->problem)
        qm_fuzz_must(m->problem->what[0], "a problem says why");
    else
        qm_fuzz_must(m->active && m->base && m->top && m->n_layers > 0 &&
                         m->base_layer < m->n_layers && m->top_layer < m->n_layers &&
                         m->target_layer < m->n_layers,
                     "layers are layers");
    return 0;
}

static int
partial(const struct qmeld_partial *p, void *opaque)
{
    (void)opaque;
    qm_fuzz_must(p->out, "it is of an image");
    return 0;
}

static int
note(const char *path, const char *text, const struct qmeld_error *problem, void *opaque)
{
    (void)opaque;
    qm_fuzz_must(path && (text || problem->what[0]), "a note, or why not");
    return 0;
}

static void
look(const char *name)
{
    struct qmeld_error err;
    unsigned step;
    char *text;

    (void)!qmeld_status(".", NULL, unfinished, NULL, &err);
    (void)!qmeld_status(name, NULL, unfinished, NULL, &err);
    (void)!qmeld_partials(".", partial, NULL, &err);
    (void)!qmeld_notes(".", note, NULL, &err);
    if (qmeld_note_read(name, &text, &step, &err) == 0)
        free(text);
    else
        qm_fuzz_must(err.what[0], "a failure says why");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const char *const names[] = {".b.qmeld", ".b.qmeld-flatten", ".b.qmeld-domain"};
    const char *name;
    uint8_t *file;

    if (len < 2 || len > 1 << 18)
        return 0;
    name = names[data[0] % 3];
    file = malloc(len - 2 + 1);
    qm_fuzz_must(file, "memory");
    memcpy(file, data + 2, len - 2);
    if (data[1] % 4 && data[0] % 3 == 0)
        mend_journal(file, len - 2);
    else if (data[1] % 4)
        mend_note(file, len - 2);
    qm_fuzz_folder();
    qm_fuzz_write(name, file, len - 2);
    qm_fuzz_write("b", "b", 1);
    qm_fuzz_write(".b.qmeld-partial", "", 0);
    look(name);
    qm_fuzz_must(qm_fuzz_holds(name, file, len - 2), "looking changed it");
    qm_fuzz_clean();
    free(file);
    return 0;
}
