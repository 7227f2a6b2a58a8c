/* SPDX-License-Identifier: BSD-3-Clause */

#include <linux/pci_regs.h>
#include <stdbool.h>
#include <vfio-user/libvfio-user.h>

/* Whether the guest's driver has enabled MSI-X. */
bool
has_msix(vfu_ctx_t *ctx)
{
    vfu_pci_config_space_t *config = vfu_pci_get_config_space(ctx);
    size_t at = vfu_pci_find_capability(ctx, false, PCI_CAP_ID_MSIX);

    return at != 0 && ((struct msixcap *)(config->raw + at))->mxc.mxe;
}
