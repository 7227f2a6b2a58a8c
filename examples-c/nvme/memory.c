/*
 * nvme: the guest's memory.
 *
 * Queues and PRP lists are copied from it piece by piece; a command's data are mapped,
 * moved by whoever executes it, and given back.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "controller.h"

/* Copies between the guest's memory and buf. False if not all of it can be accessed. */
bool
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
bool
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
enum nvme_status
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

void
unmap_data(struct controller *ctrl)
{
    vfu_sgl_put(ctrl->ctx, ctrl->sgl, ctrl->iov, ctrl->nr_pieces);
}

void
copy_to_data(struct controller *ctrl, const uint8_t *from)
{
    for (size_t i = 0; i < ctrl->nr_pieces; i++) {
        memcpy(ctrl->iov[i].iov_base, from, ctrl->iov[i].iov_len);
        from += ctrl->iov[i].iov_len;
    }
}

void
copy_from_data(struct controller *ctrl, uint8_t *to)
{
    for (size_t i = 0; i < ctrl->nr_pieces; i++) {
        memcpy(to, ctrl->iov[i].iov_base, ctrl->iov[i].iov_len);
        to += ctrl->iov[i].iov_len;
    }
}
