/*
 * Interrupts from threads and signal handlers, while the client takes eventfds
 * away, replaces them, or fills their counters. Every trigger that succeeded is
 * counted, none waits, and no descriptor is left behind.
 *
 * LIBVFIO_USER_TEST_SECONDS says how long counters are filled; without it a
 * number of rounds is.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <time.h>

#include "client.h"

enum { THREADS = 3, REPLACEMENTS = 600, ROUNDS = 2000, SIGNALS = 400 };

#define FULL (UINT64_MAX - 1)

static vfu_ctx_t *ctx;
static int client;

static void
begin(void)
{
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 4), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
}

static void
end(void)
{
    close(client);
    vfu_destroy_ctx(ctx);
}

/* Assigns an eventfd to a vector; -1 takes the one away that it has. */
static void
assign(uint32_t vector, int event)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFU_DEV_MSIX_IRQ, .start = vector, .count = 1 };

    client_send_flags(client, 2, VFIO_USER_DEVICE_SET_IRQS, 0, &set, sizeof(set), event);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 2, VFIO_USER_DEVICE_SET_IRQS, NULL, 0);
}

static int
open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

static uint64_t
taken(int event)
{
    uint64_t count = 0;

    CHECK(read(event, &count, sizeof(count)) == sizeof(count) || errno == EAGAIN);
    return count;
}

static uint64_t
taken_of_blocking(int event)
{
    struct pollfd entry = { .fd = event, .events = POLLIN };

    return poll(&entry, 1, 0) == 1 ? taken(event) : 0;
}

static atomic_bool stop;
static atomic_ulong triggered, missing;

static void *
trigger_all_the_time(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop)) {
        if (vfu_irq_trigger(ctx, 0) == 0) {
            atomic_fetch_add(&triggered, 1);
        } else {
            CHECK_EQ(errno, ENOENT);
            atomic_fetch_add(&missing, 1);
        }
    }
    return NULL;
}

static void
eventfds_come_and_go_under_threads_that_trigger(void)
{
    pthread_t threads[THREADS];
    int events[2] = { eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
    int blocking = eventfd(0, EFD_CLOEXEC | (has_aio() ? 0 : EFD_NONBLOCK)), before;
    uint64_t sum = 0, count;

    begin();
    assign(1, events[0]); /* so that the type is in use all the time */
    before = open_descriptors();
    atomic_store(&stop, false);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, trigger_all_the_time, NULL), 0);
    }
    for (int i = 0; i < REPLACEMENTS || atomic_load(&triggered) == 0 || atomic_load(&missing) == 0; i++) {
        assign(0, i % 4 == 3 ? -1 : i % 4 == 2 ? blocking : events[i % 2]);
        if (i % 16 == 15) {
            sched_yield();
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    /* All is closed by now, with no further word from the client. */
    assign(0, -1);
    CHECK_EQ(open_descriptors(), before);
    count = 1;
    CHECK_EQ(write(blocking, &count, sizeof(count)), sizeof(count));
    sum = taken(events[0]) + taken(events[1]) + taken(blocking) - 1;
    CHECK_EQ(sum, atomic_load(&triggered));
    end();
    close(events[0]);
    close(events[1]);
    close(blocking);
}

static atomic_ulong round_begun, round_filled;
static int filled;

static void *
fill_once_a_round(void *argument)
{
    const uint64_t nearly = FULL - 1;

    (void)argument;
    for (unsigned long round = 1;; round++) {
        while (atomic_load(&round_begun) < round) {
            if (atomic_load(&stop)) {
                return NULL;
            }
            sched_yield();
        }
        /* Behind two triggers it waits until these have been taken. */
        CHECK_EQ(write(filled, &nearly, sizeof(nearly)), sizeof(nearly));
        atomic_store(&round_filled, round);
    }
}

/* A client that fills the counter of a blocking eventfd, just when it was seen to
 * have room, and then reads nothing. A trigger that waits waits for ever here. */
static void
a_counter_that_is_filled_holds_nobody(void)
{
    const char *seconds = getenv("LIBVFIO_USER_TEST_SECONDS");
    time_t until = seconds != NULL ? time(NULL) + atoi(seconds) : 0;
    pthread_t thread;

    begin();
    filled = eventfd(0, EFD_CLOEXEC);
    assign(0, filled);
    atomic_store(&stop, false);
    CHECK_EQ(pthread_create(&thread, NULL, fill_once_a_round, NULL), 0);
    for (unsigned long round = 1; seconds != NULL ? time(NULL) < until : round <= ROUNDS; round++) {
        uint64_t expected = FULL - 1, sum = 0;

        atomic_store(&round_begun, round);
        for (volatile unsigned i = 0; i < round % 512; i++) {
        }
        for (int i = 0; i < 2; i++) {
            if (vfu_irq_trigger(ctx, 0) == 0) {
                expected++;
            } else {
                CHECK_EQ(errno, EAGAIN);
            }
        }
        while (atomic_load(&round_filled) < round) {
            sum += taken_of_blocking(filled);
            sched_yield();
        }
        sum += taken_of_blocking(filled);
        CHECK(sum == expected);
    }
    atomic_store(&stop, true);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    end();
    close(filled);
}

static volatile sig_atomic_t signals;

static void
trigger_in_handler(int number)
{
    int error = errno;

    (void)number;
    if (vfu_irq_trigger(ctx, 0) == 0) {
        atomic_fetch_add(&triggered, 1);
    }
    signals++;
    errno = error;
}

/* On the thread that triggers and assigns: a lock would be taken twice here. */
static void
a_signal_handler_may_trigger(void)
{
    struct sigaction action = { .sa_handler = trigger_in_handler };
    struct itimerspec every = { .it_interval = { 0, 50000 }, .it_value = { 0, 50000 } };
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2 };
    int events[2] = { eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };
    int before;
    sigset_t usual, held;
    timer_t timer;

    begin();
    assign(1, events[0]);
    before = open_descriptors();
    atomic_store(&triggered, 0);
    CHECK_EQ(sigaction(SIGUSR2, &action, NULL), 0);
    CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
    CHECK_EQ(timer_settime(timer, 0, &every, NULL), 0);
    sigemptyset(&held);
    sigaddset(&held, SIGUSR2);
    for (int i = 0; signals < SIGNALS; i++) {
        struct vfio_irq_set set = {
            .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            .index = VFU_DEV_MSIX_IRQ, .count = 1 };

        /* The client's own system calls are not what is tried. */
        CHECK_EQ(pthread_sigmask(SIG_BLOCK, &held, &usual), 0);
        client_send_flags(client, 2, VFIO_USER_DEVICE_SET_IRQS, 0, &set, sizeof(set), i % 3 == 2 ? -1 : events[i % 2]);
        CHECK_EQ(pthread_sigmask(SIG_SETMASK, &usual, NULL), 0);
        while (vfu_run_ctx(ctx) != 1) {
            CHECK(errno == 0 || errno == EINTR || errno == EAGAIN);
        }
        if (vfu_irq_trigger(ctx, 0) == 0) {
            atomic_fetch_add(&triggered, 1);
        }
        CHECK_EQ(pthread_sigmask(SIG_BLOCK, &held, &usual), 0);
        client_reply(client, 2, VFIO_USER_DEVICE_SET_IRQS, NULL, 0);
        CHECK_EQ(pthread_sigmask(SIG_SETMASK, &usual, NULL), 0);
    }
    CHECK_EQ(timer_delete(timer), 0);
    CHECK_EQ(signal(SIGUSR2, SIG_IGN) == trigger_in_handler, 1);
    assign(0, -1);
    CHECK_EQ(open_descriptors(), before);
    CHECK_EQ(taken(events[0]) + taken(events[1]), atomic_load(&triggered));
    end();
    close(events[0]);
    close(events[1]);
}

int
main(void)
{
    make_socket_folder();
    RUN(eventfds_come_and_go_under_threads_that_trigger);
    if (has_aio()) {
        RUN(a_counter_that_is_filled_holds_nobody);
    }
    RUN(a_signal_handler_may_trigger);
    remove_socket_folder();
    return check_result();
}
