/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domxml_test.c - libvirt's XML read, searched and changed.
 *
 * Layers are named by role in the edits: a path that begins with /m is merged, /b is the base.
 */
#include "domxml.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "ok.h"

#define HEAD                                                                                       \
    "<domain type='qemu' id='3'><name>vm</name><uuid>c7a5fdbd-cdaf-9455-926a-d65c16db1809</uuid>"  \
    "<devices>"
#define TAIL      "</devices></domain>"
#define FILE_(p)  "<source file='" p "'/>"
#define BS(f, p)  "<backingStore type='file'><format type='" f "'/>" FILE_(p)
#define TARGET(t) "<target dev='" t "' bus='virtio'/>"

/* ---- looking ---- */

static struct qm_domxml *
parse(const char *text)
{
    struct qm_domxml *x = NULL;

    OK(qm_domxml_parse(text, &x, err));
    return x;
}

static void
refused(const char *text, enum qmeld_code code)
{
    struct qmeld_error err = {0};
    struct qm_domxml *x;

    assert_int_equal(qm_domxml_parse(text, &x, &err), -1);
    assert_int_equal(err.code, code);
    assert_null(x);
}

static void
domxml__indexes_are_read_and_the_terminator_is_seen(void **state)
{
    struct qm_domxml *x = parse(
        HEAD
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source file='/m2' index='7'/>"
        "<backingStore type='file' index='2'><format type='qcow2'/>" FILE_(
            "/m1") "<backingStore type='block' index='9'><format type='raw'/><source "
                   "dev='/dev/b'/>"
                   "<backingStore/></backingStore></backingStore>" TARGET("vda") "</disk>" TAIL);
    const struct qm_domxml_disk *d = qm_domxml_find(x, "vda");

    (void)state;
    assert_string_equal(x->name, "vm");
    assert_string_equal(x->uuid, "c7a5fdbd-cdaf-9455-926a-d65c16db1809");
    assert_ptr_equal(d, qm_domxml_find(x, "/m2"));
    assert_null(qm_domxml_find(x, "vdb"));
    assert_int_equal(d->layers.n, 3);
    assert_true(d->terminated);
    assert_int_equal(d->layers.at[0].index, 7);
    assert_int_equal(d->layers.at[1].index, 2);
    assert_int_equal(d->layers.at[2].index, 9);
    assert_string_equal(d->layers.at[0].format, "qcow2");
    assert_string_equal(d->layers.at[2].format, "raw");
    assert_string_equal(d->layers.at[2].path, "/dev/b");
    assert_int_equal(d->layers.at[2].type, QM_SOURCE_BLOCK);
    qm_domxml_free(x);
}

static void
has_virtio_scsi(const char *text, bool only)
{
    struct qm_domxml *x = parse(text);

    assert_int_equal(x->virtio_scsi, only);
    qm_domxml_free(x);
}

/* What is not known to take no requests while QEMU's graph changes is taken for one that does. */
static void
domxml__controllers_without_ioeventfd_are_seen(void **state)
{
    struct qm_domxml *x = parse(
        HEAD "<disk type='file'><driver name='qemu' type='raw' ioeventfd='off'/>" FILE_("/m")
            TARGET("vda") "</disk><disk type='file'>" FILE_("/n") TARGET("vdb") "</disk>" TAIL);

    (void)state;
    assert_true(x->disks.at[0].no_ioeventfd);
    assert_false(x->disks.at[1].no_ioeventfd);
    qm_domxml_free(x);
    has_virtio_scsi(HEAD "<controller type='usb' model='none'/>"
                         "<controller type='scsi' index='0' model='virtio-scsi'/>" TAIL,
                    true);
    has_virtio_scsi(HEAD "<controller type='scsi' model='virtio-transitional'/>"
                         "<controller type='scsi' index='1' model='lsilogic'/>" TAIL,
                    false);
    has_virtio_scsi(HEAD "<controller type='scsi' index='0'/>" TAIL, false);
    has_virtio_scsi(HEAD "<controller type='scsi' model='virtio-scsi'>"
                         "<driver ioeventfd='off'/></controller>" TAIL,
                    false);
}

static void
domxml__a_chain_without_terminator_is_open(void **state)
{
    struct qm_domxml *x =
        parse(HEAD "<disk type='file'>" FILE_("/m2") TARGET("vda") "</disk>" TAIL);

    (void)state;
    assert_int_equal(x->disks.at[0].layers.n, 1);
    assert_false(x->disks.at[0].terminated);
    assert_null(x->disks.at[0].layers.at[0].format);
    assert_string_equal(x->disks.at[0].device, "disk");
    qm_domxml_free(x);
}

static void
domxml__flags_and_a_job_are_seen(void **state)
{
    struct qm_domxml *x = parse(HEAD "<disk type='file'>" FILE_(
        "/m2") "<mirror type='file' job='active-commit' "
               "ready='yes'><format type='raw'/>" FILE_("/b") "</mirror>" TARGET(
                   "vda") "<transient/></disk>"
                          "<disk type='file' "
                          "device='cdrom'><target dev='sda' "
                          "bus='sata'/><readonly/></disk>"
                          "<disk type='file'>" FILE_("/s")
                                    TARGET("vdb") "<shareable/"
                                                  "><mirror "
                                                  "type='file' "
                                                  "job='copy'>" FILE_("/c") "</"
                                                                            "mirror><"
                                                                            "/disk"
                                                                            ">" TAIL);
    const struct qm_domxml_disk *d = x->disks.at;

    (void)state;
    assert_true(d[0].transient && d[0].mirror.present && d[0].mirror.ready);
    assert_string_equal(d[0].mirror.job, "active-commit");
    assert_string_equal(d[0].mirror.source.path, "/b");
    assert_true(d[1].readonly);
    assert_int_equal(d[1].layers.n, 0);
    assert_string_equal(d[1].device, "cdrom");
    assert_true(d[2].shareable && d[2].mirror.present && !d[2].mirror.ready);
    qm_domxml_free(x);
}

static void
source_text_is(const struct qm_domxml_source *s, const char *wanted)
{
    QM_FREE char *text = qm_domxml_source_text(s);

    assert_string_equal(text, wanted);
}

static void
domxml__every_kind_of_source_has_a_name(void **state)
{
    struct qm_domxml *x =
        parse(HEAD "<disk type='network'><driver type='qcow2'/><source protocol='nbd' name='top'>"
                   "<host name='127.0.0.1' port='10809'/></source><target dev='vda'/></disk>"
                   "<disk type='network'><source protocol='nbd'><host transport='unix' "
                   "socket='/run/s'/></source><target dev='vdb'/></disk>"
                   "<disk type='volume'><source pool='p' volume='v'/><target dev='vdc'/></disk>"
                   "<disk type='nvme'><source type='pci'/><target dev='vdd'/></disk>"
                   "<disk type='file'><source index='1'/><target dev='sda'/></disk>" TAIL);

    (void)state;
    source_text_is(&x->disks.at[0].layers.at[0], "nbd://127.0.0.1:10809/top");
    source_text_is(&x->disks.at[1].layers.at[0], "nbd:///run/s/");
    source_text_is(&x->disks.at[2].layers.at[0], "p/v");
    assert_int_equal(x->disks.at[3].layers.at[0].type, QM_SOURCE_OTHER);
    assert_int_equal(x->disks.at[4].layers.n, 0);
    qm_domxml_free(x);
}

static void
domxml__what_the_files_are_for_is_seen(void **state)
{
    struct qm_domxml *x = parse(
        HEAD
        "<disk type='file'><source file='/a'><slices><slice type='storage' offset='1' "
        "size='2'/></slices><encryption format='luks'/><seclabel model='dac' relabel='no'/>"
        "<dataStore type='file'><format type='raw'/><source file='/data'/></dataStore>"
        "</source>" TARGET("vda") "</disk></devices><seclabel type='none' model='dac'/></domain>");
    const struct qm_domxml_disk *d = x->disks.at;

    (void)state;
    assert_true(d->layers.at[0].slices && d->layers.at[0].encrypted && d->no_relabel);
    assert_string_equal(d->layers.at[0].data_file, "/data");
    assert_true(x->no_relabel);
    qm_domxml_free(x);
}

#define SNAPSHOT                                                                                   \
    "<domainsnapshot><name>s2</name><parent><name>s1</name></parent>"                              \
    "<memory snapshot='external' file='/mem'/><disks>"                                             \
    "<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>" FILE_(               \
        "/m2") "</disk>"                                                                           \
               "<disk name='vdb' snapshot='external' type='file'>" FILE_(                          \
                   "/other") "</disk>"                                                             \
                             "<disk name='sda' snapshot='no'/></disks>"                            \
                             "<domain><name>vm</name><uuid>u</uuid><devices><disk "                \
                             "type='file'><driver name='qemu' "                                    \
                             "type='qcow2'/>" FILE_("/m1")                                         \
                                 BS("raw", "/b") "<backingStore/></backingStore>" TARGET(          \
                                     "vda") "</disk></devices></domain>"                           \
                                            "<inactiveDomain><name>vm</name><devices><disk "       \
                                            "type='file'><driver name='qemu' "                     \
                                            "type='qcow2'/>" FILE_("/m1")                          \
                                                TARGET("vda") "</disk></devices></inactiveDomain>" \
                                                              "</domainsnapshot>"

static void
domxml__a_snapshot_tells_parent_files_and_memory(void **state)
{
    struct qm_domxml *x = parse(SNAPSHOT);

    (void)state;
    assert_int_equal(x->kind, QM_DOMXML_SNAPSHOT);
    assert_string_equal(x->name, "s2");
    assert_string_equal(x->parent, "s1");
    assert_string_equal(x->memory, "/mem");
    assert_false(x->internal);
    assert_int_equal(x->snap_disks.n, 3);
    assert_true(x->snap_disks.at[0].external);
    assert_string_equal(x->snap_disks.at[0].source.path, "/m2");
    assert_false(x->snap_disks.at[2].external);
    assert_string_equal(x->disks.at[0].layers.at[1].path, "/b");
    qm_domxml_free(x);
}

static void
domxml__an_internal_snapshot_is_known(void **state)
{
    struct qm_domxml *x = parse("<domainsnapshot><name>i</name><memory snapshot='internal'/>"
                                "</domainsnapshot>");

    (void)state;
    assert_true(x->internal);
    assert_null(x->parent);
    qm_domxml_free(x);
    x = parse("<domainsnapshot><name>i</name><disks><disk name='vda' snapshot='internal'/></disks>"
              "</domainsnapshot>");
    assert_true(x->internal);
    qm_domxml_free(x);
}

/* ---- hostile text ---- */

static void
domxml__what_is_no_xml_is_refused(void **state)
{
    (void)state;
    refused("", QMELD_CORRUPT);
    refused("domain", QMELD_CORRUPT);
    refused("<domain><name>vm</name>", QMELD_CORRUPT);
    refused("<network><name>n</name></network>", QMELD_CORRUPT);
    refused("<domain/>", QMELD_CORRUPT);
    refused(HEAD "<disk type='file'>" FILE_("/a") "</disk>" TAIL, QMELD_CORRUPT);
}

static void
domxml__a_document_type_is_refused_before_it_is_read(void **state)
{
    (void)state;
    refused("<!DOCTYPE domain [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><domain><name>&a;</name>"
            "</domain>",
            QMELD_CORRUPT);
    refused("<?xml version='1.0'?>\n<!-- <domain> -->\n<!DOCTYPE d><domain><name>v</name></domain>",
            QMELD_CORRUPT);
    qm_domxml_free(parse("<?xml version='1.0'?><!-- c --><domain><name>v</name></domain>"));
}

static void
domxml__too_long_and_too_deep_is_refused(void **state)
{
    const size_t n = 400, each = strlen("<backingStore>");
    QM_FREE char *deep = calloc(1, 1000 + n * each);
    QM_FREE char *length = malloc(QM_DOMXML_MAX_LEN + 2);

    (void)state;
    strcat(deep, HEAD "<disk type='file'>");
    for (size_t i = 0; i < n; i++)
        strcat(deep, "<backingStore>");
    refused(deep, QMELD_CORRUPT);
    memset(length, ' ', QM_DOMXML_MAX_LEN + 1);
    length[QM_DOMXML_MAX_LEN + 1] = '\0';
    refused(length, QMELD_UNSUPPORTED);
}

/* ---- who mentions a file ---- */

static int
collect(const struct qm_domxml_source *s, const char *target, void *opaque)
{
    QM_FREE char *name = qm_domxml_source_text(s);
    char *out = opaque;

    snprintf(out + strlen(out), 512 - strlen(out), "%s=%s;", target, name);
    return 0;
}

static int
stop_at_once(const struct qm_domxml_source *s, const char *target, void *opaque)
{
    (void)s;
    (void)target;
    ++*(int *)opaque;
    return 7;
}

static void
domxml__every_source_is_told_of(void **state)
{
    char found[512] = "";
    struct qmeld_error unheard = {0};
    int n = 0;

    (void)state;
    OK(qm_domxml_each_source(
        HEAD "<disk type='file'><source file='/a'><dataStore type='file'><source file='/data'/>"
             "</dataStore></source>" BS(
                 "raw",
                 "/b") "</backingStore>"
                       "<mirror type='block'><source dev='/dev/m'/></mirror>" TARGET(
                           "vda") "</disk>"
                                  "<disk type='volume'><source pool='p' volume='v'/><target "
                                  "dev='vdb'/></disk>"
                                  "<filesystem type='block'><source dev='/dev/fs'/><target "
                                  "dir='/'/></filesystem>"
                                  "<interface type='direct'><source dev='eth0'/></interface>" TAIL,
        collect, found, err));
    assert_string_equal(found, "vda=/a;vda=/data;vda=/b;vda=/dev/m;vdb=p/v;=/dev/fs;");
    found[0] = '\0';
    OK(qm_domxml_each_source(SNAPSHOT, collect, found, err));
    assert_string_equal(found, "vda=/m2;vdb=/other;vda=/m1;vda=/b;vda=/m1;");
    assert_int_equal(qm_domxml_each_source(SNAPSHOT, stop_at_once, &n, &unheard), 7);
    assert_int_equal(n, 1);
}

/* ---- changes ---- */

static enum qm_layer_role
by_letter(const struct qm_domxml_source *s, void *opaque)
{
    (void)opaque;
    if (!s->path)
        return QM_LAYER_OTHER;
    if (s->path[1] == 'm')
        return QM_LAYER_MERGED;
    return s->path[1] == 'b' ? QM_LAYER_BASE : QM_LAYER_OTHER;
}

static const struct qm_domxml_edit into_raw = {
    .target = "vda", .role = by_letter, .base = "/b", .base_format = "raw"};

/* A <disk> of a domain becomes this; NULL: it stays. */
static void
becomes(const struct qm_domxml_edit *edit, const char *disk, const char *wanted)
{
    char domain[4096];
    QM_FREE char *out = NULL;

    snprintf(domain, sizeof domain, HEAD "<disk type='file'><target dev='vdz'/></disk>%s" TAIL,
             disk);
    OK(qm_domxml_edit_disk(domain, edit, &out, err));
    if (wanted) {
        assert_non_null(out);
        assert_string_equal(out, wanted);
    } else {
        assert_null(out);
    }
}

#define D(type) "<driver name=\"qemu\" type=\"" type "\" cache=\"none\" io=\"native\"/>"
#define F(p)    "<source file=\"" p "\"/>"
#define B(f, p) "<backingStore type=\"file\"><format type=\"" f "\"/>" F(p)
#define T       "<target dev=\"vda\" bus=\"virtio\"/>"
#define DISK    "<disk type=\"file\" device=\"disk\">"
#define END     "<serial>x</serial><boot order=\"1\"/><address type=\"pci\" slot=\"0x04\"/></disk>"

static void
domxml__middle_layers_are_dropped_and_the_rest_is_linked(void **state)
{
    (void)state;
    becomes(&into_raw,
            DISK D("qcow2") F("/top") B("qcow2", "/m2") B("qcow2", "/m1")
                B("raw", "/b") "<backingStore/></backingStore></backingStore></backingStore>" T END,
            DISK D("qcow2") F("/top") B("raw", "/b") "<backingStore/></backingStore>" T END);
}

static void
domxml__no_terminator_is_added(void **state)
{
    (void)state;
    becomes(&into_raw,
            DISK D("qcow2") F("/top") B("qcow2", "/m1")
                B("raw", "/b") "</backingStore></backingStore>" T END,
            DISK D("qcow2") F("/top") B("raw", "/b") "</backingStore>" T END);
    /* the base is not listed: the headers will tell */
    becomes(&into_raw, DISK D("qcow2") F("/top") B("qcow2", "/m1") "</backingStore>" T END,
            DISK D("qcow2") F("/top") T END);
}

static void
domxml__a_merged_top_becomes_the_base(void **state)
{
    (void)state;
    becomes(&into_raw,
            DISK D("qcow2") F("/m2") B("qcow2", "/m1")
                B("raw", "/b") "<backingStore/></backingStore></backingStore>" T END,
            DISK D("raw") F("/b") "<backingStore/>" T END);
    becomes(&into_raw, DISK D("qcow2") F("/m2") T END, DISK D("raw") F("/b") T END);
}

static void
domxml__layers_under_the_base_stay(void **state)
{
    const struct qm_domxml_edit edit = {
        .target = "vda", .role = by_letter, .base = "/b", .base_format = "qcow2"};

    (void)state;
    becomes(&edit,
            DISK D("qcow2") F("/m1") B("qcow2", "/b")
                B("raw", "/z") "<backingStore/></backingStore></backingStore>" T END,
            DISK D("qcow2") F("/b") B("raw", "/z") "<backingStore/></backingStore>" T END);
}

static void
domxml__a_base_on_a_device_changes_the_type(void **state)
{
    const struct qm_domxml_edit edit = {.target = "vda",
                                        .role = by_letter,
                                        .base = "/dev/b",
                                        .base_format = "raw",
                                        .base_blockdev = true};

    (void)state;
    becomes(&edit,
            "<disk type=\"file\"><driver name=\"qemu\" type=\"qcow2\" discard_no_unref=\"on\">"
            "<metadata_cache><max_size>1</max_size></metadata_cache></driver>"
            "<source file=\"/m1\" startupPolicy=\"optional\" index=\"4\"><seclabel model=\"dac\" "
            "relabel=\"no\"/></source>" T "</disk>",
            "<disk type=\"block\"><driver name=\"qemu\" type=\"raw\"/>"
            "<source startupPolicy=\"optional\" dev=\"/dev/b\"><seclabel model=\"dac\" "
            "relabel=\"no\"/></source>" T "</disk>");
}

static void
domxml__a_missing_driver_is_added(void **state)
{
    (void)state;
    becomes(&into_raw, "<disk type=\"file\">" F("/m1") T "</disk>",
            "<disk type=\"file\"><driver type=\"raw\"/>" F("/b") T "</disk>");
}

static void
domxml__a_disk_without_merged_layers_stays(void **state)
{
    (void)state;
    becomes(&into_raw, DISK D("raw") F("/b") T END, NULL);
    becomes(&into_raw, DISK D("qcow2") F("/top") B("raw", "/b") "</backingStore>" T END, NULL);
}

static void
edit_refused(const char *disk, enum qmeld_code code)
{
    struct qmeld_error err = {0};
    char domain[4096];
    char *out;

    snprintf(domain, sizeof domain, HEAD "%s" TAIL, disk);
    assert_int_equal(qm_domxml_edit_disk(domain, &into_raw, &out, &err), -1);
    assert_int_equal(err.code, code);
    assert_null(out);
}

static void
domxml__a_chain_that_says_otherwise_is_not_touched(void **state)
{
    (void)state;
    edit_refused(DISK D("qcow2") F("/m1") "<backingStore/>" T END, QMELD_STALE);
    edit_refused(DISK D("qcow2") F("/m1") B("raw", "/x") "</backingStore>" T END, QMELD_STALE);
    edit_refused("", QMELD_USAGE);
}

static void
domxml__a_snapshot_of_several_disks_forgets_one(void **state)
{
    QM_FREE char *out = NULL;
    struct qm_domxml *x;
    char found[512] = "";

    (void)state;
    OK(qm_domxml_edit_all(SNAPSHOT, &into_raw, 1, &out, err));
    assert_non_null(strstr(out, "<disk name=\"vda\" snapshot=\"no\"/>"));
    assert_non_null(strstr(out, "<driver name=\"qemu\" type=\"raw\"/>"));
    OK(qm_domxml_each_source(out, collect, found, err));
    assert_string_equal(found, "vdb=/other;vda=/b;vda=/b;");
    x = parse(out);
    assert_true(x->disks.at[0].terminated);
    qm_domxml_free(x);
}

static void
domxml__a_document_that_need_not_change_is_not_given(void **state)
{
    const struct qm_domxml_edit edit = {
        .target = "vdc", .role = by_letter, .base = "/b", .base_format = "raw"};
    char *out;

    (void)state;
    OK(qm_domxml_edit_all(SNAPSHOT, &edit, 1, &out, err));
    assert_null(out);
}

static void
domxml__names_keep_their_letters(void **state)
{
    const struct qm_domxml_edit edit = {
        .target = "vda", .role = by_letter, .base = "/b\xc3\xa4 & <'\">.img", .base_format = "raw"};
    QM_FREE char *out = NULL;
    struct qm_domxml *x;

    (void)state;
    OK(qm_domxml_edit_all(HEAD DISK D("qcow2") F("/m1") T END TAIL, &edit, 1, &out, err));
    x = parse(out);
    assert_string_equal(x->disks.at[0].layers.at[0].path, edit.base);
    qm_domxml_free(x);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(domxml__indexes_are_read_and_the_terminator_is_seen),
        cmocka_unit_test(domxml__controllers_without_ioeventfd_are_seen),
        cmocka_unit_test(domxml__a_chain_without_terminator_is_open),
        cmocka_unit_test(domxml__flags_and_a_job_are_seen),
        cmocka_unit_test(domxml__every_kind_of_source_has_a_name),
        cmocka_unit_test(domxml__what_the_files_are_for_is_seen),
        cmocka_unit_test(domxml__a_snapshot_tells_parent_files_and_memory),
        cmocka_unit_test(domxml__an_internal_snapshot_is_known),
        cmocka_unit_test(domxml__what_is_no_xml_is_refused),
        cmocka_unit_test(domxml__a_document_type_is_refused_before_it_is_read),
        cmocka_unit_test(domxml__too_long_and_too_deep_is_refused),
        cmocka_unit_test(domxml__every_source_is_told_of),
        cmocka_unit_test(domxml__middle_layers_are_dropped_and_the_rest_is_linked),
        cmocka_unit_test(domxml__no_terminator_is_added),
        cmocka_unit_test(domxml__a_merged_top_becomes_the_base),
        cmocka_unit_test(domxml__layers_under_the_base_stay),
        cmocka_unit_test(domxml__a_base_on_a_device_changes_the_type),
        cmocka_unit_test(domxml__a_missing_driver_is_added),
        cmocka_unit_test(domxml__a_disk_without_merged_layers_stays),
        cmocka_unit_test(domxml__a_chain_that_says_otherwise_is_not_touched),
        cmocka_unit_test(domxml__a_snapshot_of_several_disks_forgets_one),
        cmocka_unit_test(domxml__a_document_that_need_not_change_is_not_given),
        cmocka_unit_test(domxml__names_keep_their_letters),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
