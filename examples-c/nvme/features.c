/*
 * nvme: admin commands: features, asynchronous events, Abort.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <string.h>

#include "controller.h"

void
default_features(struct nvme_state *state)
{
    memset(state->features, 0, sizeof(state->features));
    state->features[NVME_FEAT_TEMPERATURE_THRESHOLD] = WARNING_TEMPERATURE;
    state->features[NVME_FEAT_VOLATILE_WRITE_CACHE] = 1;
    state->features[NVME_FEAT_NUMBER_OF_QUEUES] = (NVME_NR_QUEUES - 2) << 16 | (NVME_NR_QUEUES - 2);
    state->coalescing_disabled = 0;
    state->under_temperature = 0;
}

/* Whether a feature can have the value. The loading of a state asks this, too. */
bool
is_feature_value(unsigned fid, uint32_t value)
{
    switch (fid) {
    case NVME_FEAT_ARBITRATION: /* queues have their turns, whatever it says */
        return true;
    case NVME_FEAT_POWER_MANAGEMENT: /* power state 0 is the only one */
        return value == 0;
    case NVME_FEAT_TEMPERATURE_THRESHOLD:
    case NVME_FEAT_INTERRUPT_COALESCING: /* a batch is one interrupt, whatever it says */
        return value <= 0xffff;
    case NVME_FEAT_ERROR_RECOVERY: /* no limit to retries; no errors for deallocated blocks */
        return value <= 0xffff;
    case NVME_FEAT_VOLATILE_WRITE_CACHE:
    case NVME_FEAT_WRITE_ATOMICITY: /* a block */
        return value <= 1;
    case NVME_FEAT_NUMBER_OF_QUEUES:
        return (value & 0xffff) <= NVME_NR_QUEUES - 2 && value >> 16 <= NVME_NR_QUEUES - 2;
    case NVME_FEAT_ASYNC_EVENTS: /* warnings of the SMART log; no notices */
        return value <= 0x1f;
    default:
        return value == 0;
    }
}

static enum nvme_status
set_temperature_threshold(struct nvme_state *state, uint32_t value)
{
    uint32_t sensor = value >> 16 & 15; /* 0: the composite temperature; 15: all */

    if (sensor != 0 && sensor != 15) {
        return NVME_INVALID_FIELD;
    }
    switch (value >> 20 & 3) {
    case 0:
        state->features[NVME_FEAT_TEMPERATURE_THRESHOLD] = value & 0xffff;
        return NVME_SUCCESS;
    case 1:
        state->under_temperature = value & 0xffff;
        return NVME_SUCCESS;
    default:
        return NVME_INVALID_FIELD;
    }
}

/* Grants what is asked for, as far as there is; both numbers count from 0. */
static enum nvme_status
set_number_of_queues(struct controller *ctrl, uint32_t value)
{
    uint32_t sqs = value & 0xffff;
    uint32_t cqs = value >> 16;

    if (sqs == 0xffff || cqs == 0xffff) {
        return NVME_INVALID_FIELD;
    }
    for (int i = 1; i < NVME_NR_QUEUES; i++) {
        if (ctrl->state.sqs[i].size != 0 || ctrl->state.cqs[i].size != 0) {
            return NVME_COMMAND_SEQUENCE_ERROR;
        }
    }
    ctrl->state.features[NVME_FEAT_NUMBER_OF_QUEUES] = min(sqs, NVME_NR_QUEUES - 2)
                                                       | min(cqs, NVME_NR_QUEUES - 2) << 16;
    return NVME_SUCCESS;
}

static enum nvme_status
set_interrupt_vector(struct nvme_state *state, uint32_t value)
{
    uint32_t vector = value & 0xffff;

    if (vector >= NVME_NR_VECTORS) {
        return NVME_INVALID_FIELD;
    }
    state->coalescing_disabled &= ~(1ull << vector);
    state->coalescing_disabled |= (uint64_t)(value >> 16 & 1) << vector;
    return NVME_SUCCESS;
}

enum nvme_status
set_features(struct controller *ctrl, const struct nvme_command *cmd, uint32_t *result)
{
    struct nvme_state *state = &ctrl->state;
    unsigned fid = cmd->cdw10 & 0xff;
    uint32_t value = cmd->cdw11;
    enum nvme_status status = NVME_SUCCESS;

    if (cmd->cdw10 >> 31 != 0) {
        return NVME_FEATURE_NOT_SAVEABLE;
    }
    switch (fid) {
    case NVME_FEAT_TEMPERATURE_THRESHOLD:
        status = set_temperature_threshold(state, value);
        break;
    case NVME_FEAT_NUMBER_OF_QUEUES:
        status = set_number_of_queues(ctrl, value);
        *result = state->features[fid];
        break;
    case NVME_FEAT_INTERRUPT_VECTOR:
        status = set_interrupt_vector(state, value);
        break;
    case NVME_FEAT_ARBITRATION:
    case NVME_FEAT_POWER_MANAGEMENT:
    case NVME_FEAT_ERROR_RECOVERY:
    case NVME_FEAT_VOLATILE_WRITE_CACHE:
    case NVME_FEAT_INTERRUPT_COALESCING:
    case NVME_FEAT_WRITE_ATOMICITY:
    case NVME_FEAT_ASYNC_EVENTS:
        if (!is_feature_value(fid, value)) {
            return NVME_INVALID_FIELD;
        }
        state->features[fid] = value;
        break;
    default:
        return NVME_INVALID_FIELD;
    }
    if (fid == NVME_FEAT_TEMPERATURE_THRESHOLD || fid == NVME_FEAT_ASYNC_EVENTS) {
        if ((critical_warning(ctrl) & state->features[NVME_FEAT_ASYNC_EVENTS]) != 0) {
            raise_event(ctrl, NVME_EVENT_SMART, NVME_EVENT_TEMPERATURE);
        }
    }
    return status;
}

enum nvme_status
get_features(struct controller *ctrl, const struct nvme_command *cmd, uint32_t *result)
{
    const struct nvme_state *state = &ctrl->state;
    unsigned fid = cmd->cdw10 & 0xff;
    uint32_t vector = cmd->cdw11 & 0xffff;

    if ((cmd->cdw10 >> 8 & 7) != 0) {
        return NVME_INVALID_FIELD; /* only current values can be selected */
    }
    switch (fid) {
    case NVME_FEAT_TEMPERATURE_THRESHOLD:
        if ((cmd->cdw11 >> 16 & 15) != 0 || (cmd->cdw11 >> 20 & 3) > 1) {
            return NVME_INVALID_FIELD;
        }
        *result = cmd->cdw11 >> 20 & 1 ? state->under_temperature : state->features[fid];
        return NVME_SUCCESS;
    case NVME_FEAT_INTERRUPT_VECTOR:
        if (vector >= NVME_NR_VECTORS) {
            return NVME_INVALID_FIELD;
        }
        *result = vector | (uint32_t)(state->coalescing_disabled >> vector & 1) << 16;
        return NVME_SUCCESS;
    case NVME_FEAT_ARBITRATION:
    case NVME_FEAT_POWER_MANAGEMENT:
    case NVME_FEAT_ERROR_RECOVERY:
    case NVME_FEAT_VOLATILE_WRITE_CACHE:
    case NVME_FEAT_NUMBER_OF_QUEUES:
    case NVME_FEAT_INTERRUPT_COALESCING:
    case NVME_FEAT_WRITE_ATOMICITY:
    case NVME_FEAT_ASYNC_EVENTS:
        *result = state->features[fid];
        return NVME_SUCCESS;
    default:
        return NVME_INVALID_FIELD;
    }
}

/* The request waits for an event, and completes with it. */
enum nvme_status
request_async_event(struct controller *ctrl, const struct nvme_command *cmd)
{
    if (ctrl->state.nr_aers == NVME_NR_AERS) {
        return NVME_TOO_MANY_AERS;
    }
    ctrl->state.aers[ctrl->state.nr_aers++] = cmd->cid;
    return NVME_NO_COMPLETION;
}

static void
remove_aer(struct nvme_state *state, unsigned i)
{
    state->nr_aers--;
    memmove(state->aers + i, state->aers + i + 1, (state->nr_aers - i) * sizeof(*state->aers));
    state->aers[state->nr_aers] = 0;
}

/*
 * Events are the only commands that last, and so the only ones that there is a
 * chance to abort. The aborted one completes first, so both need room.
 */
enum nvme_status
abort_command(struct controller *ctrl, const struct nvme_command *cmd, uint32_t *result)
{
    struct nvme_state *state = &ctrl->state;
    uint16_t sqid = cmd->cdw10 & 0xffff;
    uint16_t cid = cmd->cdw10 >> 16;

    for (unsigned i = 0; i < state->nr_aers; i++) {
        if (sqid == 0 && state->aers[i] == cid && room_in_cq(ctrl, 0, 2) >= 2) {
            remove_aer(state, i);
            complete(ctrl, 0, cid, NVME_ABORT_REQUESTED << 1, 0);
            return NVME_SUCCESS;
        }
    }
    *result = 1; /* not aborted */
    return NVME_SUCCESS;
}

/* Completes requests for events that have happened, one of each type (5.2). */
bool
deliver_events(struct controller *ctrl)
{
    static const uint8_t log_pages[] = { NVME_LOG_ERROR, NVME_LOG_SMART };
    struct nvme_state *state = &ctrl->state;
    bool delivered = false;

    for (uint32_t type = 0; type < NVME_NR_EVENT_TYPES; type++) {
        uint8_t *pending = &state->events_pending[type];

        if (state->nr_aers == 0 || *pending == 0 || (state->events_masked & 1u << type) != 0
            || room_in_cq(ctrl, 0, 1) == 0) {
            continue;
        }
        uint32_t info = __builtin_ctz(*pending);
        uint16_t cid = state->aers[0];

        *pending &= *pending - 1;
        state->events_masked |= 1u << type;
        remove_aer(state, 0);
        complete(ctrl, 0, cid, NVME_SUCCESS, (uint32_t)log_pages[type] << 16 | info << 8 | type);
        delivered = true;
    }
    if (delivered) {
        interrupt(ctrl, 0);
    }
    return delivered;
}
