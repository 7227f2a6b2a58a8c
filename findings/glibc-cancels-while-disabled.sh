#!/usr/bin/env bash
# glibc: a thread that has disabled cancellation is cancelled all the same.
#
# One would guess: from the return of pthread_setcancelstate(PTHREAD_CANCEL_DISABLE) on, a thread is
# not cancelled until it enables cancellation again. A request that was made before, and has not
# taken effect, waits until then: POSIX has requests held pending while cancellation is disabled.
# What happens in glibc 2.36: a request of asynchronous type is a signal, and its handler looks at the
# type of the thread alone, not at the state. Where the signal arrives only after cancellation was
# disabled, the thread ends there and then, in the middle of what it wanted to have whole. To make
# the type deferred as well is not enough: read(), poll() and all other cancellation points make it
# asynchronous for their time, with cancellation disabled, too, so a thread ends in those. What helps
# is to go through a cancellation point first, where to end does no harm: those of a thread of
# deferred type return only when a signal that is on its way has arrived.
#
# Between pthread_cancel() and the arrival of its signal there is always some time. Here it is made
# long: the thread blocks the signal (32) until it has disabled cancellation. glibc's own functions
# leave that signal out, so this is done by the system call; all else is plain POSIX.
#
# Takes nothing but gcc and the C library of the machine, whose version it prints; with another
# version than 2.36 it says what that one does, and fails where it is not the same.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/cancel.c" <<'EOF'
#define _GNU_SOURCE
#include <gnu/libc-version.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OK(call) do { if ((call) != 0) { perror(#call); exit(2); } } while (0)

enum what { ASYNCHRONOUS, DEFERRED, IN_A_CANCELLATION_POINT };

static pthread_barrier_t step;
static enum what what;
static volatile int went_on, enabled;

/* The signal of pthread_cancel(). */
static void cancel_signal(int how)
{
	unsigned long long set = 1ULL << (32 - 1);

	OK(syscall(SYS_rt_sigprocmask, how, &set, NULL, sizeof(set)));
}

static void *thread(void *unused)
{
	sigset_t nothing_blocked;

	cancel_signal(SIG_BLOCK);
	OK(pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL));
	pthread_barrier_wait(&step);
	/* The request is made here. */
	pthread_barrier_wait(&step);
	if (what != ASYNCHRONOUS)
		OK(pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, NULL));
	OK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL));
	/* Cancellation is disabled, and the signal arrives. */
	if (what == IN_A_CANCELLATION_POINT) {
		sigemptyset(&nothing_blocked);
		ppoll(NULL, 0, &(struct timespec){ 0, 0 }, &nothing_blocked);
	} else {
		cancel_signal(SIG_UNBLOCK);
	}
	went_on = 1;
	OK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL));
	pthread_testcancel();
	enabled = 1;
	return unused;
}

static void try_it(enum what this, const char *name)
{
	pthread_t id;
	void *result;

	what = this;
	went_on = enabled = 0;
	OK(pthread_barrier_init(&step, NULL, 2));
	OK(pthread_create(&id, NULL, thread, NULL));
	pthread_barrier_wait(&step);
	OK(pthread_cancel(id));
	pthread_barrier_wait(&step);
	OK(pthread_join(id, &result));
	OK(pthread_barrier_destroy(&step));
	printf("cancellation disabled, type %s: %s\n", name,
	       result != PTHREAD_CANCELED || enabled ? "not cancelled at all" :
	       went_on ? "cancelled when it is enabled again" : "cancelled while it is disabled");
}

int main(void)
{
	printf("glibc %s\n", gnu_get_libc_version());
	try_it(ASYNCHRONOUS, "asynchronous");
	try_it(DEFERRED, "made deferred before");
	try_it(IN_A_CANCELLATION_POINT, "made deferred before, in ppoll()");
	return 0;
}
EOF
gcc -std=gnu99 -Wall -Wextra -Werror -pthread "$work/cancel.c" -o "$work/cancel"
"$work/cancel" | tee "$work/output"
diff - <(tail -n +2 "$work/output") <<'EOF'
cancellation disabled, type asynchronous: cancelled while it is disabled
cancellation disabled, type made deferred before: cancelled when it is enabled again
cancellation disabled, type made deferred before, in ppoll(): cancelled while it is disabled
EOF
echo "as described"
