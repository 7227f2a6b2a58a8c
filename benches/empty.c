/*
 * Functions that do nothing, in a library of their own, so that nothing can be
 * known of them where they are called: the floor of a call into a library.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "empty.h"

int
empty_addr_to_sgl(void *ctx, void *addr, size_t len, void *sgl, size_t max, int prot)
{
    (void)ctx, (void)addr, (void)len, (void)sgl, (void)max, (void)prot;
    return 1;
}

int
empty_sgl_get(void *ctx, void *sgl, void *iov, size_t cnt, int flags)
{
    (void)ctx, (void)sgl, (void)iov, (void)cnt, (void)flags;
    return 0;
}

void
empty_sgl_put(void *ctx, void *sgl, void *iov, size_t cnt)
{
    (void)ctx, (void)sgl, (void)iov, (void)cnt;
}
