/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <linux/pci_regs.h>
#include <vfio-user/libvfio-user.h>

enum { VECTORS = 32, TABLE_BAR = 4 };

/* MSI-X: the table at the start of BAR 4, the pending bits behind it. */
void
set_up_msix(vfu_ctx_t *ctx)
{
    struct msixcap msix = {
        .hdr.id = PCI_CAP_ID_MSIX,
        .mxc.ts = VECTORS - 1,
        .mtab.tbir = TABLE_BAR,
        .mpba.pbir = TABLE_BAR,
        .mpba.pbao = VECTORS * 16 / 8,
    };

    if (vfu_pci_add_capability(ctx, 0, 0, &msix) < 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, VECTORS) < 0) {
        err(1, "MSI-X");
    }
}
