/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

/* The disk that the other process has open: see vfux_add_hand_over_fd(). */
int
open_disk(vfu_ctx_t *ctx)
{
    int disk = vfux_get_old_fd(ctx, "disk");

    if (disk < 0) {
        err(1, "no disk comes with the device");
    }
    return disk;
}
