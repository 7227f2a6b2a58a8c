/*
 * Live upgrade of the example device dma-engine: its process is replaced, and the
 * client does not notice. docs/live-upgrade.md has the rules.
 *
 * What migrates is not what goes here. The memory of BAR 2 is not copied: the client has
 * mapped it, and writes to it meanwhile, so the new process has to have the very same. And
 * the client does not tell anew what it has told already: whether INTx is masked.
 *
 * In PRE_COPY the device stays: what the stream has got to is not told.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <err.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

#include <vfio-user/libvfio-user-ext.h>

#include "dma-engine-device.h"

/* "DMAENGUP", as a number. */
#define MAGIC UINT64_C(0x5055474e45414d44)

/* All that the device in the other process has to know. */
struct upgrade_state {
    uint64_t magic;
    uint64_t size;
    struct engine_state state;
    uint8_t intx_level;
    uint8_t intx_masked;
    uint8_t reserved[6];
};

static int
on_save_state(vfu_ctx_t *ctx)
{
    struct engine *engine = vfu_get_private(ctx);
    struct upgrade_state upgrade = { .magic = MAGIC, .size = sizeof(upgrade) };

    if (engine->migration != VFU_MIGR_STATE_RUNNING && engine->migration != VFU_MIGR_STATE_STOP) {
        errno = EBUSY;
        return -1;
    }
    upgrade.state = engine->state;
    upgrade.intx_level = engine->intx_level;
    upgrade.intx_masked = engine->intx_masked;
    return vfux_put_state(ctx, &upgrade, sizeof(upgrade));
}

static int
on_load_state(vfu_ctx_t *ctx, const void *data, size_t size, uint32_t migration_state)
{
    struct engine *engine = vfu_get_private(ctx);
    struct upgrade_state upgrade;

    if (size != sizeof(upgrade)) {
        errno = EINVAL;
        return -1;
    }
    memcpy(&upgrade, data, size);
    if (upgrade.magic != MAGIC || upgrade.size != sizeof(upgrade)) {
        errno = EINVAL;
        return -1;
    }
    engine->state = upgrade.state;
    engine->intx_level = upgrade.intx_level != 0;
    engine->intx_masked = upgrade.intx_masked != 0;
    engine->migration = migration_state == VFIO_USER_DEVICE_STATE_RUNNING ? VFU_MIGR_STATE_RUNNING
                                                                          : VFU_MIGR_STATE_STOP;
    return 0;
}

/* The work that is under way goes on with the next turn of the main loop, here or there. */
void
set_up_hand_over(struct engine *engine, const char *socket)
{
    static const vfux_hand_over_callbacks_t callbacks = {
        .version = VFUX_HAND_OVER_CALLBACKS_VERSION,
        .save_state = on_save_state,
        .load_state = on_load_state,
    };

    if (vfux_setup_hand_over_callbacks(engine->ctx, &callbacks) < 0) {
        err(EXIT_FAILURE, "vfux_setup_hand_over_callbacks");
    }
    if (socket != NULL && vfux_setup_hand_over(engine->ctx, socket) < 0) {
        err(EXIT_FAILURE, "vfux_setup_hand_over: %s", socket);
    }
}

/* The descriptor of the memory that BAR 2 shows, and that the client may have mapped. */
int
get_old_memory(struct engine *engine)
{
    vfux_old_region_t old;

    if (vfux_get_old_region(engine->ctx, VFU_PCI_DEV_BAR2_REGION_IDX, &old) < 0 || old.fd == -1) {
        err(EXIT_FAILURE, "vfux_get_old_region");
    }
    return old.fd;
}

/* Answers a process that wants to take over. Returns whether it has. */
bool
hand_over(struct engine *engine)
{
    bool was_pending = engine->quiesce_pending;
    int outcome = vfux_hand_over(engine->ctx, HAND_OVER_TIMEOUT);

    /* At work: when it has come to a stop, this is to be called again. */
    engine->hand_over_pending = outcome < 0 && errno == EBUSY && engine->quiesce_pending
                                && !was_pending;
    if (outcome < 0 && !engine->hand_over_pending) {
        warn("not handed over");
    }
    return outcome == 1;
}

/* A context for the device of the process that hands over at a socket. */
vfu_ctx_t *
ask_for_device(struct engine *engine, const char *socket)
{
    vfu_ctx_t *ctx = vfux_create_ctx_taking_over(socket, HAND_OVER_TIMEOUT,
                                                 LIBVFIO_USER_FLAG_ATTACH_NB, engine,
                                                 VFU_DEV_TYPE_PCI);

    if (ctx == NULL) {
        err(EXIT_FAILURE, "vfux_create_ctx_taking_over: %s", socket);
    }
    return ctx;
}

/* Goes on with that device. Returns whether it has a client. */
bool
take_over(struct engine *engine)
{
    int taken = vfux_take_over(engine->ctx, HAND_OVER_TIMEOUT);

    if (taken < 0) {
        err(EXIT_FAILURE, "the other process goes on: vfux_take_over");
    }
    return taken == 1;
}
