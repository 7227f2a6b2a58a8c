/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <stdbool.h>
#include <vfio-user/libvfio-user-ext.h>

struct device {
    bool has_failed;
};

static void
lost(vfu_ctx_t *ctx, vfu_dma_info_t *info, uint64_t offset)
{
    struct device *device = vfu_get_private(ctx);

    vfu_log(ctx, LOG_ERR, "memory at %p has gone from byte %ju on", info->iova.iov_base, (uintmax_t)offset);
    device->has_failed = true;      /* its queues stop, its status says so */
}

void
set_up_guard(vfu_ctx_t *ctx)
{
    if (vfux_guard_dma() < 0 || vfux_setup_dma_lost_cb(ctx, lost) < 0) {
        err(1, "guard of DMA memory");
    }
}
