/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user.h>

static void
added(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_INFO, "memory at %p: %zu bytes, %s", info->iova.iov_base, info->iova.iov_len,
            info->vaddr != NULL ? "mapped" : "by messages");
}

static void
removed(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    /* From here on, no pointer into info->vaddr may be used. */
    vfu_log(ctx, LOG_INFO, "no more memory at %p", info->iova.iov_base);
}

void
set_up_dma(vfu_ctx_t *ctx)
{
    if (vfu_setup_device_dma(ctx, LIBVFIO_USER_MAX_DMA_REGIONS, added, removed) < 0) {
        err(1, "vfu_setup_device_dma");
    }
}
