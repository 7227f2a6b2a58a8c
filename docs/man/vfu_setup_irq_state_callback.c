/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <stdbool.h>
#include <vfio-user/libvfio-user.h>

struct device {
    bool is_masked;
    bool is_pending;
};

static void
intx_masked(vfu_ctx_t *ctx, uint32_t start, uint32_t count, bool mask)
{
    struct device *device = vfu_get_private(ctx);

    (void)start, (void)count;       /* there is one INTx */
    device->is_masked = mask;
    if (!mask && device->is_pending) {
        device->is_pending = false;
        vfu_irq_trigger(ctx, 0);
    }
}

void
set_up_intx(vfu_ctx_t *ctx)
{
    if (vfu_setup_device_nr_irqs(ctx, VFU_DEV_INTX_IRQ, 1) < 0 ||
        vfu_setup_irq_state_callback(ctx, VFU_DEV_INTX_IRQ, intx_masked) < 0) {
        err(1, "INTx");
    }
}
