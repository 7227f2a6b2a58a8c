/*
 * nvme: the guest's memory.
 *
 * Queues and PRP lists are copied from it piece by piece; a command's data are mapped,
 * moved by whoever executes it, and given back.
 *
 * A range consists of as many pieces as there are regions of memory in it. Mostly
 * that is one; but behind an IOMMU each page of the guest's is a region of its own. So
 * there is no limit to their number: arrays grow to what was needed once, and a
 * command of a kind that has come before allocates nothing.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "controller.h"

/* For the data of most commands. */
enum { ROOM_AT_FIRST = 8 };

/* Makes room for so many pieces. */
static bool
make_room(struct pieces *pieces, size_t room)
{
    dma_sg_t *sgl = realloc(pieces->sgl, room * dma_sg_size());
    struct iovec *iov;

    if (sgl == NULL) {
        return false;
    }
    pieces->sgl = sgl;
    iov = realloc(pieces->iov, 2 * room * sizeof(*iov));
    if (iov == NULL) {
        return false;
    }
    pieces->iov = iov;
    pieces->spare = iov + room;
    pieces->room = room;
    return true;
}

void
free_pieces(struct pieces *pieces)
{
    free(pieces->sgl);
    free(pieces->iov);
    *pieces = (struct pieces) { 0 };
}

/* Translates a range, and adds what it consists of. */
static bool
add_pieces(struct controller *ctrl, struct pieces *pieces, uint64_t address, size_t len, int prot)
{
    if (pieces->room == 0 && !make_room(pieces, ROOM_AT_FIRST)) {
        return false;
    }
    for (;;) {
        dma_sg_t *sgl = (dma_sg_t *)((char *)pieces->sgl + pieces->nr * dma_sg_size());
        int n = vfu_addr_to_sgl(ctrl->ctx, (vfu_dma_addr_t)(uintptr_t)address, len, sgl,
                                pieces->room - pieces->nr, prot);

        if (n > 0) {
            pieces->nr += n;
            return true;
        }
        /* It needs -n - 1 entries, and is given twice as many: so this is seldom. */
        if (n >= -1 || !make_room(pieces, pieces->nr + 2 * (size_t)(-n - 1))) {
            return false;
        }
    }
}

/* Makes a range accessible: ctrl->access. Unless it fails, put_access has to follow. */
bool
get_access(struct controller *ctrl, uint64_t address, size_t len, int prot)
{
    struct pieces *access = &ctrl->access;

    access->nr = 0;
    /* Memory that the client doesn't share as a file can't be had: this controller uses no messages. */
    return add_pieces(ctrl, access, address, len, prot)
           && vfu_sgl_get(ctrl->ctx, access->sgl, access->iov, access->nr, 0) == 0;
}

void
put_access(struct controller *ctrl)
{
    /* This also marks what was written as dirty, for live migration. */
    vfu_sgl_put(ctrl->ctx, ctrl->access.sgl, ctrl->access.iov, ctrl->access.nr);
}

/* Copies between the guest's memory and buf. False if not all of it can be accessed. */
bool
access_guest(struct controller *ctrl, uint64_t address, void *buf, size_t len, int prot)
{
    const struct pieces *access = &ctrl->access;
    uint8_t *bytes = buf;

    if (!get_access(ctrl, address, len, prot)) {
        return false;
    }
    for (size_t i = 0; i < access->nr; i++) {
        if (prot & PROT_WRITE) {
            memcpy(access->iov[i].iov_base, bytes, access->iov[i].iov_len);
        } else {
            memcpy(bytes, access->iov[i].iov_base, access->iov[i].iov_len);
        }
        bytes += access->iov[i].iov_len;
    }
    put_access(ctrl);
    return true;
}

/* Whether the guest has memory there that can be used in this way; if not, errno says why. */
bool
is_guest_memory(struct controller *ctrl, uint64_t address, size_t len, int prot)
{
    if (!get_access(ctrl, address, len, prot)) {
        return false;
    }
    put_access(ctrl);
    return true;
}

/* Translates a part of a command's data. */
static enum nvme_status
add_data(struct controller *ctrl, uint64_t address, size_t len, int prot)
{
    return add_pieces(ctrl, &ctrl->data, address, len, prot) ? NVME_SUCCESS
                                                             : NVME_DATA_TRANSFER_ERROR;
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
            enum nvme_status status = prps[i] % PAGE == 0 ? add_data(ctrl, prps[i], part, prot)
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
    status = add_data(ctrl, cmd->prp1, first, prot);
    if (status != NVME_SUCCESS || first == len) {
        return status;
    }
    if (len - first > PAGE) {
        return add_prp_list(ctrl, cmd->prp2, len - first, prot);
    }
    return cmd->prp2 % PAGE == 0 ? add_data(ctrl, cmd->prp2, len - first, prot)
                                 : NVME_INVALID_PRP_OFFSET;
}

/*
 * Makes the len bytes at a command's PRPs accessible: ctrl->data.iov. Unless it fails,
 * unmap_data has to follow.
 */
enum nvme_status
map_data(struct controller *ctrl, const struct nvme_command *cmd, size_t len, int prot)
{
    enum nvme_status status;

    ctrl->data.nr = 0;
    status = translate_prps(ctrl, cmd, len, prot);
    if (status == NVME_SUCCESS
        && vfu_sgl_get(ctrl->ctx, ctrl->data.sgl, ctrl->data.iov, ctrl->data.nr, 0) < 0) {
        status = NVME_DATA_TRANSFER_ERROR;
    }
    return status;
}

void
unmap_data(struct controller *ctrl)
{
    vfu_sgl_put(ctrl->ctx, ctrl->data.sgl, ctrl->data.iov, ctrl->data.nr);
}

void
copy_to_data(struct controller *ctrl, const uint8_t *from)
{
    for (size_t i = 0; i < ctrl->data.nr; i++) {
        memcpy(ctrl->data.iov[i].iov_base, from, ctrl->data.iov[i].iov_len);
        from += ctrl->data.iov[i].iov_len;
    }
}

void
copy_from_data(struct controller *ctrl, uint8_t *to)
{
    for (size_t i = 0; i < ctrl->data.nr; i++) {
        memcpy(to, ctrl->data.iov[i].iov_base, ctrl->data.iov[i].iov_len);
        to += ctrl->data.iov[i].iov_len;
    }
}
