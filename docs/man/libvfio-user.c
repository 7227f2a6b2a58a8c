/* SPDX-License-Identifier: BSD-3-Clause */

/* Sixteen bytes of memory behind BAR 0. */
#include <err.h>
#include <string.h>
#include <vfio-user/libvfio-user.h>

static char mem[16];

static ssize_t
access_bar0(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    if (is_write) {
        memcpy(mem + offset, buf, count);
    } else {
        memcpy(buf, mem + offset, count);
    }
    return count;
}

int
main(int argc, char **argv)
{
    const char *path = argc > 1 ? argv[1] : "/tmp/device.sock";
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(1, "vfu_create_ctx");
    }
    if (vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0 ||
        vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, sizeof(mem), access_bar0,
                         VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0) < 0 ||
        vfu_realize_ctx(ctx) < 0 || vfu_attach_ctx(ctx) < 0) {
        err(1, "device setup");
    }
    vfu_run_ctx(ctx);               /* until the client goes */
    vfu_destroy_ctx(ctx);
    return 0;
}
