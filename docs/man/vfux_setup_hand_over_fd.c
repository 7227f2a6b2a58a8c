/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

/* fd: a socket of type SOCK_SEQPACKET, from systemd (ListenSequentialPacket=). */
void
set_up_hand_over(vfu_ctx_t *ctx, int fd)
{
    if (vfux_setup_hand_over_fd(ctx, fd) < 0) {
        err(1, "vfux_setup_hand_over_fd");
    }
}
