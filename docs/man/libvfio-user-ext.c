/* SPDX-License-Identifier: BSD-3-Clause */

/* A server for clients that are not trusted: makes its context. */
#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

vfu_ctx_t *
make_context(const char *path, void *device)
{
    vfu_ctx_t *ctx = vfux_create_ctx_replacing(path, LIBVFIO_USER_FLAG_ATTACH_NB, device, VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(1, "%s", path);
    }
    if (vfux_setup_dma_policy(ctx, VFUX_DMA_POLICY_LASTING) < 0 || vfux_guard_dma() < 0) {
        err(1, "DMA memory that may go");
    }
    return ctx;
}
