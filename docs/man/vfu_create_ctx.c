/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user.h>

struct device {
    uint32_t reg;
};

void
serve(const char *path, struct device *device, void (*set_up)(vfu_ctx_t *), void (*loop)(vfu_ctx_t *))
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, device, VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(1, "%s", path);         /* EADDRINUSE: a file is there */
    }
    set_up(ctx);
    loop(ctx);
    vfu_destroy_ctx(ctx);
}
