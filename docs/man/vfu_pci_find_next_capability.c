/* SPDX-License-Identifier: BSD-3-Clause */

#include <linux/pci_regs.h>
#include <vfio-user/libvfio-user.h>

/* How many vendor-specific capabilities there are. */
int
count_vendor_capabilities(vfu_ctx_t *ctx)
{
    int count = 0;

    for (size_t at = vfu_pci_find_capability(ctx, false, PCI_CAP_ID_VNDR); at != 0;
         at = vfu_pci_find_next_capability(ctx, false, at, PCI_CAP_ID_VNDR)) {
        count++;
    }
    return count;
}
