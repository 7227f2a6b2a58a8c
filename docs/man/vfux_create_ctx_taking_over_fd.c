/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

/* fd: a SOCK_SEQPACKET socket that a supervisor has connected to the process with the device. */
vfu_ctx_t *
make_context(int fd, void *device)
{
    vfu_ctx_t *ctx = vfux_create_ctx_taking_over_fd(fd, 2000, 0, device, VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(1, "vfux_create_ctx_taking_over_fd");
    }
    return ctx;
}
