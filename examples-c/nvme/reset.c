/*
 * nvme: reset.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <string.h>
#include <syslog.h>

#include "controller.h"

/*
 * The controller as after power-on: registers and configuration space, of which the
 * library forgets only what is its own. Counters and the error log are for life.
 */
void
power_on(struct controller *ctrl)
{
    reset_controller(ctrl);
    ctrl->state.cc = 0;
    ctrl->state.aqa = 0;
    ctrl->state.asq = 0;
    ctrl->state.acq = 0;
    memset(ctrl->state.msix_table, 0, sizeof(ctrl->state.msix_table));
    memcpy(vfu_pci_get_config_space(ctrl->ctx), ctrl->power_on_config, CONFIG_SPACE_SIZE);
}

/*
 * The client reset the device, the guest did by Device Control, or the client has
 * left. What it means for migration is told in dma-engine-migration.c.
 */
int
on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct controller *ctrl = vfu_get_private(ctx);

    power_on(ctrl);
    /* In PRE_COPY the migration goes on: nothing was sent that the reset could have changed. */
    if (type == VFU_RESET_DEVICE && ctrl->migration != VFU_MIGR_STATE_PRE_COPY) {
        ctrl->migration = VFU_MIGR_STATE_RUNNING;
    }
    if (type != VFU_RESET_PCI_FLR) {
        ctrl->moved = 0;
        ctrl->damaged = false;
        ctrl->loaded = false;
    }
    return 0;
}

/* The library calls this to have the memory given back; vfu_sgl_get insists on it. We keep none. */
void
on_dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_DEBUG, "guest memory at %p goes", info->iova.iov_base);
}
