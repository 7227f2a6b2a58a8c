/*
 * nvme: migration.
 *
 * docs/live-migration.md has the rules. There is nothing to send while the
 * controller runs, and one record when it stands still. What is in the queues and was
 * not begun is in the guest's memory, and waits there for whoever goes on.
 *
 * What was written is in the file, and whoever opens the same file on this machine
 * sees it. (With a file system over the network, STOP would be the place for fdatasync.)
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "controller.h"

static uint64_t
checksum(const struct nvme_state *record)
{
    const uint8_t *bytes = (const uint8_t *)record;
    uint64_t sum = 0xcbf29ce484222325u;

    for (size_t i = 0; i < offsetof(struct nvme_state, checksum); i++) {
        sum = (sum ^ bytes[i]) * 0x100000001b3u;
    }
    return sum;
}

static void
fill_record(struct controller *ctrl)
{
    struct nvme_state *record = &ctrl->record;

    *record = ctrl->state;
    for (int i = 0; i < 2 * NVME_NR_QUEUES; i++) {
        record->doorbells[i] = __atomic_load_n(&ctrl->doorbells[i], __ATOMIC_RELAXED);
    }
    record->checksum = checksum(record);
}

static bool
is_valid_sq(const struct nvme_state *record, unsigned qid)
{
    static const struct nvme_state_sq none;
    const struct nvme_state_sq *sq = &record->sqs[qid];

    if (sq->size == 0) {
        return memcmp(sq, &none, sizeof(none)) == 0;
    }
    return sq->size >= 2 && sq->size <= (qid == 0 ? PAGE : NVME_MAX_ENTRIES)
           && sq->base % PAGE == 0 && sq->head < sq->size && sq->tail < sq->size
           && sq->cqid < NVME_NR_QUEUES && (sq->cqid == 0) == (qid == 0)
           && record->cqs[sq->cqid].size != 0 && sq->reserved == 0;
}

static bool
is_valid_cq(const struct nvme_state *record, unsigned qid)
{
    static const struct nvme_state_cq none;
    const struct nvme_state_cq *cq = &record->cqs[qid];

    if (cq->size == 0) {
        return memcmp(cq, &none, sizeof(none)) == 0;
    }
    return cq->size >= 2 && cq->size <= (qid == 0 ? PAGE : NVME_MAX_ENTRIES)
           && cq->base % PAGE == 0 && cq->head < cq->size && cq->tail < cq->size
           && cq->vector < NVME_NR_VECTORS && cq->phase <= 1 && cq->interrupts <= 1
           && cq->reserved == 0;
}

/* Queues, as far as the registers allow them: none, or admin queues and others. */
static bool
are_valid_queues(const struct nvme_state *record)
{
    bool ready = (record->csts & NVME_CSTS_RDY) != 0;

    for (unsigned qid = 0; qid < NVME_NR_QUEUES; qid++) {
        bool exists = record->sqs[qid].size != 0 || record->cqs[qid].size != 0;

        if (!is_valid_sq(record, qid) || !is_valid_cq(record, qid) || (exists && !ready)) {
            return false;
        }
    }
    return !ready || (record->sqs[0].size != 0 && record->cqs[0].size != 0);
}

static bool
are_valid_registers(const struct nvme_state *record)
{
    return (record->cc & ~NVME_CC_ALL) == 0 && (record->aqa & ~NVME_AQA_ALL) == 0
           && record->asq % PAGE == 0 && record->acq % PAGE == 0
           && (record->csts & ~(NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST)) == 0
           && (record->csts & NVME_CSTS_SHST) != NVME_CSTS_SHST
           && ((record->csts & NVME_CSTS_RDY) == 0 || (record->cc & NVME_CC_EN) != 0);
}

static bool
are_valid_features(const struct nvme_state *record)
{
    for (unsigned fid = 0; fid < NVME_NR_FEATURES; fid++) {
        if (!is_feature_value(fid, record->features[fid])) {
            return false;
        }
    }
    return record->coalescing_disabled >> NVME_NR_VECTORS == 0
           && record->nr_aers <= NVME_NR_AERS && record->reserved1 == 0
           && record->events_masked >> NVME_NR_EVENT_TYPES == 0
           && record->events_pending[NVME_EVENT_ERROR] >> 2 == 0
           && (record->events_pending[NVME_EVENT_SMART] & ~(1u << NVME_EVENT_TEMPERATURE)) == 0;
}

/*
 * Believes nothing: a checksum says that a record has come through unharmed, not that
 * it means well. Numbers are what a driver of this controller could have brought about.
 */
static bool
is_valid_record(const struct controller *ctrl, const struct nvme_state *record)
{
    const struct nvme_state *state = &ctrl->state;

    return record->magic == state->magic && record->version == state->version
           && record->length == state->length && record->checksum == checksum(record)
           && memcmp(record->uuid, state->uuid, sizeof(record->uuid)) == 0
           && record->nsze == state->nsze && record->nr_queues == state->nr_queues
           && record->nr_vectors == state->nr_vectors && record->reserved0 == 0
           && are_valid_registers(record) && are_valid_queues(record)
           && are_valid_features(record);
}

static int
load_record(struct controller *ctrl)
{
    struct nvme_state *record = &ctrl->record;

    if (ctrl->damaged || ctrl->moved != sizeof(*record) || !is_valid_record(ctrl, record)) {
        errno = EINVAL;
        return -1;
    }
    for (int i = 0; i < 2 * NVME_NR_QUEUES; i++) {
        __atomic_store_n(&ctrl->doorbells[i], record->doorbells[i], __ATOMIC_RELAXED);
    }
    ctrl->state = *record;
    count_active(ctrl);
    ctrl->loaded = true;
    return 0;
}

/* Wherever completions may lie unseen: an interrupt too many is better than one that was lost. */
static void
interrupt_all(struct controller *ctrl)
{
    for (unsigned qid = 0; qid < NVME_NR_QUEUES; qid++) {
        if (ctrl->state.cqs[qid].head != ctrl->state.cqs[qid].tail) {
            interrupt(ctrl, qid);
        }
    }
}

/* One step of the way to the state that the client asked for. */
int
on_transition(vfu_ctx_t *ctx, vfu_migr_state_t state)
{
    struct controller *ctrl = vfu_get_private(ctx);

    switch (state) {
    case VFU_MIGR_STATE_STOP:
        if (ctrl->migration == VFU_MIGR_STATE_RESUME && load_record(ctrl) < 0) {
            return -1;
        }
        break;
    case VFU_MIGR_STATE_STOP_AND_COPY:
    case VFU_MIGR_STATE_RESUME:
        ctrl->moved = 0;
        ctrl->damaged = false;
        break;
    case VFU_MIGR_STATE_RUNNING:
        if (ctrl->loaded) {
            ctrl->loaded = false;
            interrupt_all(ctrl);
        }
        break;
    case VFU_MIGR_STATE_PRE_COPY:
        break;
    default:
        errno = EINVAL;
        return -1;
    }
    ctrl->migration = state;
    return 0;
}

ssize_t
on_read_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct controller *ctrl = vfu_get_private(ctx);

    if (!is_stopped(ctrl)) {
        return 0;
    }
    if (ctrl->moved == 0) {
        fill_record(ctrl);
    }
    count = min(count, sizeof(ctrl->record) - ctrl->moved);
    memcpy(buf, (uint8_t *)&ctrl->record + ctrl->moved, count);
    ctrl->moved += count;
    return count;
}

ssize_t
on_write_data(vfu_ctx_t *ctx, void *buf, uint64_t count)
{
    struct controller *ctrl = vfu_get_private(ctx);

    if (ctrl->damaged || count > sizeof(ctrl->record) - ctrl->moved) {
        ctrl->damaged = true;
        errno = EINVAL;
        return -1;
    }
    memcpy((uint8_t *)&ctrl->record + ctrl->moved, buf, count);
    ctrl->moved += count;
    return count;
}
