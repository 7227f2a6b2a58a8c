/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdlib.h>
#include <sys/mman.h>
#include <vfio-user/libvfio-user.h>

/* Reads a descriptor of the guest's, whether its memory is mapped or not. */
int
read_from_guest(vfu_ctx_t *ctx, uint64_t iova, void *data, size_t len)
{
    dma_sg_t *sg = malloc(dma_sg_size());
    int result = -1;

    if (sg != NULL && vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)iova, len, sg, 1, PROT_READ) == 1) {
        result = vfu_sgl_read(ctx, sg, 1, data, VFU_SGL_DIRECT_ACCESS);
    }
    free(sg);
    return result;
}
