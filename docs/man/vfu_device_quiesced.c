/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdbool.h>
#include <vfio-user/libvfio-user.h>

struct device {
    bool is_busy;
    bool has_to_stop;               /* the quiesce callback has failed with EBUSY */
};

/* On the thread that uses the context, once the worker has said that it is done. */
int
worker_is_done(vfu_ctx_t *ctx)
{
    struct device *device = vfu_get_private(ctx);

    device->is_busy = false;
    if (!device->has_to_stop) {
        return 0;
    }
    device->has_to_stop = false;
    return vfu_device_quiesced(ctx, 0);
}
