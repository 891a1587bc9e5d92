/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fields.h"

#include <json-c/json.h>
#include <string.h>

bool
qm_field_text(struct json_object *o, const char *key, bool null_is_fine, char **out)
{
    struct json_object *v;

    *out = NULL;
    if (!json_object_object_get_ex(o, key, &v))
        return false;
    if (!v)
        return null_is_fine;
    if (!json_object_is_type(v, json_type_string))
        return false;
    *out = strdup(json_object_get_string(v));
    return *out != NULL;
}

bool
qm_field_number(struct json_object *o, const char *key, uint64_t *out)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_int) ||
        json_object_get_int64(v) < 0)
        return false;
    *out = json_object_get_uint64(v);
    return true;
}

bool
qm_field_time(struct json_object *o, const char *key, int64_t *out)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_int))
        return false;
    *out = json_object_get_int64(v);
    return true;
}

bool
qm_field_bool(struct json_object *o, const char *key, bool *out)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, key, &v) || !json_object_is_type(v, json_type_boolean))
        return false;
    *out = json_object_get_boolean(v);
    return true;
}

bool
qm_field_array(struct json_object *o, const char *key, struct json_object **out)
{
    return json_object_object_get_ex(o, key, out) && json_object_is_type(*out, json_type_array);
}

const char *
qm_field_word(struct json_object *o, const char *key)
{
    struct json_object *v;

    return json_object_object_get_ex(o, key, &v) && json_object_is_type(v, json_type_string)
               ? json_object_get_string(v)
               : NULL;
}

uint64_t
qm_field_number_or_0(struct json_object *o, const char *key)
{
    uint64_t n;

    return qm_field_number(o, key, &n) ? n : 0;
}

bool
qm_field_is_true(struct json_object *o, const char *key)
{
    bool yes;

    return qm_field_bool(o, key, &yes) && yes;
}
