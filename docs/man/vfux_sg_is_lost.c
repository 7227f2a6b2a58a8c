/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <string.h>
#include <vfio-user/libvfio-user-ext.h>

/* Copies a command out of the guest's memory, and looks whether that was there. */
int
take_command(vfu_ctx_t *ctx, dma_sg_t *sg, void *command, size_t size)
{
    struct iovec iov;

    if (vfu_sgl_get(ctx, sg, &iov, 1, 0) < 0) {
        return -1;
    }
    memcpy(command, iov.iov_base, size);
    vfu_sgl_put(ctx, sg, &iov, 1);
    if (vfux_sg_is_lost(ctx, sg)) {
        errno = EIO;                /* what was read may be zeroes */
        return -1;
    }
    return 0;
}
