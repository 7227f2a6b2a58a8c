/* SPDX-License-Identifier: BSD-3-Clause */

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vfio-user/libvfio-user.h>

/* Translates a buffer of the guest that may lie in several regions. Returns the number of entries, or -1. */
int
translate(vfu_ctx_t *ctx, uint64_t iova, size_t len, dma_sg_t **sgl)
{
    vfu_dma_addr_t addr = (vfu_dma_addr_t)(uintptr_t)iova;
    size_t room = 1;

    for (;;) {
        int n;

        *sgl = calloc(room, dma_sg_size());
        if (*sgl == NULL) {
            return -1;
        }
        n = vfu_addr_to_sgl(ctx, addr, len, *sgl, room, PROT_READ);
        if (n >= 0) {
            return n;
        }
        free(*sgl);
        if (n == -1) {
            return -1;              /* ENOENT, EACCES: the guest's mistake */
        }
        room = -n - 1;              /* so many are needed */
    }
}
