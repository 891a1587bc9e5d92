/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * page.h - the files of src/cli/page/, which the build puts into the program (page/embed.cmake).
 *
 * A page may run and look like these texts only: its policy has their digests.
 */
#ifndef QM_CLI_PAGE_H
#define QM_CLI_PAGE_H

extern const char qm_page_chain_css[]; /* of SVG and page: colours and patterns */
extern const char qm_page_page_css[];
extern const char qm_page_page_js[];

/* "sha256-...", as Content-Security-Policy has it (CSP level 3, section 2.3.1) */
extern const char qm_page_chain_css_digest[];
extern const char qm_page_page_css_digest[];
extern const char qm_page_page_js_digest[];

#endif
