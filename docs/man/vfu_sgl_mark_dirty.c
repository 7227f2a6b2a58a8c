/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdatomic.h>
#include <vfio-user/libvfio-user.h>

/* A counter in the guest's memory that a device keeps for long: sg was translated with PROT_WRITE. */
void
count(vfu_ctx_t *ctx, dma_sg_t *sg, struct iovec *counter)
{
    atomic_fetch_add((_Atomic uint64_t *)counter->iov_base, 1);
    vfu_sgl_mark_dirty(ctx, sg, 1);
}
