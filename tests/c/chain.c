/*
 * The guard against lost memory beside a program's own handling of SIGBUS: what is
 * not the guard's is as it would be without it. Each test is a process of its own.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <setjmp.h>

#include "lost.h"

static sigjmp_buf out;
static volatile int plain_calls, full_calls, full_code;
static void *volatile full_address;
static sigset_t full_mask;

static void
plain_handler(int signal)
{
    CHECK_EQ(signal, SIGBUS);
    plain_calls++;
}

static void
full_handler(int signal, siginfo_t *info, void *context)
{
    CHECK_EQ(signal, SIGBUS);
    CHECK(context != NULL);
    full_calls++;
    full_code = info->si_code;
    full_address = info->si_addr;
    pthread_sigmask(SIG_SETMASK, NULL, &full_mask);
    if (info->si_code == BUS_ADRERR) {
        siglongjmp(out, 1);
    }
}

static void
set_full_handler(int flags)
{
    struct sigaction action = { .sa_sigaction = full_handler, .sa_flags = SA_SIGINFO | flags };

    sigaddset(&action.sa_mask, SIGUSR1);
    CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

/* Memory of the program's own that faults when it is touched. */
static volatile char *
broken_memory(void)
{
    int fd = make_memory(PAGE, 0);
    char *memory = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    CHECK(memory != MAP_FAILED);
    CHECK_EQ(ftruncate(fd, 0), 0);
    close(fd);
    return memory;
}

/* The guard works, whatever else there is. */
static void
lose_a_region(void)
{
    struct device device;
    struct entry entry;

    make_device(&device, NULL);
    attach(&device);
    device.memory = make_memory(GUEST_SIZE, 0);
    CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), 0);
    CHECK_EQ(ftruncate(device.memory, 0), 0);
    errno = ENOTTY;
    CHECK_EQ(*get(&device, GUEST, PAGE, &entry), 0);
    CHECK(is_lost(&device, &entry));
    CHECK_EQ(errno, ENOTTY);
    end_device(&device);
    CHECK_EQ(device.losses, 1);
}

static void
a_handler_with_information_gets_the_rest(void)
{
    volatile char *broken = broken_memory();
    sigset_t mask;

    set_full_handler(0);
    CHECK_EQ(vfux_guard_dma(), 0);
    lose_a_region();
    CHECK_EQ(full_calls, 0);
    for (int i = 1; i <= 2; i++) {
        if (sigsetjmp(out, 1) == 0) {
            *broken = 1;
            CHECK(false);
        }
        CHECK_EQ(full_calls, i);
        CHECK(full_address == broken);
        CHECK_EQ(full_code, BUS_ADRERR);
    }
    CHECK_EQ(sigismember(&full_mask, SIGUSR1), 1);
    CHECK_EQ(sigismember(&full_mask, SIGBUS), 1);
    CHECK_EQ(sigismember(&full_mask, SIGUSR2), 0);
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK_EQ(full_calls, 3);
    CHECK_EQ(full_code, SI_TKILL);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    CHECK_EQ(sigismember(&mask, SIGUSR1), 0);
    lose_a_region();
}

static void
nodefer_and_the_thread_s_mask_are_kept(void)
{
    sigset_t usr2;

    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    set_full_handler(SA_NODEFER);
    CHECK_EQ(vfux_guard_dma(), 0);
    pthread_sigmask(SIG_BLOCK, &usr2, NULL);
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK_EQ(full_calls, 1);
    CHECK_EQ(sigismember(&full_mask, SIGBUS), 0);
    CHECK_EQ(sigismember(&full_mask, SIGUSR1), 1);
    CHECK_EQ(sigismember(&full_mask, SIGUSR2), 1);
}

static void
a_plain_handler_gets_the_rest(void)
{
    CHECK(signal(SIGBUS, plain_handler) != SIG_ERR);
    CHECK_EQ(vfux_guard_dma(), 0);
    CHECK_EQ(vfux_guard_dma(), 0);
    lose_a_region();
    CHECK_EQ(plain_calls, 0);
    CHECK_EQ(kill(getpid(), SIGBUS), 0);
    CHECK_EQ(plain_calls, 1);
}

static void
raise_twice_with_a_handler_for_once(void)
{
    struct sigaction action = { .sa_handler = plain_handler, .sa_flags = SA_RESETHAND };

    CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
    CHECK_EQ(vfux_guard_dma(), 0);
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK_EQ(plain_calls, 1);
    lose_a_region();
    raise(SIGBUS);
}

static void
touch_broken_memory(void)
{
    CHECK_EQ(vfux_guard_dma(), 0);
    lose_a_region();
    *broken_memory() = 1;
}

static void
raise_it(void)
{
    CHECK_EQ(vfux_guard_dma(), 0);
    raise(SIGBUS);
}

static void
touch_broken_memory_ignoring(void)
{
    signal(SIGBUS, SIG_IGN);
    CHECK_EQ(vfux_guard_dma(), 0);
    CHECK_EQ(raise(SIGBUS), 0);
    lose_a_region();
    *broken_memory() = 1;
}

static void
by_default_the_process_dies_of_it(void)
{
    CHECK(died_of_sigbus(status_of(touch_broken_memory)));
    CHECK(died_of_sigbus(status_of(raise_it)));
    CHECK(died_of_sigbus(status_of(touch_broken_memory_ignoring)));
    CHECK(died_of_sigbus(status_of(raise_twice_with_a_handler_for_once)));
}

static void
ignored_is_ignored(void)
{
    signal(SIGBUS, SIG_IGN);
    CHECK_EQ(vfux_guard_dma(), 0);
    CHECK_EQ(raise(SIGBUS), 0);
    lose_a_region();
}

/* A handler that comes later and passes on what is not its own. */
static struct sigaction guard;
static int passed_on;

static void
later_handler(int signal, siginfo_t *info, void *context)
{
    passed_on++;
    guard.sa_sigaction(signal, info, context);
}

static void
a_later_handler_may_pass_on_to_the_guard(void)
{
    struct sigaction action = { .sa_sigaction = later_handler, .sa_flags = SA_SIGINFO };

    CHECK_EQ(vfux_guard_dma(), 0);
    CHECK_EQ(sigaction(SIGBUS, &action, &guard), 0);
    /* Not put in front once more: the two would call each other for ever. */
    CHECK_EQ(vfux_guard_dma(), 0);
    lose_a_region();
    CHECK_EQ(passed_on, 1);
}

#define RUN_APART(test)                  \
    do {                                 \
        if (check_skips(#test))          \
            break;                       \
        fprintf(stderr, "%s\n", #test);  \
        CHECK_EQ(status_of(test), 0);    \
        check_tests_run++;               \
    } while (0)

int
main(void)
{
    make_socket_folder();
    RUN_APART(a_handler_with_information_gets_the_rest);
    RUN_APART(nodefer_and_the_thread_s_mask_are_kept);
    RUN_APART(a_plain_handler_gets_the_rest);
    RUN_APART(by_default_the_process_dies_of_it);
    RUN_APART(ignored_is_ignored);
    RUN_APART(a_later_handler_may_pass_on_to_the_guard);
    remove_socket_folder();
    return check_result();
}
