/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <string.h>
#include <vfio-user/libvfio-user.h>

struct device {
    uint32_t reg;
};

ssize_t
access_bar0(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *device = vfu_get_private(ctx);

    if (offset != 0 || count != sizeof(device->reg)) {
        errno = EINVAL;
        return -1;
    }
    if (is_write) {
        memcpy(&device->reg, buf, count);
    } else {
        memcpy(buf, &device->reg, count);
    }
    return count;
}
