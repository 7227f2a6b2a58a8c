/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef EMPTY_H
#define EMPTY_H

#include <stddef.h>

int empty_addr_to_sgl(void *ctx, void *addr, size_t len, void *sgl, size_t max, int prot);
int empty_sgl_get(void *ctx, void *sgl, void *iov, size_t cnt, int flags);
void empty_sgl_put(void *ctx, void *sgl, void *iov, size_t cnt);

#endif /* EMPTY_H */
