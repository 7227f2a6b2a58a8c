/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user.h>

struct device {
    uint32_t reg;
};

static int
reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct device *device = vfu_get_private(ctx);

    vfu_log(ctx, LOG_DEBUG, "reset %d", type);
    device->reg = 0;
    return 0;
}

void
set_up_reset(vfu_ctx_t *ctx)
{
    if (vfu_setup_device_reset_cb(ctx, reset) < 0) {
        err(1, "vfu_setup_device_reset_cb");
    }
}
