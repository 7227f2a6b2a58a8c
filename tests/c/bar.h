/*
 * A region that is memory: BAR_SIZE bytes, a number that the program says before it
 * includes this.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef TESTS_C_BAR_H
#define TESTS_C_BAR_H

#include <string.h>

#include "client.h"

static char bar[BAR_SIZE];

static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    if (is_write) {
        memcpy(bar + offset, buf, count);
    } else {
        memcpy(buf, bar + offset, count);
    }
    return count;
}

#endif
