/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fields.h - members of a JSON object, each of the type that is meant.
 *
 * Why.  Journals and notes are read back by whoever goes on, and obeyed: a member that is missing, or of another type, must
 * not become a zero.
 *
 * Ownership  Strings are malloc'd, the caller's.
 * Errors     False: it is not there, or is something else; or there is no memory.
 */
#ifndef QM_FIELDS_H
#define QM_FIELDS_H

#include <json-c/json_types.h>
#include <stdbool.h>
#include <stdint.h>

/* null: *out is NULL, if that is fine. */
bool qm_field_text(struct json_object *o, const char *key, bool null_is_fine, char **out);

/* Not negative. */
bool qm_field_number(struct json_object *o, const char *key, uint64_t *out);

/* Seconds or nanoseconds: a time may lie before 1970. */
bool qm_field_time(struct json_object *o, const char *key, int64_t *out);

bool qm_field_bool(struct json_object *o, const char *key, bool *out);

/* The object's string; NULL: there is none. */
const char *qm_field_word(struct json_object *o, const char *key);

/* For what is left out where it is 0, or false. */
uint64_t qm_field_number_or_0(struct json_object *o, const char *key);
bool qm_field_is_true(struct json_object *o, const char *key);

/* *out is borrowed. */
bool qm_field_array(struct json_object *o, const char *key, struct json_object **out);

#endif
