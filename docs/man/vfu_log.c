/* SPDX-License-Identifier: BSD-3-Clause */

#include <unistd.h>
#include <vfio-user/libvfio-user.h>

void
save_block(vfu_ctx_t *ctx, int disk, const void *data, size_t size, off_t at)
{
    if (pwrite(disk, data, size, at) < 0) {
        vfu_log(ctx, LOG_ERR, "%zu bytes at %#jx: %m", size, (intmax_t)at);
    }
}
