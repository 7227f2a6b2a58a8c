/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <vfio-user/libvfio-user.h>

/* A doorbell of 4 bytes in BAR 0: the kernel signals the eventfd that is returned, the client sends no message. */
int
set_up_doorbell(vfu_ctx_t *ctx, size_t offset)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);    /* stays open as long as the context */

    if (fd < 0 ||
        vfu_create_ioeventfd(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, fd, offset, 4, 0, 0, -1, 0) < 0) {
        err(1, "doorbell at %#zx", offset);
    }
    return fd;
}
