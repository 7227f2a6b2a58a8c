/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <errno.h>
#include <string.h>
#include <vfio-user/libvfio-user.h>

/* A device whose state is a few registers. */
struct device {
    uint32_t registers[16];
    size_t done;                    /* bytes read or written so far */
};

static int
transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct device *device = vfu_get_private(ctx);

    if (state == VFU_MIGR_STATE_STOP_AND_COPY || state == VFU_MIGR_STATE_RESUME) {
        device->done = 0;
    }
    return 0;
}

static ssize_t
read_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *device = vfu_get_private(ctx);
    size_t left = sizeof(device->registers) - device->done;
    size_t n = count < left ? count : left;

    memcpy(buf, (char *)device->registers + device->done, n);
    device->done += n;
    return n;
}

static ssize_t
write_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct device *device = vfu_get_private(ctx);

    if (count > sizeof(device->registers) - device->done) {
        errno = EINVAL;
        return -1;
    }
    memcpy((char *)device->registers + device->done, buf, count);
    device->done += count;
    return count;
}

void
set_up_migration(vfu_ctx_t *ctx)
{
    const vfu_migration_callbacks_t callbacks = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = transition,
        .read_data = read_data,
        .write_data = write_data,
    };

    if (vfu_setup_device_migration_callbacks(ctx, &callbacks) < 0) {
        err(1, "vfu_setup_device_migration_callbacks");
    }
}
