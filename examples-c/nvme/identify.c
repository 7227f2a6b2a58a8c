/*
 * nvme: admin commands that tell of the controller: Identify and Get Log Page.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "controller.h"

/* Gives the driver data, and zeroes behind them up to len. */
static enum nvme_status
answer(struct controller *ctrl, const struct nvme_command *cmd, const void *data, size_t data_len,
       size_t len)
{
    const uint8_t *bytes = data;
    enum nvme_status status = map_data(ctrl, cmd, len, PROT_WRITE);

    if (status != NVME_SUCCESS) {
        return status;
    }
    for (size_t i = 0; i < ctrl->data.nr; i++) {
        uint8_t *to = ctrl->data.iov[i].iov_base;
        size_t part = min(ctrl->data.iov[i].iov_len, data_len);

        memcpy(to, bytes, part);
        memset(to + part, 0, ctrl->data.iov[i].iov_len - part);
        bytes += part;
        data_len -= part;
    }
    unmap_data(ctrl);
    return NVME_SUCCESS;
}

/* The specification's texts are filled up with spaces and not terminated. */
static void
put_text(char *field, size_t size, const char *text)
{
    memset(field, ' ', size);
    memcpy(field, text, min(strlen(text), size));
}

static enum nvme_status
identify_controller(struct controller *ctrl, const struct nvme_command *cmd)
{
    struct nvme_id_controller id = {
        .vid = VENDOR_ID,
        .mdts = NVME_MDTS,
        .ver = NVME_VERSION,
        .cntrltype = NVME_CNTRLTYPE_IO,
        .acl = NVME_NR_ABORTS - 1,
        .aerl = NVME_NR_AERS - 1,
        .frmw = NVME_FRMW_ONE_READ_ONLY_SLOT,
        .lpa = NVME_LPA_EXTENDED,
        .elpe = NVME_NR_ERRORS - 1,
        .wctemp = WARNING_TEMPERATURE,
        .cctemp = CRITICAL_TEMPERATURE,
        .sqes = NVME_SQES << 4 | NVME_SQES,
        .cqes = NVME_CQES << 4 | NVME_CQES,
        .nn = 1,
        .oncs = NVME_ONCS_DSM | NVME_ONCS_WRITE_ZEROES,
        .vwc = NVME_VWC_PRESENT | NVME_VWC_FLUSH_ALL,
        .psd = { { .mp = 2500 } },
    };
    char serial_number[21];
    char uuid[37];

    format_serial_number(ctrl->ns.uuid, serial_number);
    format_uuid(ctrl->ns.uuid, uuid);
    put_text(id.sn, sizeof(id.sn), serial_number);
    put_text(id.mn, sizeof(id.mn), "libvfio-user example nvme");
    put_text(id.fr, sizeof(id.fr), FIRMWARE);
    snprintf(id.subnqn, sizeof(id.subnqn), "nqn.2014-08.org.nvmexpress:uuid:%s", uuid);
    return answer(ctrl, cmd, &id, sizeof(id), sizeof(id));
}

static enum nvme_status
identify_namespace(struct controller *ctrl, const struct nvme_command *cmd)
{
    struct nvme_id_namespace id = {
        .nsze = ctrl->ns.nr_blocks,
        .ncap = ctrl->ns.nr_blocks,
        .nuse = ctrl->ns.nr_blocks,
        .dlfeat = NVME_DLFEAT_ZEROES | NVME_DLFEAT_WRITE_ZEROES,
        .nsattr = ctrl->ns.readonly ? NVME_NSATTR_WRITE_PROTECTED : 0,
        .lbaf = { { .lbads = NVME_LBA_SHIFT } },
    };

    if (cmd->nsid != 1) {
        return NVME_INVALID_NAMESPACE;
    }
    return answer(ctrl, cmd, &id, sizeof(id), sizeof(id));
}

static enum nvme_status
identify_active_namespaces(struct controller *ctrl, const struct nvme_command *cmd)
{
    /* Those above the number in the command. */
    uint32_t list[] = { cmd->nsid < 1 ? 1 : 0 };

    if (cmd->nsid >= NVME_NSID_ALL - 1) {
        return NVME_INVALID_NAMESPACE;
    }
    return answer(ctrl, cmd, list, sizeof(list), PAGE);
}

static enum nvme_status
identify_namespace_descriptors(struct controller *ctrl, const struct nvme_command *cmd)
{
    uint8_t descriptor[4 + 16] = { NVME_NIDT_UUID, 16 };

    if (cmd->nsid != 1) {
        return NVME_INVALID_NAMESPACE;
    }
    memcpy(descriptor + 4, ctrl->ns.uuid, 16);
    return answer(ctrl, cmd, descriptor, sizeof(descriptor), PAGE);
}

enum nvme_status
identify(struct controller *ctrl, const struct nvme_command *cmd)
{
    switch (cmd->cdw10 & 0xff) {
    case NVME_CNS_NAMESPACE:
        return identify_namespace(ctrl, cmd);
    case NVME_CNS_CONTROLLER:
        return identify_controller(ctrl, cmd);
    case NVME_CNS_ACTIVE_NAMESPACES:
        return identify_active_namespaces(ctrl, cmd);
    case NVME_CNS_NAMESPACE_DESCRIPTORS:
        return identify_namespace_descriptors(ctrl, cmd);
    default:
        return NVME_INVALID_FIELD;
    }
}

uint8_t
critical_warning(const struct controller *ctrl)
{
    return TEMPERATURE >= ctrl->state.features[NVME_FEAT_TEMPERATURE_THRESHOLD]
           || TEMPERATURE <= ctrl->state.under_temperature ? NVME_SMART_TEMPERATURE : 0;
}

static void
fill_smart_log(const struct controller *ctrl, struct nvme_smart_log *log)
{
    const struct nvme_state_counters *counters = &ctrl->state.counters;

    *log = (struct nvme_smart_log) {
        .critical_warning = critical_warning(ctrl),
        .temperature = { TEMPERATURE & 0xff, TEMPERATURE >> 8 },
        .available_spare = 100,
        .data_units_read = { (counters->blocks_read + 999) / 1000 },
        .data_units_written = { (counters->blocks_written + 999) / 1000 },
        .host_read_commands = { counters->read_commands },
        .host_write_commands = { counters->write_commands },
        .power_cycles = { 1 },
        .media_errors = { counters->media_errors },
        .error_log_entries = { counters->errors },
    };
}

enum nvme_status
get_log_page(struct controller *ctrl, const struct nvme_command *cmd)
{
    union {
        struct nvme_smart_log smart;
        struct nvme_firmware_log firmware;
        uint32_t changed_namespaces[PAGE / 4];
    } page = { 0 };
    uint8_t lid = cmd->cdw10 & 0xff;
    bool retain_event = (cmd->cdw10 >> 15 & 1) != 0;
    uint64_t len = ((cmd->cdw10 >> 16 | (uint64_t)(cmd->cdw11 & 0xffff) << 16) + 1) * 4;
    uint64_t offset = cmd->cdw12 | (uint64_t)cmd->cdw13 << 32;
    const uint8_t *log = (const uint8_t *)&page;
    size_t log_len;
    int event = -1;
    enum nvme_status status;

    switch (lid) {
    case NVME_LOG_ERROR:
        log = (const uint8_t *)ctrl->state.errors;
        log_len = sizeof(ctrl->state.errors);
        event = NVME_EVENT_ERROR;
        break;
    case NVME_LOG_SMART:
        if (cmd->nsid != 0 && cmd->nsid != NVME_NSID_ALL) {
            return NVME_INVALID_FIELD; /* there is no log of a namespace */
        }
        fill_smart_log(ctrl, &page.smart);
        log_len = sizeof(page.smart);
        event = NVME_EVENT_SMART;
        break;
    case NVME_LOG_FIRMWARE:
        page.firmware.afi = 1;
        memcpy(page.firmware.frs[0], FIRMWARE, sizeof(page.firmware.frs[0]));
        log_len = sizeof(page.firmware);
        break;
    case NVME_LOG_CHANGED_NAMESPACES:
        log_len = sizeof(page.changed_namespaces);
        break;
    default:
        return NVME_INVALID_LOG_PAGE;
    }
    if (offset % 4 != 0 || offset > log_len || len > MAX_TRANSFER) {
        return NVME_INVALID_FIELD;
    }
    status = answer(ctrl, cmd, log + offset, min(len, log_len - offset), len);
    /* Having read what has happened, the driver wants to be told of the next event (5.2). */
    if (status == NVME_SUCCESS && event >= 0 && !retain_event) {
        ctrl->state.events_masked &= ~(1u << event);
        ctrl->state.events_pending[event] = 0;
    }
    return status;
}
