/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <vfio-user/libvfio-user-ext.h>

/* The doorbells of BAR 0, over the eventfds that the client's hypervisor signals. */
int
set_up_doorbells(vfu_ctx_t *ctx)
{
    const uint32_t bar0 = VFU_PCI_DEV_BAR0_REGION_IDX;
    vfux_old_ioeventfd_t old;

    for (uint32_t n = 0; vfux_get_old_ioeventfd(ctx, bar0, n, &old) == 0; n++) {
        if (vfu_create_ioeventfd(ctx, bar0, old.fd, old.gpa_offset, old.size, old.flags, old.datamatch, -1, 0) < 0) {
            return -1;
        }
    }
    return errno == ENOENT ? 0 : -1;    /* ENOENT: that were all */
}
