/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* markup.c - text on its way into SVG, HTML and the data of a page. */
#include "markup.h"

#include "cli.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* The next character of text that qm_cli_quote has seen: it is UTF-8. */
static uint32_t
next(const char **text)
{
    const unsigned char *s = (const unsigned char *)*text;
    const size_t n = s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    uint32_t c = n == 1 ? s[0] : s[0] & (0xffu >> (n + 1));

    for (size_t i = 1; i < n; i++)
        c = c << 6 | (s[i] & 0x3f);
    *text += n;
    return c;
}

/* What turns the text around that follows (Unicode's bidirectional controls), what cannot be seen, and what is no
 * character of XML (section 2.2). */
static bool
is_treacherous(uint32_t c)
{
    return (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
           (c >= 0x2060 && c <= 0x206f) || c == 0x061c || c == 0xfeff || (c & 0xfffe) == 0xfffe ||
           (c >= 0xfdd0 && c <= 0xfdef) || (c >= 0xe0000 && c <= 0xe0fff);
}

static void
put_entity(char c)
{
    printf("&#%u;", (unsigned)(unsigned char)c);
}

static void
put_unicode(char c)
{
    printf("\\u%04x", (unsigned)(unsigned char)c);
}

static void
put(const char *text, const char *special, void (*escape)(char), const char *backslash)
{
    QM_CLI_FREE char *quoted = qm_cli_quote(text);
    const char *s = quoted;

    while (*s) {
        const char *from = s;
        const uint32_t c = next(&s);

        if (is_treacherous(c))
            printf("%su{%" PRIx32 "}", backslash, c);
        else if (c < 0x80 && strchr(special, (int)c))
            escape((char)c);
        else
            fwrite(from, 1, (size_t)(s - from), stdout);
    }
}

void
qm_markup_text(const char *text)
{
    put(text, "<>&\"'`", put_entity, "\\");
}

void
qm_markup_json(const char *text)
{
    putchar('"');
    put(text, "<>&\"'`\\/", put_unicode, "\\u005c");
    putchar('"');
}

static char *
format_text(const char *format, va_list args)
{
    char *text;

    if (vasprintf(&text, format, args) < 0)
        qm_cli_no_memory();
    return text;
}

void
qm_markup_textf(const char *format, ...)
{
    QM_CLI_FREE char *text = NULL;
    va_list args;

    va_start(args, format);
    text = format_text(format, args);
    va_end(args);
    qm_markup_text(text);
}

void
qm_markup_jsonf(const char *format, ...)
{
    QM_CLI_FREE char *text = NULL;
    va_list args;

    va_start(args, format);
    text = format_text(format, args);
    va_end(args);
    qm_markup_json(text);
}
