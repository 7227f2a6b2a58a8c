/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <vfio-user/libvfio-user.h>

/* Copies bytes to the guest's memory at iova, which is in one region. */
int
copy_to_guest(vfu_ctx_t *ctx, uint64_t iova, const void *data, size_t len)
{
    dma_sg_t *sg = malloc(dma_sg_size());
    struct iovec iov;
    int result = -1;

    if (sg == NULL || vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)iova, len, sg, 1, PROT_WRITE) != 1) {
        free(sg);
        return -1;
    }
    if (!vfu_sg_is_mappable(ctx, sg)) {
        errno = ENOTSUP;            /* by vfu_sgl_write() only */
    } else if (vfu_sgl_get(ctx, sg, &iov, 1, 0) == 0) {
        memcpy(iov.iov_base, data, len);
        vfu_sgl_put(ctx, sg, &iov, 1);
        result = 0;
    }
    free(sg);
    return result;
}
