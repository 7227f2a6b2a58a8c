/*
 * nvme: I/O commands.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <string.h>
#include <sys/mman.h>

#include "controller.h"

static bool
is_in_namespace(const struct namespace *ns, uint64_t slba, uint64_t nlb)
{
    return slba <= ns->nr_blocks && nlb <= ns->nr_blocks - slba;
}

static enum nvme_status
read_or_write(struct controller *ctrl, const struct nvme_command *cmd)
{
    struct nvme_state_counters *counters = &ctrl->state.counters;
    bool is_write = cmd->opcode == NVME_IO_WRITE;
    uint64_t slba = cmd->cdw10 | (uint64_t)cmd->cdw11 << 32;
    uint64_t nlb = (cmd->cdw12 & 0xffff) + 1;
    bool durable = (cmd->cdw12 & NVME_RW_FUA) != 0
                   || ctrl->state.features[NVME_FEAT_VOLATILE_WRITE_CACHE] == 0;
    enum nvme_status status;

    if (nlb << NVME_LBA_SHIFT > MAX_TRANSFER) {
        return NVME_INVALID_FIELD;
    }
    if (!is_in_namespace(&ctrl->ns, slba, nlb)) {
        return NVME_LBA_OUT_OF_RANGE;
    }
    if (is_write && ctrl->ns.readonly) {
        return NVME_WRITE_PROTECTED;
    }
    status = map_data(ctrl, cmd, nlb << NVME_LBA_SHIFT, is_write ? PROT_READ : PROT_WRITE);
    if (status != NVME_SUCCESS) {
        return status;
    }
    status = access_namespace(ctrl, slba << NVME_LBA_SHIFT, is_write, durable);
    unmap_data(ctrl);
    if (status == NVME_SUCCESS) {
        *(is_write ? &counters->write_commands : &counters->read_commands) += 1;
        *(is_write ? &counters->blocks_written : &counters->blocks_read) += nlb;
    }
    return status;
}

static enum nvme_status
write_zeroes(struct controller *ctrl, const struct nvme_command *cmd)
{
    uint64_t slba = cmd->cdw10 | (uint64_t)cmd->cdw11 << 32;
    uint64_t nlb = (cmd->cdw12 & 0xffff) + 1;
    bool durable = (cmd->cdw12 & NVME_RW_FUA) != 0
                   || ctrl->state.features[NVME_FEAT_VOLATILE_WRITE_CACHE] == 0;
    enum nvme_status status;

    if (!is_in_namespace(&ctrl->ns, slba, nlb)) {
        return NVME_LBA_OUT_OF_RANGE;
    }
    if (ctrl->ns.readonly) {
        return NVME_WRITE_PROTECTED;
    }
    status = zero_blocks(ctrl, slba, nlb);
    return status == NVME_SUCCESS && durable ? flush(ctrl) : status;
}

/* Of what dataset management can say, this controller makes use of one thing: deallocate. */
static enum nvme_status
manage_dataset(struct controller *ctrl, const struct nvme_command *cmd)
{
    struct nvme_dsm_range ranges[256];
    size_t n = (cmd->cdw10 & 0xff) + 1;
    enum nvme_status status;

    if ((cmd->cdw11 & NVME_DSM_AD) == 0) {
        return NVME_SUCCESS;
    }
    if (ctrl->ns.readonly) {
        return NVME_WRITE_PROTECTED;
    }
    status = map_data(ctrl, cmd, n * sizeof(*ranges), PROT_READ);
    if (status != NVME_SUCCESS) {
        return status;
    }
    copy_from_data(ctrl, (uint8_t *)ranges);
    unmap_data(ctrl);

    for (size_t i = 0; i < n; i++) {
        if (!is_in_namespace(&ctrl->ns, ranges[i].slba, ranges[i].nlb)) {
            return NVME_LBA_OUT_OF_RANGE;
        }
    }
    for (size_t i = 0; i < n && status == NVME_SUCCESS; i++) {
        if (ranges[i].nlb > 0) {
            status = zero_blocks(ctrl, ranges[i].slba, ranges[i].nlb);
        }
    }
    return status;
}

enum nvme_status
execute_io(struct controller *ctrl, const struct nvme_command *cmd)
{
    if ((cmd->flags & (NVME_FLAGS_FUSE | NVME_FLAGS_PSDT)) != 0) {
        return NVME_INVALID_FIELD;
    }
    if (cmd->nsid != 1 && !(cmd->nsid == NVME_NSID_ALL && cmd->opcode == NVME_IO_FLUSH)) {
        return NVME_INVALID_NAMESPACE;
    }
    switch (cmd->opcode) {
    case NVME_IO_FLUSH:
        return flush(ctrl);
    case NVME_IO_WRITE:
    case NVME_IO_READ:
        return read_or_write(ctrl, cmd);
    case NVME_IO_WRITE_ZEROES:
        return write_zeroes(ctrl, cmd);
    case NVME_IO_DSM:
        return manage_dataset(ctrl, cmd);
    default:
        return NVME_INVALID_OPCODE;
    }
}
