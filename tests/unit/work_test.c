/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * work_test.c - the worker pool: everything is done once, the first error wins, a wish stops it.
 */
#include "work.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct sum {
    _Atomic unsigned total;
    _Atomic unsigned runs;
    unsigned fail_at; /* item that fails */
    bool stop;        /* what tick answers */
    unsigned nap_us;
};

static int
add(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct sum *s = shared;
    const unsigned v = *(const unsigned *)item;

    (void)worker;
    atomic_fetch_add(&s->runs, 1);
    if (s->nap_us)
        usleep(s->nap_us);
    if (v == s->fail_at)
        return qm_fail(err, QMELD_IO, qm_at("f", v), "item %u", v);
    atomic_fetch_add(&s->total, v);
    return 0;
}

static int
tick(void *shared)
{
    return ((struct sum *)shared)->stop;
}

static struct qm_pool *
pool_of(struct sum *s, unsigned threads)
{
    const struct qm_pool_config config = {.threads = threads,
                                          .item_size = sizeof(unsigned),
                                          .queue_len = 4,
                                          .fn = add,
                                          .tick = tick,
                                          .shared = s};
    struct qmeld_error err = {0};
    struct qm_pool *p;

    assert_int_equal(qm_pool_new(&config, &p, &err), 0);
    return p;
}

static void
work__every_item_runs_once(void **state)
{
    struct sum s = {.fail_at = UINT32_MAX};
    struct qmeld_error err = {0};
    struct qm_pool *p = pool_of(&s, 3);

    (void)state;
    for (unsigned round = 0; round < 2; round++) { /* drain does not end the pool */
        for (unsigned i = 1; i <= 1000; i++)
            assert_int_equal(qm_pool_put(p, &i, &err), 0);
        assert_int_equal(qm_pool_drain(p, &err), 0);
        assert_int_equal(s.total, (round + 1) * 500500);
    }
    qm_pool_free(p);
    assert_int_equal(s.runs, 2000);
}

static void
work__the_first_error_is_told_and_ends_the_work(void **state)
{
    struct sum s = {.fail_at = 10};
    struct qmeld_error err = {0};
    struct qm_pool *p = pool_of(&s, 2);
    int rc = 0;

    (void)state;
    for (unsigned i = 1; i <= 100000 && rc == 0; i++)
        rc = qm_pool_put(p, &i, &err);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, QMELD_IO);
    assert_int_equal(err.off, 10);
    memset(&err, 0, sizeof err);
    assert_int_equal(qm_pool_drain(p, &err), -1);
    assert_int_equal(err.off, 10);
    assert_true(s.runs < 100000);
    qm_pool_free(p);
}

static void
work__an_error_keeps_what_the_caller_knows_of_the_disk(void **state)
{
    struct sum s = {.fail_at = 1};
    struct qmeld_error err = {.disk = QMELD_DISK_OPEN};
    struct qm_pool *p = pool_of(&s, 1);
    const unsigned one = 1;

    (void)state;
    assert_int_equal(qm_pool_put(p, &one, &err), 0);
    assert_int_equal(qm_pool_drain(p, &err), -1);
    assert_int_equal(err.disk, QMELD_DISK_OPEN);
    qm_pool_free(p);
}

static void
work__the_callers_wish_stops_a_slow_queue(void **state)
{
    struct sum s = {.fail_at = UINT32_MAX, .stop = true, .nap_us = 300000};
    struct qmeld_error err = {0};
    struct qm_pool *p = pool_of(&s, 1);
    int rc = 0;

    (void)state;
    for (unsigned i = 1; i <= 20 && rc == 0; i++)
        rc = qm_pool_put(p, &i, &err);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    qm_pool_free(p);
    assert_true(s.runs < 20);
}

/* Neither a queue that moves nor one that is never full keeps the tick from its turn. */
static void
stop_in_time(unsigned worker_us, unsigned caller_us)
{
    struct sum s = {.fail_at = UINT32_MAX, .stop = true, .nap_us = worker_us};
    struct qmeld_error err = {0};
    struct qm_pool *p = pool_of(&s, 1);
    int rc = 0;

    for (unsigned i = 1; i <= 2000 && rc == 0; i++) {
        rc = qm_pool_put(p, &i, &err);
        usleep(caller_us);
    }
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    qm_pool_free(p);
}

static void
work__the_callers_wish_stops_a_quick_queue(void **state)
{
    (void)state;
    stop_in_time(1000, 0);
}

static void
work__the_callers_wish_stops_a_slow_caller(void **state)
{
    (void)state;
    stop_in_time(0, 1000);
}

static void
work__who_puts_nothing_can_be_stopped_too(void **state)
{
    struct sum s = {.fail_at = UINT32_MAX, .stop = true};
    struct qmeld_error err = {0};
    struct qm_pool *p = pool_of(&s, 1);
    int rc = 0;

    (void)state;
    for (unsigned i = 1; i <= 2000 && rc == 0; i++) {
        rc = qm_pool_tick(p, &err);
        usleep(1000);
    }
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    qm_pool_free(p);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(work__every_item_runs_once),
        cmocka_unit_test(work__the_first_error_is_told_and_ends_the_work),
        cmocka_unit_test(work__an_error_keeps_what_the_caller_knows_of_the_disk),
        cmocka_unit_test(work__the_callers_wish_stops_a_slow_queue),
        cmocka_unit_test(work__the_callers_wish_stops_a_quick_queue),
        cmocka_unit_test(work__the_callers_wish_stops_a_slow_caller),
        cmocka_unit_test(work__who_puts_nothing_can_be_stopped_too),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
