/* SPDX-License-Identifier: BSD-3-Clause */

#include <stdint.h>
#include <vfio-user/libvfio-user-ext.h>

/* The driver has written 1 to bits of the interrupt status: what they told of is no longer so. */
void
acknowledge(vfu_ctx_t *ctx, uint32_t *status, uint32_t bits)
{
    *status &= ~bits;
    if (*status == 0) {
        vfux_irq_clear_pending(ctx, VFU_DEV_INTX_IRQ, 0);
    }
}
