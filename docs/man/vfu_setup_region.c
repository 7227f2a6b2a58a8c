/* SPDX-License-Identifier: BSD-3-Clause */

#define _GNU_SOURCE
#include <err.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vfio-user/libvfio-user.h>

enum { REGISTERS = 0x1000, SIZE = 0x10000 };

/* BAR 2: a page of registers, which the device is told of, and memory that the client maps. */
void
set_up_bar2(vfu_ctx_t *ctx, vfu_region_access_cb_t *access)
{
    struct iovec area = { .iov_base = (void *)REGISTERS, .iov_len = SIZE - REGISTERS };
    int fd = memfd_create("bar2", MFD_CLOEXEC);     /* stays open as long as the context */

    if (fd < 0 || ftruncate(fd, SIZE) < 0) {
        err(1, "memory for BAR 2");
    }
    if (vfu_setup_region(ctx, VFU_PCI_DEV_BAR2_REGION_IDX, SIZE, access,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, &area, 1, fd, 0) < 0) {
        err(1, "vfu_setup_region");
    }
}
