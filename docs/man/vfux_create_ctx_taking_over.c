/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

enum { TIMEOUT = 2000 };

/* Makes the context of a device that another process has, and has it set up as there. */
vfu_ctx_t *
take_over(const char *path, void *device, int (*set_up)(vfu_ctx_t *))
{
    vfu_ctx_t *ctx = vfux_create_ctx_taking_over(path, TIMEOUT, LIBVFIO_USER_FLAG_ATTACH_NB, device,
                                                 VFU_DEV_TYPE_PCI);
    int client;

    if (ctx == NULL) {
        err(1, "%s", path);
    }
    if (set_up(ctx) < 0 || vfu_realize_ctx(ctx) < 0) {
        err(1, "device setup");
    }
    client = vfux_take_over(ctx, TIMEOUT);
    if (client < 0) {
        err(1, "the device stays where it is");
    }
    /* 1: vfu_run_ctx() serves its client; 0: vfu_attach_ctx() takes one on. */
    return ctx;
}
