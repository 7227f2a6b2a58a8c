/*
 * Links this library and another one that is written in Rust, both static.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include <errno.h>
#include <stdio.h>

#include <vfio-user/libvfio-user.h>

int other_library(void);

int
main(void)
{
    if (vfu_create_ctx(VFU_TRANS_PIPE, "", 0, NULL, VFU_DEV_TYPE_PCI) != NULL
        || errno != ENOTSUP || other_library() != 42) {
        return 1;
    }
    puts("two libraries: fine");
    return 0;
}
