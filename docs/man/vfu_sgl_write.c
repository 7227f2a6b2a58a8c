/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdlib.h>
#include <sys/mman.h>
#include <vfio-user/libvfio-user.h>

/* Writes a status of the device's to the guest's memory, whether that is mapped or not. */
int
write_to_guest(vfu_ctx_t *ctx, uint64_t iova, uint32_t status)
{
    dma_sg_t *sg = malloc(dma_sg_size());
    int result = -1;

    if (sg != NULL &&
        vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)iova, sizeof(status), sg, 1, PROT_WRITE) == 1) {
        result = vfu_sgl_write(ctx, sg, 1, &status, VFU_SGL_DIRECT_ACCESS);
    }
    free(sg);
    return result;
}
