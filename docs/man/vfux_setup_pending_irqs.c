/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <errno.h>
#include <vfio-user/libvfio-user-ext.h>

enum { VECTORS = 32, PBA = VECTORS * 16 };

void
set_up_msix(vfu_ctx_t *ctx)
{
    if (vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, VECTORS) < 0 || vfux_setup_pending_irqs(ctx) < 0) {
        err(1, "MSI-X");
    }
}

/* The BAR with MSI-X' table, which the client has to itself, and pending bits, which it asks for. */
ssize_t
access_msix_bar(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    if (is_write || offset < PBA) {
        errno = EINVAL;
        return -1;
    }
    return vfux_read_pba(ctx, buf, count, offset - PBA);
}
