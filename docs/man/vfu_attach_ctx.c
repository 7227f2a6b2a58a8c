/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <errno.h>
#include <signal.h>
#include <vfio-user/libvfio-user.h>

extern volatile sig_atomic_t stop;  /* set by a handler without SA_RESTART */

/* Serves one client after the other. */
void
serve(vfu_ctx_t *ctx)
{
    if (vfu_realize_ctx(ctx) < 0) {
        err(1, "vfu_realize_ctx");
    }
    while (!stop) {
        if (vfu_attach_ctx(ctx) < 0) {
            warn("vfu_attach_ctx");
            continue;
        }
        while (!stop && vfu_run_ctx(ctx) < 0 && errno == EINTR) {
            continue;
        }
    }
}
