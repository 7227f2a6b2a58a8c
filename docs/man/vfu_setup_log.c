/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <stdio.h>
#include <vfio-user/libvfio-user.h>

static void
on_log(vfu_ctx_t *ctx, int level, const char *msg)
{
    (void)ctx;
    fprintf(stderr, "<%d>device: %s\n", level, msg);    /* as systemd's journal reads it */
}

void
set_up_log(vfu_ctx_t *ctx, bool is_verbose)
{
    if (vfu_setup_log(ctx, on_log, is_verbose ? LOG_DEBUG : LOG_INFO) < 0) {
        err(1, "vfu_setup_log");
    }
}
