/* SPDX-License-Identifier: BSD-3-Clause */

#include <vfio-user/libvfio-user-ext.h>

/* As many vectors as the client has been told of, whatever this version of the device would have. */
int
set_up_irqs(vfu_ctx_t *ctx)
{
    int count = vfux_get_old_irq_count(ctx, VFU_DEV_MSIX_IRQ);

    return count < 0 ? -1 : vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, count);
}
