/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <vfio-user/libvfio-user-ext.h>

/* A register callback for a device that has to have pointers to all of the guest's memory. */
void
added(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    if (vfux_get_dma_access(ctx, info->iova.iov_base) != VFUX_DMA_ACCESS_MMAP) {
        vfu_log(ctx, LOG_ERR, "memory at %p is not shared (QEMU: share=on)", info->iova.iov_base);
        vfux_refuse_dma_region(ctx, ENOTSUP);
    }
}
