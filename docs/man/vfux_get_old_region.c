/* SPDX-License-Identifier: BSD-3-Clause */

#include <unistd.h>
#include <vfio-user/libvfio-user-ext.h>

/* BAR 2 over the memory that the client has mapped already. */
int
set_up_bar2(vfu_ctx_t *ctx, vfu_region_access_cb_t *access)
{
    vfux_old_region_t old;

    if (vfux_get_old_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, &old) < 0) {
        return -1;
    }
    /* old.fd stays open as long as the context. */
    return vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, old.size, access, old.flags, NULL, 0, old.fd,
                            old.offset);
}
