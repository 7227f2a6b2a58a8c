/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdbool.h>
#include <vfio-user/libvfio-user.h>

/* Whether the guest has been told that a queue has moved on. */
bool
complete(vfu_ctx_t *ctx, uint32_t vector)
{
    if (vfu_irq_trigger(ctx, vector) == 0) {
        return true;
    }
    if (errno != ENOENT) {          /* ENOENT: the guest's driver has not enabled it */
        vfu_log(ctx, LOG_WARNING, "interrupt %u: %m", vector);
    }
    return false;
}
