/* SPDX-License-Identifier: BSD-3-Clause */

#include <vfio-user/libvfio-user-ext.h>

/* The device has failed for good: the VMM is told, and may stop the guest. */
void
give_up(vfu_ctx_t *ctx)
{
    if (vfux_irq_trigger(ctx, VFU_DEV_ERR_IRQ, 0) < 0) {
        vfu_log(ctx, LOG_ERR, "the VMM does not want to know of errors: %m");
    }
}
