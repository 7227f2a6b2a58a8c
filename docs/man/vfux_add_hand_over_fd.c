/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

/* The disk goes over with the device; the next process asks for it with vfux_get_old_fd(). */
void
offer_disk(vfu_ctx_t *ctx, int disk)
{
    if (vfux_add_hand_over_fd(ctx, "disk", disk) < 0) {
        err(1, "vfux_add_hand_over_fd");
    }
}
