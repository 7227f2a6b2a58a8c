/*
 * nvme: queues.
 *
 * While it runs, a controller looks at doorbells when it needs to know
 * something new: at a submission queue's when it has nothing to do, at a completion
 * queue's when that is full. Trapped ones it looks at as they are written.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <syslog.h>

#include "controller.h"

/* The controller can't go on: it stops, until the driver resets it. */
void
fail(struct controller *ctrl, const char *reason)
{
    vfu_log(ctrl->ctx, LOG_INFO, "controller fatal status: %s", reason);
    ctrl->state.csts |= NVME_CSTS_CFS;
}

void
raise_event(struct controller *ctrl, enum nvme_event_type type, enum nvme_event_info info)
{
    ctrl->state.events_pending[type] |= 1u << info;
}

void
look_at_sq_doorbell(struct controller *ctrl, unsigned qid)
{
    struct nvme_state_sq *sq = &ctrl->state.sqs[qid];
    /* Entries were written before the doorbell, and are read after it. */
    uint32_t value = __atomic_load_n(&ctrl->doorbells[2 * qid], __ATOMIC_ACQUIRE);

    if (value == sq->doorbell) {
        return;
    }
    sq->doorbell = value;
    if (value >= sq->size) {
        raise_event(ctrl, NVME_EVENT_ERROR, NVME_EVENT_INVALID_DOORBELL_VALUE);
        return;
    }
    sq->tail = value;
}

void
look_at_cq_doorbell(struct controller *ctrl, unsigned qid)
{
    struct nvme_state_cq *cq = &ctrl->state.cqs[qid];
    uint32_t value = __atomic_load_n(&ctrl->doorbells[2 * qid + 1], __ATOMIC_ACQUIRE);
    uint32_t used = (cq->tail + cq->size - cq->head) % cq->size;

    if (value == cq->doorbell) {
        return;
    }
    cq->doorbell = value;
    /* The head moves towards the tail, and not beyond. */
    if (value >= cq->size || (value + cq->size - cq->head) % cq->size > used) {
        raise_event(ctrl, NVME_EVENT_ERROR, NVME_EVENT_INVALID_DOORBELL_VALUE);
        return;
    }
    cq->head = value;
}

size_t
room_in_cq(struct controller *ctrl, unsigned qid, size_t wanted)
{
    struct nvme_state_cq *cq = &ctrl->state.cqs[qid];
    size_t room = (cq->head + cq->size - cq->tail - 1) % cq->size;

    if (room < wanted) {
        look_at_cq_doorbell(ctrl, qid);
        room = (cq->head + cq->size - cq->tail - 1) % cq->size;
    }
    return room;
}

/* Posts a completion, for which there has to be room. */
void
complete(struct controller *ctrl, unsigned sqid, uint16_t cid, uint16_t status, uint32_t result)
{
    const struct nvme_state_sq *sq = &ctrl->state.sqs[sqid];
    struct nvme_state_cq *cq = &ctrl->state.cqs[sq->cqid];
    struct nvme_completion entry = {
        .result = result,
        .sq_head = sq->head,
        .sq_id = sqid,
        .cid = cid,
        .status = status | cq->phase,
    };
    uint64_t address = cq->base + cq->tail * sizeof(entry);
    uint32_t last;
    uint8_t *to;

    if (!get_access(ctrl, address, sizeof(entry), PROT_WRITE)) {
        fail(ctrl, "a completion queue can't be written");
        return;
    }
    /* No region ends within an entry: regions begin and end with pages. */
    to = ctrl->access.iov[0].iov_base;
    if (ctrl->access.nr != 1 || (uintptr_t)to % sizeof(last) != 0) {
        put_access(ctrl);
        fail(ctrl, "a completion queue is cut into pieces");
        return;
    }
    /* The phase makes the entry valid, so what holds it comes last, and in one piece. */
    memcpy(to, &entry, sizeof(entry) - sizeof(last));
    memcpy(&last, &entry.cid, sizeof(last));
    __atomic_store_n((uint32_t *)to + sizeof(entry) / sizeof(last) - 1, last, __ATOMIC_RELEASE);
    put_access(ctrl);

    if (++cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase ^= 1;
    }
}

void
interrupt(struct controller *ctrl, unsigned cqid)
{
    const struct nvme_state_cq *cq = &ctrl->state.cqs[cqid];

    /* What can fail is that the client doesn't listen to this vector, or not often enough. */
    if (cq->interrupts) {
        (void)vfu_irq_trigger(ctrl->ctx, cq->vector);
    }
}

/* Drivers find out what there is by asking for it: for what a later revision has, say. */
static bool
is_question(unsigned sqid, const struct nvme_command *cmd, enum nvme_status status)
{
    return sqid == 0
           && ((cmd->opcode == NVME_ADMIN_IDENTIFY && status == NVME_INVALID_FIELD)
               || (cmd->opcode == NVME_ADMIN_GET_FEATURES && status == NVME_INVALID_FIELD)
               || (cmd->opcode == NVME_ADMIN_GET_LOG_PAGE && status == NVME_INVALID_LOG_PAGE));
}

/*
 * Puts a failed command in the Error Information log, where monitors count the entries
 * as signs of trouble, unless it only asked for something that isn't there. Returns what
 * its completion says.
 */
uint16_t
log_error(struct controller *ctrl, unsigned sqid, const struct nvme_command *cmd,
          enum nvme_status status)
{
    struct nvme_error_entry *errors = ctrl->state.errors;
    bool has_lba = sqid != 0 && cmd->opcode != NVME_IO_FLUSH && cmd->opcode != NVME_IO_DSM;
    uint16_t field = (uint16_t)(status << 1 | NVME_STATUS_MORE | NVME_STATUS_DNR);

    if (is_question(sqid, cmd, status)) {
        return (uint16_t)(status << 1 | NVME_STATUS_DNR);
    }
    memmove(errors + 1, errors, (NVME_NR_ERRORS - 1) * sizeof(*errors));
    errors[0] = (struct nvme_error_entry) {
        .error_count = ++ctrl->state.counters.errors,
        .sqid = sqid,
        .cid = cmd->cid,
        .status = field,
        .location = 0xffff, /* of the wrong parameter: not told */
        .lba = has_lba ? cmd->cdw10 | (uint64_t)cmd->cdw11 << 32 : 0,
        .nsid = cmd->nsid,
    };
    return field;
}
