/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

/* Only memory that cannot go, and for what is left of risk a handler of SIGBUS. */
void
set_up_lasting_dma(vfu_ctx_t *ctx)
{
    if (vfux_setup_dma_policy(ctx, VFUX_DMA_POLICY_LASTING) < 0) {
        err(1, "vfux_setup_dma_policy");
    }
    if (vfux_guard_dma() < 0) {
        err(1, "vfux_guard_dma");
    }
}
