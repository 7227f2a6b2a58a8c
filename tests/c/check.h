/*
 * The harness of the C tests. A test is a function that checks; main() runs each
 * with RUN() and returns check_result(). The first failed check of a test says
 * where and why, and ends the program: what comes after it would prove nothing.
 *
 * Only the public headers and the library are to be used besides this.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* For the report at the end; not for tests. */
static int check_tests_run;

#define CHECK(condition)                                                                      \
    do {                                                                                      \
        int check_errno_ = errno;                                                             \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s: failed: %s (errno was %d, %s)\n", __FILE__, __LINE__, \
                    __func__, #condition, check_errno_, strerror(check_errno_));              \
            exit(EXIT_FAILURE);                                                               \
        }                                                                                     \
    } while (0)

/* Integers of any kind up to 64 bits; the message shows both values. */
#define CHECK_EQ(actual, expected)                                                         \
    do {                                                                                   \
        intmax_t check_actual_ = (intmax_t)(actual);                                       \
        intmax_t check_expected_ = (intmax_t)(expected);                                   \
        if (check_actual_ != check_expected_) {                                            \
            fprintf(stderr, "%s:%d: %s: %s is %jd (%#jx), not %s = %jd (%#jx)\n",          \
                    __FILE__, __LINE__, __func__, #actual, check_actual_, check_actual_,   \
                    #expected, check_expected_, check_expected_);                          \
            exit(EXIT_FAILURE);                                                            \
        }                                                                                  \
    } while (0)

/* A call that has to fail with -1 and this errno. */
#define CHECK_FAILS(call, expected_errno)  \
    do {                                   \
        errno = 0;                         \
        CHECK_EQ((call), -1);              \
        CHECK_EQ(errno, (expected_errno)); \
    } while (0)

#define CHECK_MEM_EQ(actual, expected, len) CHECK(memcmp((actual), (expected), (len)) == 0)

/* Whether CHECK_SKIP, names with a colon before and behind each, has this test. */
static inline bool
check_skips(const char *test)
{
    const char *names = getenv("CHECK_SKIP");
    char name[128];

    snprintf(name, sizeof(name), ":%s:", test);
    return names != NULL && strstr(names, name) != NULL;
}

#define RUN(test)                        \
    do {                                 \
        if (check_skips(#test))          \
            break;                       \
        fprintf(stderr, "%s\n", #test);  \
        test();                          \
        check_tests_run++;               \
    } while (0)

/* What main() returns: a program that ran no test has not passed. */
static inline int
check_result(void)
{
    fprintf(stderr, "%d tests passed\n", check_tests_run);
    return check_tests_run > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif /* CHECK_H */
