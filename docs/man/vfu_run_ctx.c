/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <vfio-user/libvfio-user.h>

/* Serves a context that was made with LIBVFIO_USER_FLAG_ATTACH_NB, and whatever else there is to do. */
void
loop(vfu_ctx_t *ctx, bool (*do_other_work)(void))
{
    bool is_attached = false;

    do {
        struct pollfd entry = { .fd = vfu_get_poll_fd(ctx), .events = POLLIN };

        if (poll(&entry, 1, 100) <= 0) {
            continue;
        }
        if (!is_attached) {
            is_attached = vfu_attach_ctx(ctx) == 0;
        } else if (vfu_run_ctx(ctx) < 0 && errno == ENOTCONN) {
            is_attached = false;
        }
    } while (do_other_work());
}
