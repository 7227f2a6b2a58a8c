/*
 * nvme: a small NVM Express controller with one namespace, which is a file or
 * memory of its own. Linux drives it as it drives any NVMe disk.
 *
 * Shows a device whose queues lie in the guest's memory, and what it takes to be fast
 * there: commands are fetched in batches, data are copied straight between the
 * namespace and the guest's memory, one interrupt tells of a batch. Shows, too, a
 * doorbell page that the client maps and the device polls (--poll-doorbells), so
 * that a request needs no message at all; a device that keeps apart what its guest
 * may do wrong; and its live migration with another process over the same file.
 *
 * The guest is not to be trusted, and its memory changes under our hands: what is in
 * it is copied once, then checked, then used. Everything runs on one thread. A
 * register write only changes registers; queues are worked on by the main loop, when
 * the write has been answered. A command is executed from beginning to end in one
 * go, so between two calls of the library nothing is in flight: no pointer into the
 * guest's memory is kept, and the device is quiesced whenever it is asked.
 *
 *     nvme [--file=FILE] [--size=SIZE] [--readonly] [--poll-doorbells] [--uuid=UUID]
 *          [--verbose] [--once] [--socket-path=]PATH
 *
 * From top to bottom: the guest's memory; queues; the namespace; I/O commands; admin
 * commands; working on the queues; registers; reset; migration; setting up and main
 * loop. nvme.h has the specification's part.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE /* memfd_create, preadv2, fallocate */
#include <ctype.h>
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <vfio-user/libvfio-user.h>

#include "nvme.h"

_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "structures are kept in the order of the guest");

enum {
    CONFIG_SPACE_SIZE = 4096,
    /* Vendor 0x1234 is nobody's; emulated devices have used it for long. */
    VENDOR_ID = 0x1234,
    DEVICE_ID = 0xd3a1,

    /* Commands that are fetched at a time. */
    BATCH = 32,
    /* Rounds over the queues before the main loop looks after the client. */
    ROUNDS = 1024,
    ROUND_WITH_WORK = 16, /* what one that found something counts for */

    PAGE = NVME_PAGE_SIZE,
    PRPS_IN_PAGE = PAGE / 8,
    MAX_TRANSFER = PAGE << NVME_MDTS,
    /* Parts of the guest's memory that one command's data may consist of, and one access. */
    MAX_PIECES = 2 * ((1 << NVME_MDTS) + 1),
    MAX_ACCESS_PIECES = 4,

    /* In kelvins. Nothing gets warm here. */
    TEMPERATURE = 310,
    WARNING_TEMPERATURE = 343,
    CRITICAL_TEMPERATURE = 353,
};

#define FIRMWARE "1.0     "

/* The blocks: either memory or a file. */
struct namespace {
    uint64_t nr_blocks;
    int fd;
    uint8_t *memory; /* NULL: it is a file */
    bool readonly;
    uint8_t uuid[16];
};

struct controller {
    vfu_ctx_t *ctx;
    struct namespace ns;
    struct nvme_state state;
    uint16_t nr_active; /* no submission queue from this number on exists */

    /* The doorbells. Polled, they lie in a file that the client maps. */
    uint32_t *doorbells;
    bool poll_doorbells;
    int bar0_fd;

    /* The data of the command in hand, between map_data and unmap_data. */
    dma_sg_t *sgl; /* MAX_PIECES entries, opaque and of a size known at run time */
    struct iovec iov[MAX_PIECES];
    size_t nr_pieces;
    dma_sg_t *access_sgl; /* MAX_ACCESS_PIECES entries */

    vfu_migr_state_t migration; /* as the library has it */
    struct nvme_state record;   /* the state on its way out or in */
    size_t moved;               /* bytes of it */
    bool damaged;               /* what came in can't be used */
    bool loaded;                /* and is not running yet */

    uint8_t power_on_config[CONFIG_SPACE_SIZE];
};

static size_t
min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/*
 * The guest's memory.
 */

/* Copies between the guest's memory and buf. False if not all of it can be accessed. */
static bool
access_guest(struct controller *ctrl, uint64_t address, void *buf, size_t len, int prot)
{
    struct iovec iov[MAX_ACCESS_PIECES];
    uint8_t *bytes = buf;
    int n = vfu_addr_to_sgl(ctrl->ctx, (vfu_dma_addr_t)(uintptr_t)address, len, ctrl->access_sgl,
                            MAX_ACCESS_PIECES, prot);

    /* Memory that the client doesn't share as a file can't be had: this controller uses no messages. */
    if (n <= 0 || vfu_sgl_get(ctrl->ctx, ctrl->access_sgl, iov, n, 0) < 0) {
        return false;
    }
    for (int i = 0; i < n; i++) {
        if (prot & PROT_WRITE) {
            memcpy(iov[i].iov_base, bytes, iov[i].iov_len);
        } else {
            memcpy(bytes, iov[i].iov_base, iov[i].iov_len);
        }
        bytes += iov[i].iov_len;
    }
    /* This also marks what was written as dirty, for live migration. */
    vfu_sgl_put(ctrl->ctx, ctrl->access_sgl, iov, n);
    return true;
}

/* Whether the guest has memory there that can be used in this way. */
static bool
is_guest_memory(struct controller *ctrl, uint64_t address, size_t len, int prot)
{
    struct iovec iov[MAX_ACCESS_PIECES];
    int n = vfu_addr_to_sgl(ctrl->ctx, (vfu_dma_addr_t)(uintptr_t)address, len, ctrl->access_sgl,
                            MAX_ACCESS_PIECES, prot);

    if (n <= 0 || vfu_sgl_get(ctrl->ctx, ctrl->access_sgl, iov, n, 0) < 0) {
        return false;
    }
    vfu_sgl_put(ctrl->ctx, ctrl->access_sgl, iov, n);
    return true;
}

/* Translates a part of a command's data: one piece, or more where regions of memory meet. */
static enum nvme_status
add_pieces(struct controller *ctrl, uint64_t address, size_t len, int prot)
{
    dma_sg_t *sgl = (dma_sg_t *)((char *)ctrl->sgl + ctrl->nr_pieces * dma_sg_size());
    int n = vfu_addr_to_sgl(ctrl->ctx, (vfu_dma_addr_t)(uintptr_t)address, len, sgl,
                            MAX_PIECES - ctrl->nr_pieces, prot);

    if (n < 0) {
        return NVME_DATA_TRANSFER_ERROR;
    }
    ctrl->nr_pieces += n;
    return NVME_SUCCESS;
}

/* Translates the pages of a PRP list, which may go on in further pages (4.3). */
static enum nvme_status
add_prp_list(struct controller *ctrl, uint64_t list, size_t len, int prot)
{
    uint64_t prps[PRPS_IN_PAGE];

    if (list % 8 != 0) {
        return NVME_INVALID_PRP_OFFSET;
    }
    while (len > 0) {
        size_t in_page = (PAGE - list % PAGE) / 8;
        size_t needed = (len + PAGE - 1) / PAGE;
        /* If that is not the last page of the list, its last entry says where the next one is. */
        size_t pages = needed > in_page ? in_page - 1 : needed;

        if (!access_guest(ctrl, list, prps, min(needed, in_page) * 8, PROT_READ)) {
            return NVME_DATA_TRANSFER_ERROR;
        }
        for (size_t i = 0; i < pages; i++) {
            size_t part = min(len, PAGE);
            enum nvme_status status = prps[i] % PAGE == 0 ? add_pieces(ctrl, prps[i], part, prot)
                                                          : NVME_INVALID_PRP_OFFSET;

            if (status != NVME_SUCCESS) {
                return status;
            }
            len -= part;
        }
        if (len > 0) {
            list = prps[in_page - 1];
            /* A list that has a page to itself gets us on: so this ends. */
            if (list % PAGE != 0) {
                return NVME_INVALID_PRP_OFFSET;
            }
        }
    }
    return NVME_SUCCESS;
}

static enum nvme_status
translate_prps(struct controller *ctrl, const struct nvme_command *cmd, size_t len, int prot)
{
    size_t first = min(len, PAGE - cmd->prp1 % PAGE);
    enum nvme_status status;

    if (cmd->prp1 % 4 != 0) {
        return NVME_INVALID_PRP_OFFSET;
    }
    status = add_pieces(ctrl, cmd->prp1, first, prot);
    if (status != NVME_SUCCESS || first == len) {
        return status;
    }
    if (len - first > PAGE) {
        return add_prp_list(ctrl, cmd->prp2, len - first, prot);
    }
    return cmd->prp2 % PAGE == 0 ? add_pieces(ctrl, cmd->prp2, len - first, prot)
                                 : NVME_INVALID_PRP_OFFSET;
}

/*
 * Makes the len bytes at a command's PRPs accessible: ctrl->iov. Unless it fails,
 * unmap_data has to follow.
 */
static enum nvme_status
map_data(struct controller *ctrl, const struct nvme_command *cmd, size_t len, int prot)
{
    enum nvme_status status;

    ctrl->nr_pieces = 0;
    status = translate_prps(ctrl, cmd, len, prot);
    if (status == NVME_SUCCESS
        && vfu_sgl_get(ctrl->ctx, ctrl->sgl, ctrl->iov, ctrl->nr_pieces, 0) < 0) {
        status = NVME_DATA_TRANSFER_ERROR;
    }
    return status;
}

static void
unmap_data(struct controller *ctrl)
{
    vfu_sgl_put(ctrl->ctx, ctrl->sgl, ctrl->iov, ctrl->nr_pieces);
}

static void
copy_to_data(struct controller *ctrl, const uint8_t *from)
{
    for (size_t i = 0; i < ctrl->nr_pieces; i++) {
        memcpy(ctrl->iov[i].iov_base, from, ctrl->iov[i].iov_len);
        from += ctrl->iov[i].iov_len;
    }
}

static void
copy_from_data(struct controller *ctrl, uint8_t *to)
{
    for (size_t i = 0; i < ctrl->nr_pieces; i++) {
        memcpy(to, ctrl->iov[i].iov_base, ctrl->iov[i].iov_len);
        to += ctrl->iov[i].iov_len;
    }
}

/*
 * Queues. While it runs, a controller looks at doorbells when it needs to know
 * something new: at a submission queue's when it has nothing to do, at a completion
 * queue's when that is full. Trapped ones it looks at as they are written.
 */

/* The controller can't go on: it stops, until the driver resets it. */
static void
fail(struct controller *ctrl, const char *reason)
{
    vfu_log(ctrl->ctx, LOG_INFO, "controller fatal status: %s", reason);
    ctrl->state.csts |= NVME_CSTS_CFS;
}

static void
raise_event(struct controller *ctrl, enum nvme_event_type type, enum nvme_event_info info)
{
    ctrl->state.events_pending[type] |= 1u << info;
}

static void
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

static void
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

static size_t
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
static void
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
    struct iovec iov;
    uint32_t last;

    if (vfu_addr_to_sgl(ctrl->ctx, (vfu_dma_addr_t)(uintptr_t)address, sizeof(entry),
                        ctrl->access_sgl, 1, PROT_WRITE) != 1
        || vfu_sgl_get(ctrl->ctx, ctrl->access_sgl, &iov, 1, 0) < 0
        || (uintptr_t)iov.iov_base % sizeof(last) != 0) {
        fail(ctrl, "a completion queue can't be written");
        return;
    }
    /* The phase makes the entry valid, so what holds it comes last, and in one piece. */
    memcpy(iov.iov_base, &entry, sizeof(entry) - sizeof(last));
    memcpy(&last, &entry.cid, sizeof(last));
    __atomic_store_n((uint32_t *)iov.iov_base + sizeof(entry) / sizeof(last) - 1, last,
                     __ATOMIC_RELEASE);
    vfu_sgl_put(ctrl->ctx, ctrl->access_sgl, &iov, 1);

    if (++cq->tail == cq->size) {
        cq->tail = 0;
        cq->phase ^= 1;
    }
}

static void
interrupt(struct controller *ctrl, unsigned cqid)
{
    const struct nvme_state_cq *cq = &ctrl->state.cqs[cqid];

    /* What can fail is that the client doesn't listen to this vector, or not often enough. */
    if (cq->interrupts) {
        (void)vfu_irq_trigger(ctrl->ctx, cq->vector);
    }
}

/* Puts a failed command in the Error Information log; returns what its completion says. */
static uint16_t
log_error(struct controller *ctrl, unsigned sqid, const struct nvme_command *cmd,
          enum nvme_status status)
{
    struct nvme_error_entry *errors = ctrl->state.errors;
    bool has_lba = sqid != 0 && cmd->opcode != NVME_IO_FLUSH && cmd->opcode != NVME_IO_DSM;
    uint16_t field = (uint16_t)(status << 1 | NVME_STATUS_MORE | NVME_STATUS_DNR);

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

/*
 * The namespace.
 */

/* Reads or writes the iovecs, which are used up on the way. */
static bool
access_file(struct namespace *ns, struct iovec *iov, size_t n, uint64_t offset, bool is_write,
            bool durable)
{
    while (n > 0) {
        ssize_t done = is_write ? pwritev2(ns->fd, iov, n, offset, durable ? RWF_DSYNC : 0)
                                : preadv(ns->fd, iov, n, offset);

        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return false; /* 0: somebody has cut the file short */
        }
        offset += done;
        while (n > 0 && (size_t)done >= iov->iov_len) {
            done -= iov->iov_len;
            iov++;
            n--;
        }
        if (n > 0) {
            iov->iov_base = (char *)iov->iov_base + done;
            iov->iov_len -= done;
        }
    }
    return true;
}

/* Moves the data of the command in hand. */
static enum nvme_status
access_namespace(struct controller *ctrl, uint64_t offset, bool is_write, bool durable)
{
    struct namespace *ns = &ctrl->ns;
    struct iovec iov[MAX_PIECES]; /* unmap_data needs those of ctrl */

    if (ns->memory != NULL) {
        if (is_write) {
            copy_from_data(ctrl, ns->memory + offset);
        } else {
            copy_to_data(ctrl, ns->memory + offset);
        }
        return NVME_SUCCESS;
    }
    memcpy(iov, ctrl->iov, ctrl->nr_pieces * sizeof(*iov));
    if (access_file(ns, iov, ctrl->nr_pieces, offset, is_write, durable)) {
        return NVME_SUCCESS;
    }
    ctrl->state.counters.media_errors++;
    return is_write ? NVME_WRITE_FAULT : NVME_UNRECOVERED_READ_ERROR;
}

/* Makes blocks zeroes: by a hole where the file system can, else by writing them. */
static enum nvme_status
zero_blocks(struct controller *ctrl, uint64_t slba, uint64_t nlb)
{
    static const uint8_t zeroes[64 * 1024];
    struct namespace *ns = &ctrl->ns;
    uint64_t offset = slba << NVME_LBA_SHIFT;
    uint64_t len = nlb << NVME_LBA_SHIFT;

    if (fallocate(ns->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len) == 0) {
        return NVME_SUCCESS;
    }
    while (len > 0) {
        struct iovec iov = { .iov_base = (void *)zeroes, .iov_len = min(len, sizeof(zeroes)) };
        size_t part = iov.iov_len;

        if (!access_file(ns, &iov, 1, offset, true, false)) {
            ctrl->state.counters.media_errors++;
            return NVME_WRITE_FAULT;
        }
        offset += part;
        len -= part;
    }
    return NVME_SUCCESS;
}

static enum nvme_status
flush(struct controller *ctrl)
{
    if (ctrl->ns.memory == NULL && !ctrl->ns.readonly && fdatasync(ctrl->ns.fd) < 0) {
        ctrl->state.counters.media_errors++;
        return NVME_WRITE_FAULT;
    }
    return NVME_SUCCESS;
}

/*
 * I/O commands.
 */

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

static enum nvme_status
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

/*
 * Admin commands: identify and logs.
 */

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
    for (size_t i = 0; i < ctrl->nr_pieces; i++) {
        uint8_t *to = ctrl->iov[i].iov_base;
        size_t part = min(ctrl->iov[i].iov_len, data_len);

        memcpy(to, bytes, part);
        memset(to + part, 0, ctrl->iov[i].iov_len - part);
        bytes += part;
        data_len -= part;
    }
    unmap_data(ctrl);
    return NVME_SUCCESS;
}

static void
format_uuid(const uint8_t uuid[16], char text[37])
{
    for (int i = 0; i < 16; i++) {
        text += sprintf(text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", uuid[i]);
    }
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
    char uuid[37];

    format_uuid(ctrl->ns.uuid, uuid);
    put_text(id.sn, sizeof(id.sn), uuid);
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

static enum nvme_status
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

static uint8_t
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

static enum nvme_status
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

/*
 * Admin commands: queues.
 */

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

static void
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

static void
count_active(struct controller *ctrl)
{
    ctrl->nr_active = NVME_NR_QUEUES;
    while (ctrl->nr_active > 0 && ctrl->state.sqs[ctrl->nr_active - 1].size == 0) {
        ctrl->nr_active--;
    }
}

static void
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

/*
 * Admin commands: features, events, abort.
 */

static void
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
static bool
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

static enum nvme_status
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

static enum nvme_status
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
static enum nvme_status
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
static enum nvme_status
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
static bool
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

static enum nvme_status
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

/*
 * Working on the queues.
 */

/* Stopped for migration, the controller does nothing by itself; registers can be accessed. */
static bool
is_stopped(const struct controller *ctrl)
{
    return ctrl->migration != VFU_MIGR_STATE_RUNNING && ctrl->migration != VFU_MIGR_STATE_PRE_COPY;
}

static bool
is_working(const struct controller *ctrl)
{
    return (ctrl->state.csts & (NVME_CSTS_RDY | NVME_CSTS_CFS | NVME_CSTS_SHST)) == NVME_CSTS_RDY
           && !is_stopped(ctrl);
}

static void
execute(struct controller *ctrl, unsigned sqid, const struct nvme_command *cmd)
{
    uint32_t result = 0;
    uint16_t field = 0;
    enum nvme_status status = sqid == 0 ? execute_admin(ctrl, cmd, &result)
                                        : execute_io(ctrl, cmd);

    if (status == NVME_NO_COMPLETION) {
        return;
    }
    if (status != NVME_SUCCESS) {
        field = log_error(ctrl, sqid, cmd, status);
    }
    complete(ctrl, sqid, cmd->cid, field, result);
}

/* Executes a batch of a queue's commands, as many as there is room for completions. */
static bool
process_sq(struct controller *ctrl, unsigned sqid)
{
    struct nvme_state_sq *sq = &ctrl->state.sqs[sqid];
    struct nvme_command commands[BATCH];
    size_t n;

    if (sq->head == sq->tail) {
        look_at_sq_doorbell(ctrl, sqid);
        if (sq->head == sq->tail) {
            return false;
        }
    }
    n = (sq->tail > sq->head ? sq->tail : sq->size) - sq->head;
    /* Admin commands one by one: they change queues, and may complete two commands. */
    n = min(n, sqid == 0 ? 1 : BATCH);
    n = min(n, room_in_cq(ctrl, sq->cqid, n));
    if (n == 0) {
        return false;
    }
    if (!access_guest(ctrl, sq->base + sq->head * sizeof(*commands), commands,
                      n * sizeof(*commands), PROT_READ)) {
        fail(ctrl, "a submission queue can't be read");
        return false;
    }
    for (size_t i = 0; i < n && is_working(ctrl); i++) {
        sq->head = sq->head + 1 == sq->size ? 0 : sq->head + 1;
        execute(ctrl, sqid, &commands[i]);
    }
    interrupt(ctrl, sq->cqid);
    return true;
}

/* One round over all queues. Returns whether there was something to do. */
static bool
process_queues(struct controller *ctrl)
{
    bool worked = deliver_events(ctrl);

    for (unsigned qid = 0; qid < ctrl->nr_active && is_working(ctrl); qid++) {
        if (ctrl->state.sqs[qid].size != 0) {
            worked |= process_sq(ctrl, qid);
        }
    }
    return worked;
}

/* The driver has asked for a shutdown (7.6.2): all it has written has to be safe. */
static void
finish_shutdown(struct controller *ctrl)
{
    if ((ctrl->state.csts & NVME_CSTS_SHST) == NVME_CSTS_SHST_OCCURRING && !is_stopped(ctrl)) {
        if (flush(ctrl) != NVME_SUCCESS) {
            fail(ctrl, "what was written can't be made durable");
        }
        ctrl->state.csts = (ctrl->state.csts & ~NVME_CSTS_SHST) | NVME_CSTS_SHST_COMPLETE;
    }
}

/*
 * Works for a while. Returns whether there may be more to do without the client
 * sending a message.
 */
static bool
work(struct controller *ctrl)
{
    finish_shutdown(ctrl);
    for (unsigned rounds = 0; rounds < ROUNDS; rounds++) {
        if (!is_working(ctrl)) {
            return false;
        }
        if (process_queues(ctrl)) {
            rounds += ROUND_WITH_WORK - 1;
        } else if (!ctrl->poll_doorbells) {
            return false;
        }
    }
    return true;
}

/*
 * Registers.
 */

/* All that a controller level reset takes back: everything but AQA, ASQ and ACQ (7.3.2). */
static void
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

static uint64_t
capabilities(void)
{
    return (NVME_MAX_ENTRIES - 1) | NVME_CAP_CQR | NVME_CAP_TO(20) | NVME_CAP_CSS_NVM;
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
static ssize_t
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
static ssize_t
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

/*
 * Reset.
 */

/*
 * The controller as after power-on: registers and configuration space, of which the
 * library forgets only what is its own. Counters and the error log are for life.
 */
static void
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
static int
on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct controller *ctrl = vfu_get_private(ctx);

    power_on(ctrl);
    if (type == VFU_RESET_DEVICE) {
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
static void
on_dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    vfu_log(ctx, LOG_DEBUG, "guest memory at %p goes", info->iova.iov_base);
}

/*
 * Migration: docs/live-migration.md has the rules. There is nothing to send while the
 * controller runs, and one record when it stands still. What is in the queues and was
 * not begun is in the guest's memory, and waits there for whoever goes on.
 *
 * What was written is in the file, and whoever opens the same file on this machine
 * sees it. (With a file system over the network, STOP would be the place for fdatasync.)
 */

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
static int
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

static ssize_t
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

static ssize_t
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

/*
 * Setting up.
 */

static void
add_capabilities(struct controller *ctrl)
{
    struct pmcap pm = {
        .hdr.id = PCI_CAP_ID_PM,
        .pc.vs = 3, /* version 1.2 of the power management specification */
        .pmcs = { { .raw = PCI_PM_CTRL_NO_SOFT_RESET } }, /* from D3hot to D0 */
    };
    struct pxcap px = {
        .hdr.id = PCI_CAP_ID_EXP,
        .pxcaps = { .ver = 2, .dpt = PCI_EXP_TYPE_ENDPOINT },
        .pxdcap = { .rer = 1, .flrc = 1 }, /* role-based error reporting; FLR */
    };
    struct msixcap msix = {
        .hdr.id = PCI_CAP_ID_MSIX,
        .mxc.ts = NVME_NR_VECTORS - 1, /* counted from 0 */
        .mtab = { .tbir = NVME_MSIX_BAR, .to = 0 },
        .mpba = { .pbir = NVME_MSIX_BAR, .pbao = NVME_MSIX_PBA >> 3 },
    };

    if (vfu_pci_add_capability(ctrl->ctx, 0, 0, &pm) < 0
        || vfu_pci_add_capability(ctrl->ctx, 0, 0, &px) < 0
        || vfu_pci_add_capability(ctrl->ctx, 0, 0, &msix) < 0) {
        err(EXIT_FAILURE, "vfu_pci_add_capability");
    }
}

/* Memory in a file. Others get to see it, but it keeps its size: so it can be touched without fear. */
static int
create_memory_file(const char *name, uint64_t size)
{
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, size) < 0
        || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        err(EXIT_FAILURE, "memfd_create");
    }
    return fd;
}

static void *
map_file(int fd, uint64_t offset, uint64_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

    if (memory == MAP_FAILED) {
        err(EXIT_FAILURE, "mmap");
    }
    return memory;
}

static void
set_up_regions(struct controller *ctrl)
{
    struct iovec mappable = { .iov_base = (void *)NVME_DOORBELLS, .iov_len = PAGE };
    int bar_flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;

    ctrl->bar0_fd = create_memory_file("nvme BAR 0", NVME_BAR0_SIZE);
    ctrl->doorbells = map_file(ctrl->bar0_fd, NVME_DOORBELLS, PAGE);
    /* Only what has a descriptor can be mapped; without one, every doorbell is a message. */
    if (vfu_setup_region(ctrl->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, NVME_BAR0_SIZE, bar0_access,
                         bar_flags | VFU_REGION_FLAG_64_BITS,
                         ctrl->poll_doorbells ? &mappable : NULL, ctrl->poll_doorbells ? 1 : 0,
                         ctrl->poll_doorbells ? ctrl->bar0_fd : -1, 0) < 0
        || vfu_setup_region(ctrl->ctx, NVME_MSIX_BAR, NVME_MSIX_SIZE, msix_access, bar_flags, NULL,
                            0, -1, 0) < 0) {
        err(EXIT_FAILURE, "vfu_setup_region");
    }
}

static void
set_up_callbacks(struct controller *ctrl)
{
    static const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS,
        .transition = on_transition,
        .read_data = on_read_data,
        .write_data = on_write_data,
    };

    /* No quiesce callback: see the top. */
    if (vfu_setup_device_nr_irqs(ctrl->ctx, VFU_DEV_MSIX_IRQ, NVME_NR_VECTORS) < 0
        || vfu_setup_device_dma(ctrl->ctx, LIBVFIO_USER_MAX_DMA_REGIONS, NULL,
                                on_dma_unregister) < 0
        || vfu_setup_device_reset_cb(ctrl->ctx, on_reset) < 0
        || vfu_setup_device_migration_callbacks(ctrl->ctx, &migration) < 0) {
        err(EXIT_FAILURE, "callbacks");
    }
    ctrl->migration = VFU_MIGR_STATE_RUNNING;
}

static void
describe_device(struct controller *ctrl)
{
    if (vfu_pci_init(ctrl->ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) < 0) {
        err(EXIT_FAILURE, "vfu_pci_init");
    }
    vfu_pci_set_id(ctrl->ctx, VENDOR_ID, DEVICE_ID, 0, 0);
    vfu_pci_set_class(ctrl->ctx, NVME_BASE_CLASS, NVME_SUB_CLASS, NVME_PROG_IF);
    add_capabilities(ctrl);
    set_up_regions(ctrl);
    set_up_callbacks(ctrl);
    if (vfu_realize_ctx(ctrl->ctx) < 0) {
        err(EXIT_FAILURE, "vfu_realize_ctx");
    }
    memcpy(ctrl->power_on_config, vfu_pci_get_config_space(ctrl->ctx), CONFIG_SPACE_SIZE);

    ctrl->state.magic = NVME_STATE_MAGIC;
    ctrl->state.version = NVME_STATE_VERSION;
    ctrl->state.length = sizeof(ctrl->state);
    memcpy(ctrl->state.uuid, ctrl->ns.uuid, sizeof(ctrl->state.uuid));
    ctrl->state.nsze = ctrl->ns.nr_blocks;
    ctrl->state.nr_queues = NVME_NR_QUEUES;
    ctrl->state.nr_vectors = NVME_NR_VECTORS;
    power_on(ctrl);
}

/* An id for the namespace from what it lies in: so two processes over one file agree. */
static void
make_uuid(struct namespace *ns, const struct stat *st)
{
    uint64_t parts[] = { st->st_dev, st->st_ino };

    memcpy(ns->uuid, parts, sizeof(ns->uuid));
    ns->uuid[6] = 0x80 | (ns->uuid[6] & 0x0f); /* version 8: of our own making */
    ns->uuid[8] = 0x80 | (ns->uuid[8] & 0x3f);
}

/* Opens the namespace; size 0: as large as the file. */
static void
open_namespace(struct namespace *ns, const char *path, uint64_t size, bool has_uuid)
{
    struct stat st;

    if (path == NULL) {
        size &= ~(uint64_t)(PAGE - 1);
        ns->fd = create_memory_file("nvme namespace", size);
        ns->memory = map_file(ns->fd, 0, size);
        /* Where the kernel has huge pages for it, reading here and there is much faster. */
        madvise(ns->memory, size, MADV_HUGEPAGE);
    } else {
        int create = size != 0 && !ns->readonly ? O_CREAT : 0;

        ns->fd = open(path, (ns->readonly ? O_RDONLY : O_RDWR) | create | O_CLOEXEC, 0666);
        if (ns->fd < 0) {
            err(EXIT_FAILURE, "%s", path);
        }
        off_t present = lseek(ns->fd, 0, SEEK_END); /* of block devices, too */
        if (present < 0) {
            err(EXIT_FAILURE, "%s", path);
        }
        if (size == 0) {
            size = present;
        } else if (size > (uint64_t)present && (ns->readonly || ftruncate(ns->fd, size) < 0)) {
            err(EXIT_FAILURE, "%s is smaller than %llu bytes", path, (unsigned long long)size);
        }
    }
    ns->nr_blocks = size >> NVME_LBA_SHIFT;
    if (ns->nr_blocks == 0) {
        errx(EXIT_FAILURE, "a namespace without blocks");
    }
    if (!has_uuid) {
        if (fstat(ns->fd, &st) < 0) {
            err(EXIT_FAILURE, "fstat");
        }
        make_uuid(ns, &st);
    }
}

/*
 * The main loop.
 */

/* Handles what made the context's descriptor readable. Returns false when a client has left. */
static bool
handle_client(struct controller *ctrl, bool *attached)
{
    if (!*attached) {
        if (vfu_attach_ctx(ctrl->ctx) == 0) {
            *attached = true;
        } else if (errno != EAGAIN && errno != EINTR) {
            warn("vfu_attach_ctx");
        }
        return true;
    }
    if (vfu_run_ctx(ctrl->ctx) >= 0 || errno == EINTR || errno == EAGAIN) {
        return true;
    }
    if (errno != ENOTCONN) {
        err(EXIT_FAILURE, "vfu_run_ctx");
    }
    *attached = false;
    return false;
}

/* Serves one client after the other, until a signal comes or, with once, one has left. */
static void
serve(struct controller *ctrl, int signal_fd, bool once)
{
    bool attached = false;

    for (;;) {
        struct pollfd fds[] = {
            { .fd = signal_fd, .events = POLLIN },
            { .fd = vfu_get_poll_fd(ctrl->ctx), .events = POLLIN },
        };

        /* With work at hand, or doorbells to poll, look what the client wants but don't wait for it. */
        if (poll(fds, 2, work(ctrl) ? 0 : -1) < 0) {
            if (errno != EINTR) {
                err(EXIT_FAILURE, "poll");
            }
            continue;
        }
        if (fds[0].revents != 0) {
            return;
        }
        if (fds[1].revents != 0 && !handle_client(ctrl, &attached) && once) {
            return;
        }
    }
}

/* A descriptor that becomes readable when the program is to end. */
static int
open_signal_fd(void)
{
    sigset_t signals;
    int fd;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    fd = signalfd(-1, &signals, SFD_CLOEXEC);
    if (fd < 0) {
        err(EXIT_FAILURE, "signalfd");
    }
    return fd;
}

static void
on_log(vfu_ctx_t *ctx, int level, const char *message)
{
    (void)ctx;
    fprintf(stderr, "nvme[%d]: %s\n", level, message);
}

/* Bytes, or with a letter behind it KiB, MiB, GiB, TiB. Returns 0 for what makes no sense. */
static uint64_t
parse_size(const char *text)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long size = strtoull(text, &end, 0);
    const char *unit = *end != '\0' ? strchr(units, toupper((unsigned char)*end)) : NULL;
    unsigned shift = unit != NULL ? 10 * (unit - units + 1) : 0;

    if (!isdigit((unsigned char)*text) || errno != 0 || end[unit != NULL] != '\0'
        || size > (uint64_t)INT64_MAX >> shift) {
        return 0;
    }
    return size << shift;
}

static bool
parse_uuid(const char *text, uint8_t uuid[16])
{
    int end = 0;

    for (int i = 0; i < 16; i++) {
        text += *text == '-';
        if (sscanf(text, "%2hhx%n", &uuid[i], &end) != 1 || end != 2) {
            return false;
        }
        text += end;
    }
    return *text == '\0';
}

static void
usage(FILE *out)
{
    fputs("Usage: nvme [OPTION]... [--socket-path=]PATH\n"
          "Serve an NVMe disk at the UNIX socket PATH.\n"
          "\n"
          "      --socket-path=PATH  where to listen; must not exist\n"
          "      --file=FILE         what the disk holds; without it, memory\n"
          "      --size=SIZE         its size, with K, M, G or T; a FILE is made, or made\n"
          "                          longer, for it. Without it, that of FILE\n"
          "      --readonly          refuse to write\n"
          "      --poll-doorbells    let the client map the doorbells, and poll them\n"
          "      --uuid=UUID         of the namespace; else one is made from FILE's inode\n"
          "      --once              leave when the first client has left\n"
          "  -v, --verbose           log what the library does\n"
          "  -h, --help              show this help\n", out);
}

int
main(int argc, char *argv[])
{
    static const struct option options[] = {
        { "socket-path", required_argument, NULL, 's' },
        { "file", required_argument, NULL, 'f' },
        { "size", required_argument, NULL, 'z' },
        { "readonly", no_argument, NULL, 'r' },
        { "poll-doorbells", no_argument, NULL, 'p' },
        { "uuid", required_argument, NULL, 'u' },
        { "once", no_argument, NULL, 'o' },
        { "verbose", no_argument, NULL, 'v' },
        { "help", no_argument, NULL, 'h' },
        { NULL, 0, NULL, 0 },
    };
    static struct controller controller;
    struct controller *ctrl = &controller;
    const char *path = NULL;
    const char *file = NULL;
    uint64_t size = 0;
    bool has_uuid = false;
    bool once = false;
    bool verbose = false;
    int option;

    while ((option = getopt_long(argc, argv, "vh", options, NULL)) != -1) {
        switch (option) {
        case 's':
            path = optarg;
            break;
        case 'f':
            file = optarg;
            break;
        case 'z':
            size = parse_size(optarg);
            if (size == 0) {
                errx(EXIT_FAILURE, "not a size: %s", optarg);
            }
            break;
        case 'r':
            ctrl->ns.readonly = true;
            break;
        case 'p':
            ctrl->poll_doorbells = true;
            break;
        case 'u':
            has_uuid = true;
            if (!parse_uuid(optarg, ctrl->ns.uuid)) {
                errx(EXIT_FAILURE, "not a UUID: %s", optarg);
            }
            break;
        case 'o':
            once = true;
            break;
        case 'v':
            verbose = true;
            break;
        case 'h':
            usage(stdout);
            return EXIT_SUCCESS;
        default:
            usage(stderr);
            return EXIT_FAILURE;
        }
    }
    if (path == NULL && optind < argc) {
        path = argv[optind++];
    }
    if (path == NULL || optind != argc || (file == NULL && size == 0)) {
        usage(stderr);
        return EXIT_FAILURE;
    }

    int signal_fd = open_signal_fd();

    open_namespace(&ctrl->ns, file, size, has_uuid);
    ctrl->sgl = calloc(MAX_PIECES, dma_sg_size());
    ctrl->access_sgl = calloc(MAX_ACCESS_PIECES, dma_sg_size());
    ctrl->ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, ctrl,
                               VFU_DEV_TYPE_PCI);
    if (ctrl->ctx == NULL || ctrl->sgl == NULL || ctrl->access_sgl == NULL) {
        err(EXIT_FAILURE, "vfu_create_ctx: %s", path);
    }
    vfu_setup_log(ctrl->ctx, on_log, verbose ? LOG_DEBUG : LOG_ERR);

    describe_device(ctrl);
    serve(ctrl, signal_fd, once);

    /* The context uses the doorbells' file, so it goes first. */
    vfu_destroy_ctx(ctrl->ctx);
    munmap(ctrl->doorbells, PAGE);
    close(ctrl->bar0_fd);
    if (ctrl->ns.memory != NULL) {
        munmap(ctrl->ns.memory, ctrl->ns.nr_blocks << NVME_LBA_SHIFT);
    }
    close(ctrl->ns.fd);
    close(signal_fd);
    free(ctrl->access_sgl);
    free(ctrl->sgl);
    return EXIT_SUCCESS;
}
