/*
 * nvme: registers, and what writing them brings about.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <syslog.h>

#include "controller.h"

/* All that a controller level reset takes back: everything but AQA, ASQ and ACQ (7.3.2). */
void
reset_controller(struct controller *ctrl)
{
    struct nvme_state *state = &ctrl->state;

    memset(state->sqs, 0, sizeof(state->sqs));
    memset(state->cqs, 0, sizeof(state->cqs));
    for (int i = 0; i < 2 * NVME_NR_QUEUES; i++) {
        __atomic_store_n(&ctrl->doorbells[i], 0, __ATOMIC_RELAXED);
    }
    memset(state->aers, 0, sizeof(state->aers));
    memset(state->events_pending, 0, sizeof(state->events_pending));
    state->nr_aers = 0;
    state->events_masked = 0;
    state->intms = 0;
    state->csts = 0;
    default_features(state);
    count_active(ctrl);
}

void
say_that_memory_is_not_shared(struct controller *ctrl)
{
    vfu_log(ctrl->ctx, LOG_ERR, "the guest's memory is not shared with this process: the"
            " controller can't work (QEMU: -object memory-backend-memfd,share=on,...)");
}

static void
enable_controller(struct controller *ctrl)
{
    struct nvme_state *state = &ctrl->state;
    uint32_t asqs = NVME_AQA_ASQS(state->aqa);
    uint32_t acqs = NVME_AQA_ACQS(state->aqa);

    reset_controller(ctrl);
    if ((state->cc & (NVME_CC_CSS | NVME_CC_MPS | NVME_CC_AMS)) != 0) {
        fail(ctrl, "CC asks for what CAP doesn't offer");
        return;
    }
    if (asqs == 0 || acqs == 0) {
        fail(ctrl, "an admin queue of one entry");
        return;
    }
    if (!is_guest_memory(ctrl, state->asq, (asqs + 1) * sizeof(struct nvme_command), PROT_READ)
        || !is_guest_memory(ctrl, state->acq, (acqs + 1) * sizeof(struct nvme_completion),
                            PROT_WRITE)) {
        if (errno == EFAULT) {
            say_that_memory_is_not_shared(ctrl);
        }
        fail(ctrl, "the admin queues can't be accessed");
        return;
    }
    set_up_sq(ctrl, 0, state->asq, asqs + 1, 0);
    set_up_cq(ctrl, 0, state->acq, acqs + 1, true, 0);
    state->csts |= NVME_CSTS_RDY;
}

static void
write_cc(struct controller *ctrl, uint32_t value)
{
    uint32_t changed = ctrl->state.cc ^ value;

    ctrl->state.cc = value & NVME_CC_ALL;
    if (changed & NVME_CC_EN) {
        if (value & NVME_CC_EN) {
            enable_controller(ctrl);
        } else {
            reset_controller(ctrl);
        }
    }
    if ((changed & NVME_CC_SHN) != 0 && (value & NVME_CC_SHN) != 0) {
        ctrl->state.csts = (ctrl->state.csts & ~NVME_CSTS_SHST) | NVME_CSTS_SHST_OCCURRING;
    }
}

static void
write_doorbell(struct controller *ctrl, unsigned index, uint32_t value)
{
    unsigned qid = index / 2;
    bool is_cq = index % 2 != 0;

    if ((ctrl->state.csts & NVME_CSTS_RDY) == 0) {
        return;
    }
    if (qid >= NVME_NR_QUEUES
        || (is_cq ? ctrl->state.cqs[qid].size : ctrl->state.sqs[qid].size) == 0) {
        raise_event(ctrl, NVME_EVENT_ERROR, NVME_EVENT_INVALID_DOORBELL);
        return;
    }
    __atomic_store_n(&ctrl->doorbells[index], value, __ATOMIC_RELEASE);
    if (is_cq) {
        look_at_cq_doorbell(ctrl, qid);
    } else {
        look_at_sq_doorbell(ctrl, qid);
    }
}

/*
 * TO is how long a driver waits for RDY. It is there with the write of CC, or never: then
 * waiting helps nobody.
 */
static uint64_t
capabilities(void)
{
    return (NVME_MAX_ENTRIES - 1) | NVME_CAP_CQR | NVME_CAP_TO(2) | NVME_CAP_CSS_NVM;
}

static uint32_t
read_register(const struct controller *ctrl, size_t offset)
{
    const struct nvme_state *state = &ctrl->state;

    if (offset >= NVME_DOORBELLS && offset < NVME_DOORBELLS + PAGE) {
        return __atomic_load_n(&ctrl->doorbells[(offset - NVME_DOORBELLS) / 4], __ATOMIC_RELAXED);
    }
    switch (offset) {
    case NVME_REG_CAP:
        return (uint32_t)capabilities();
    case NVME_REG_CAP + 4:
        return (uint32_t)(capabilities() >> 32);
    case NVME_REG_VS:
        return NVME_VERSION;
    case NVME_REG_INTMS:
    case NVME_REG_INTMC:
        return state->intms;
    case NVME_REG_CC:
        return state->cc;
    case NVME_REG_CSTS:
        return state->csts;
    case NVME_REG_AQA:
        return state->aqa;
    case NVME_REG_ASQ:
        return (uint32_t)state->asq;
    case NVME_REG_ASQ + 4:
        return (uint32_t)(state->asq >> 32);
    case NVME_REG_ACQ:
        return (uint32_t)state->acq;
    case NVME_REG_ACQ + 4:
        return (uint32_t)(state->acq >> 32);
    default:
        return 0;
    }
}

/* Admin queues begin at a page. */
static void
write_low(uint64_t *base, uint32_t value)
{
    *base = (*base & ~(uint64_t)UINT32_MAX) | (value & ~(PAGE - 1u));
}

static void
write_high(uint64_t *base, uint32_t value)
{
    *base = (*base & UINT32_MAX) | (uint64_t)value << 32;
}

static void
write_register(struct controller *ctrl, size_t offset, uint32_t value)
{
    struct nvme_state *state = &ctrl->state;

    if (offset >= NVME_DOORBELLS && offset < NVME_DOORBELLS + PAGE) {
        write_doorbell(ctrl, (offset - NVME_DOORBELLS) / 4, value);
        return;
    }
    switch (offset) {
    /* These mask INTx and MSI, which this controller does without. */
    case NVME_REG_INTMS:
        state->intms |= value;
        break;
    case NVME_REG_INTMC:
        state->intms &= ~value;
        break;
    case NVME_REG_CC:
        write_cc(ctrl, value);
        break;
    case NVME_REG_AQA:
        state->aqa = value & NVME_AQA_ALL;
        break;
    case NVME_REG_ASQ:
        write_low(&state->asq, value);
        break;
    case NVME_REG_ASQ + 4:
        write_high(&state->asq, value);
        break;
    case NVME_REG_ACQ:
        write_low(&state->acq, value);
        break;
    case NVME_REG_ACQ + 4:
        write_high(&state->acq, value);
        break;
    default:
        break;
    }
}

/* Registers have 4 bytes; what is longer is an access to one after the other. */
ssize_t
bar0_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct controller *ctrl = vfu_get_private(ctx);

    if (count % 4 != 0 || offset % 4 != 0) {
        errno = EINVAL;
        return -1;
    }
    for (size_t i = 0; i < count; i += 4) {
        uint32_t value;

        if (is_write) {
            memcpy(&value, buf + i, 4);
            write_register(ctrl, offset + i, value);
        } else {
            value = read_register(ctrl, offset + i);
            memcpy(buf + i, &value, 4);
        }
    }
    return count;
}

/*
 * The MSI-X table is memory to us: the client knows where interrupts go, and masks
 * them. Nothing is ever pending.
 */
ssize_t
msix_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct controller *ctrl = vfu_get_private(ctx);
    size_t in_table = offset < NVME_MSIX_TABLE_SIZE ? min(count, NVME_MSIX_TABLE_SIZE - offset) : 0;

    if (is_write) {
        memcpy(ctrl->state.msix_table + offset, buf, in_table);
    } else {
        memcpy(buf, ctrl->state.msix_table + offset, in_table);
        memset(buf + in_table, 0, count - in_table);
    }
    return count;
}
