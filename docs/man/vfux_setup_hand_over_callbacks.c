/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <vfio-user/libvfio-user-ext.h>

struct device {
    uint32_t registers[16];
    bool runs;
};

static int
save_state(vfu_ctx_t *ctx)
{
    struct device *device = vfu_get_private(ctx);

    return vfux_put_state(ctx, device->registers, sizeof(device->registers));
}

static int
load_state(vfu_ctx_t *ctx, const void *data, size_t size, uint32_t migration_state)
{
    struct device *device = vfu_get_private(ctx);

    (void)migration_state;
    if (size != sizeof(device->registers)) {
        errno = EINVAL;
        return -1;
    }
    memcpy(device->registers, data, size);
    return 0;
}

static void
handed_over(vfu_ctx_t *ctx, bool is_ours)
{
    struct device *device = vfu_get_private(ctx);

    device->runs = is_ours;
}

void
set_up_upgrade(vfu_ctx_t *ctx)
{
    const vfux_hand_over_callbacks_t callbacks = {
        .version = VFUX_HAND_OVER_CALLBACKS_VERSION,
        .save_state = save_state,
        .load_state = load_state,
        .handed_over = handed_over,
    };

    if (vfux_setup_hand_over_callbacks(ctx, &callbacks) < 0) {
        err(1, "vfux_setup_hand_over_callbacks");
    }
}
