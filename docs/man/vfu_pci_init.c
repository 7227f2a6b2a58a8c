/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <linux/pci_regs.h>
#include <vfio-user/libvfio-user.h>

void
set_up_pci(vfu_ctx_t *ctx)
{
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        err(1, "vfu_pci_init");
    }
    vfu_pci_set_id(ctx, 0x1234, 0x5678, 0x1234, 0x0001);
    vfu_pci_set_class(ctx, 0x01, 0x08, 0x02);   /* an NVMe controller */
    vfu_pci_get_config_space(ctx)->hdr.rid = 3; /* its revision */
}
