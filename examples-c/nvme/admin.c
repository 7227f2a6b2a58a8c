/*
 * nvme: admin commands: creating and deleting queues; and which command is whose.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <sys/mman.h>

#include "controller.h"

/* What creating any kind of queue asks for. */
static enum nvme_status
check_new_queue(struct controller *ctrl, const struct nvme_command *cmd, uint32_t max_qid,
                size_t entry_size, bool entry_size_set, int prot)
{
    uint32_t qid = cmd->cdw10 & 0xffff;
    uint32_t size = (cmd->cdw10 >> 16) + 1;

    if (qid == 0 || qid > max_qid) {
        return NVME_INVALID_QID;
    }
    if (size < 2 || size > NVME_MAX_ENTRIES || !entry_size_set) {
        return NVME_INVALID_QUEUE_SIZE;
    }
    if ((cmd->cdw11 & NVME_QUEUE_PC) == 0) {
        return NVME_INVALID_FIELD;
    }
    if (cmd->prp1 % PAGE != 0) {
        return NVME_INVALID_PRP_OFFSET;
    }
    return is_guest_memory(ctrl, cmd->prp1, size * entry_size, prot) ? NVME_SUCCESS
                                                                     : NVME_DATA_TRANSFER_ERROR;
}

void
set_up_cq(struct controller *ctrl, unsigned qid, uint64_t base, uint16_t size, bool interrupts,
          uint16_t vector)
{
    ctrl->state.cqs[qid] = (struct nvme_state_cq) {
        .base = base,
        .size = size,
        .vector = vector,
        .interrupts = interrupts,
        .phase = 1,
    };
    __atomic_store_n(&ctrl->doorbells[2 * qid + 1], 0, __ATOMIC_RELAXED);
}

void
count_active(struct controller *ctrl)
{
    ctrl->nr_active = NVME_NR_QUEUES;
    while (ctrl->nr_active > 0 && ctrl->state.sqs[ctrl->nr_active - 1].size == 0) {
        ctrl->nr_active--;
    }
}

void
set_up_sq(struct controller *ctrl, unsigned qid, uint64_t base, uint16_t size, uint16_t cqid)
{
    ctrl->state.sqs[qid] = (struct nvme_state_sq) { .base = base, .size = size, .cqid = cqid };
    __atomic_store_n(&ctrl->doorbells[2 * qid], 0, __ATOMIC_RELAXED);
    count_active(ctrl);
}

static enum nvme_status
create_cq(struct controller *ctrl, const struct nvme_command *cmd)
{
    uint32_t qid = cmd->cdw10 & 0xffff;
    uint16_t vector = cmd->cdw11 >> 16;
    uint32_t max_qid = (ctrl->state.features[NVME_FEAT_NUMBER_OF_QUEUES] >> 16) + 1;
    enum nvme_status status = check_new_queue(ctrl, cmd, max_qid, sizeof(struct nvme_completion),
                                              NVME_CC_IOCQES(ctrl->state.cc) == NVME_CQES,
                                              PROT_WRITE);

    if (status != NVME_SUCCESS) {
        return status;
    }
    if (ctrl->state.cqs[qid].size != 0) {
        return NVME_INVALID_QID;
    }
    if (vector >= NVME_NR_VECTORS) {
        return NVME_INVALID_VECTOR;
    }
    set_up_cq(ctrl, qid, cmd->prp1, (cmd->cdw10 >> 16) + 1, (cmd->cdw11 & NVME_QUEUE_IEN) != 0,
              vector);
    return NVME_SUCCESS;
}

static enum nvme_status
create_sq(struct controller *ctrl, const struct nvme_command *cmd)
{
    uint32_t qid = cmd->cdw10 & 0xffff;
    uint16_t cqid = cmd->cdw11 >> 16;
    uint32_t max_qid = (ctrl->state.features[NVME_FEAT_NUMBER_OF_QUEUES] & 0xffff) + 1;
    enum nvme_status status = check_new_queue(ctrl, cmd, max_qid, sizeof(struct nvme_command),
                                              NVME_CC_IOSQES(ctrl->state.cc) == NVME_SQES,
                                              PROT_READ);

    if (status != NVME_SUCCESS) {
        return status;
    }
    if (ctrl->state.sqs[qid].size != 0 || cqid == 0 || cqid >= NVME_NR_QUEUES) {
        return NVME_INVALID_QID;
    }
    if (ctrl->state.cqs[cqid].size == 0) {
        return NVME_INVALID_CQ;
    }
    set_up_sq(ctrl, qid, cmd->prp1, (cmd->cdw10 >> 16) + 1, cqid);
    return NVME_SUCCESS;
}

/* Commands that are still in it have not been begun, and never complete. */
static enum nvme_status
delete_sq(struct controller *ctrl, const struct nvme_command *cmd)
{
    uint32_t qid = cmd->cdw10 & 0xffff;

    if (qid == 0 || qid >= NVME_NR_QUEUES || ctrl->state.sqs[qid].size == 0) {
        return NVME_INVALID_QID;
    }
    set_up_sq(ctrl, qid, 0, 0, 0);
    return NVME_SUCCESS;
}

static enum nvme_status
delete_cq(struct controller *ctrl, const struct nvme_command *cmd)
{
    uint32_t qid = cmd->cdw10 & 0xffff;

    if (qid == 0 || qid >= NVME_NR_QUEUES || ctrl->state.cqs[qid].size == 0) {
        return NVME_INVALID_QID;
    }
    for (int i = 1; i < NVME_NR_QUEUES; i++) {
        if (ctrl->state.sqs[i].size != 0 && ctrl->state.sqs[i].cqid == qid) {
            return NVME_INVALID_QUEUE_DELETION;
        }
    }
    set_up_cq(ctrl, qid, 0, 0, false, 0);
    ctrl->state.cqs[qid].phase = 0;
    return NVME_SUCCESS;
}

enum nvme_status
execute_admin(struct controller *ctrl, const struct nvme_command *cmd, uint32_t *result)
{
    if ((cmd->flags & (NVME_FLAGS_FUSE | NVME_FLAGS_PSDT)) != 0) {
        return NVME_INVALID_FIELD;
    }
    switch (cmd->opcode) {
    case NVME_ADMIN_DELETE_SQ:
        return delete_sq(ctrl, cmd);
    case NVME_ADMIN_CREATE_SQ:
        return create_sq(ctrl, cmd);
    case NVME_ADMIN_GET_LOG_PAGE:
        return get_log_page(ctrl, cmd);
    case NVME_ADMIN_DELETE_CQ:
        return delete_cq(ctrl, cmd);
    case NVME_ADMIN_CREATE_CQ:
        return create_cq(ctrl, cmd);
    case NVME_ADMIN_IDENTIFY:
        return identify(ctrl, cmd);
    case NVME_ADMIN_ABORT:
        return abort_command(ctrl, cmd, result);
    case NVME_ADMIN_SET_FEATURES:
        return set_features(ctrl, cmd, result);
    case NVME_ADMIN_GET_FEATURES:
        return get_features(ctrl, cmd, result);
    case NVME_ADMIN_ASYNC_EVENT:
        return request_async_event(ctrl, cmd);
    default:
        return NVME_INVALID_OPCODE;
    }
}
