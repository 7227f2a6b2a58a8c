/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <poll.h>
#include <stdlib.h>
#include <vfio-user/libvfio-user-ext.h>

void
set_up_hand_over(vfu_ctx_t *ctx, const char *path)
{
    if (vfux_setup_hand_over(ctx, path) < 0) {
        err(1, "%s", path);
    }
}

/* Serves the client until another process has the device. */
void
serve(vfu_ctx_t *ctx)
{
    for (;;) {
        struct pollfd fds[] = {
            { .fd = vfu_get_poll_fd(ctx), .events = POLLIN },
            { .fd = vfux_get_hand_over_fd(ctx), .events = POLLIN },
        };

        if (poll(fds, 2, -1) < 0) {
            continue;
        }
        if (fds[0].revents != 0) {
            vfu_run_ctx(ctx);
        }
        if (fds[1].revents != 0 && vfux_hand_over(ctx, 1000) == 1) {
            exit(0);
        }
    }
}
