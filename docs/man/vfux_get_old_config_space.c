/* SPDX-License-Identifier: BSD-3-Clause */

#include <vfio-user/libvfio-user-ext.h>

/* The same device as there: vendor, device and revision. */
int
set_up_identity(vfu_ctx_t *ctx)
{
    vfu_pci_hdr_t hdr;

    if (vfux_get_old_config_space(ctx, &hdr, sizeof(hdr), 0) < 0) {
        return -1;
    }
    vfu_pci_set_id(ctx, hdr.id.vid, hdr.id.did, hdr.ss.vid, hdr.ss.sid);
    vfu_pci_get_config_space(ctx)->hdr.rid = hdr.rid;
    return 0;
}
