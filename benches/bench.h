/*
 * The harness of the benchmarks. A benchmark measures something of the library
 * (the subject) and the least that could do the same (the floor), by turns, many
 * times, and prints their ratio: the machine may be slow, busy or virtual, and
 * both suffer alike. What is printed is the median, and in brackets what comes
 * of the lowest values; where the two disagree, the machine was disturbed.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef BENCH_H
#define BENCH_H

#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "../tests/c/client.h"

/* Keeps a thread, or a process, on the first or on the last processor there is. */
static inline void
stay_on(pid_t who, bool last)
{
    static cpu_set_t allowed;
    cpu_set_t one;
    int cpu = 0;

    if (CPU_COUNT(&allowed) == 0) {
        CHECK_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    }
    for (int i = 0, seen = 0; i < CPU_SETSIZE && seen < (last ? CPU_COUNT(&allowed) : 1); i++) {
        if (CPU_ISSET(i, &allowed)) {
            cpu = i;
            seen++;
        }
    }
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK_EQ(sched_setaffinity(who, sizeof(one), &one), 0);
}

/* How often a pair is measured. */
enum { MAX_SAMPLES = 1 << 16 };

struct series {
    double values[MAX_SAMPLES];
    size_t count;
};

/* Wall clock in units of bench_tick nanoseconds, for spans of one system call. */
static double bench_tick = 1;

static inline uint64_t
bench_clock(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline uint64_t
now(void)
{
#if defined(__x86_64__)
    unsigned int cpu;
    return __rdtscp(&cpu);
#else
    return bench_clock(CLOCK_MONOTONIC);
#endif
}

static inline void
bench_init(void)
{
#if defined(__x86_64__)
    uint64_t start = bench_clock(CLOCK_MONOTONIC), ticks = now(), end;

    do {
        end = bench_clock(CLOCK_MONOTONIC);
    } while (end - start < 20000000);
    bench_tick = (double)(end - start) / (now() - ticks);
#endif
    setvbuf(stdout, NULL, _IOLBF, 0);
    prctl(PR_SET_TIMERSLACK, 1);
}

static inline void
sample(struct series *s, double value)
{
    if (s->count < MAX_SAMPLES) {
        s->values[s->count++] = value;
    }
}

static inline int
bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* Which value of a series counts: the median. */
static double bench_quantile = 0.5;

/* The value that counts; afterwards the values are sorted. */
static inline double
typical(struct series *s)
{
    CHECK(s->count > 0);
    qsort(s->values, s->count, sizeof(double), bench_compare);
    return s->values[(size_t)(s->count * bench_quantile)];
}

/* What one reading of the clock costs, which is part of every span. */
static inline double
clock_cost(void)
{
    static struct series s;

    s.count = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t start = now();
        sample(&s, now() - start);
    }
    return typical(&s) * bench_tick;
}

/*
 * Prints a line of the table. Values are nanoseconds for `per` operations.
 * `target`: the ratio that is aimed at, 0 for none; negative: a rate relative to
 * the floor's is aimed at, and printed (1 / ratio), so that more is better.
 */
static inline void
report(const char *name, struct series *subject, struct series *floor, double per, double target)
{
    double mine = typical(subject) / per, least = typical(floor) / per;
    double lowest = subject->values[0] / per, floor_lowest = floor->values[0] / per;
    double ratio = target < 0 ? least / mine : mine / least;
    double best = target < 0 ? floor_lowest / lowest : lowest / floor_lowest;
    char aim[32] = "";

    if (target > 0) {
        snprintf(aim, sizeof(aim), "at most %.2f", target);
    } else if (target < 0) {
        snprintf(aim, sizeof(aim), "at least %.2f", -target);
    }
    printf("%-46s %12.1f %12.1f %8.2f (%.2f)  %s\n", name, mine, least, ratio, best, aim);
    subject->count = floor->count = 0;
}

static inline void
heading(const char *what)
{
    printf("\n%-46s %12s %12s %8s\n", what, "ns", "floor ns", "ratio");
}

#endif /* BENCH_H */
