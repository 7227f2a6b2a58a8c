/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdbool.h>
#include <vfio-user/libvfio-user.h>

struct device {
    bool is_busy;                   /* a worker uses memory of the guest */
    bool has_to_stop;
};

static int
quiesce(vfu_ctx_t *ctx)
{
    struct device *device = vfu_get_private(ctx);

    if (!device->is_busy) {
        return 0;
    }
    device->has_to_stop = true;     /* vfu_device_quiesced() follows */
    errno = EBUSY;
    return -1;
}

void
set_up_quiesce(vfu_ctx_t *ctx)
{
    vfu_setup_device_quiesce_cb(ctx, quiesce);
}
