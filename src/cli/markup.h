/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * markup.h - text on its way into SVG, HTML and the data of a page.
 *
 * Why.  Names come out of images, and whoever made those may want them to be read as tags, as the end of a
 * script, or from right to left.  Nothing of them is printed but through these calls.
 *
 * Calls      Text is given as it is; both make it harmless, as qm_cli_quote does, and escape it.
 * Threads    One.
 * Errors     None: what cannot be printed is seen by main, in stdout.
 */
#ifndef QM_CLI_MARKUP_H
#define QM_CLI_MARKUP_H

/* Between tags, or between the quotes of an attribute. */
void qm_markup_text(const char *text);

/* A string of JSON, quotes included, that may stand inside of <script>. */
void qm_markup_json(const char *text);

/* The same of what printf would make. */
void qm_markup_textf(const char *format, ...) __attribute__((format(printf, 1, 2)));
void qm_markup_jsonf(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
