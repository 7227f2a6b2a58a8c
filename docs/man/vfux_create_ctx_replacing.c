/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <vfio-user/libvfio-user-ext.h>

vfu_ctx_t *
make_context(const char *path, void *device)
{
    vfu_ctx_t *ctx = vfux_create_ctx_replacing(path, LIBVFIO_USER_FLAG_ATTACH_NB, device, VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(1, "%s", path);         /* EADDRINUSE: another server runs there, or it is no socket */
    }
    return ctx;
}
