/*
 * A data race, to see that the thread sanitizer is there and looks: this program
 * has to fail.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <pthread.h>

static int shared;

static void *
increment(void *nothing)
{
    for (int i = 0; i < 1000; i++) {
        shared++;
    }
    return nothing;
}

int
main(void)
{
    pthread_t threads[2];

    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], 0, increment, 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], 0);
    }
    return 0;
}
