/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <stdlib.h>
#include <unistd.h>
#include <vfio-user/libvfio-user-ext.h>

/* In a service that systemd has made the socket for. */
vfu_ctx_t *
make_context(void *device)
{
    enum { FIRST = 3 };
    const char *pid = getenv("LISTEN_PID");
    vfu_ctx_t *ctx;

    if (pid == NULL || atoi(pid) != getpid()) {
        errx(1, "started without a socket");
    }
    ctx = vfux_create_ctx_over_fd(FIRST, 0, device, VFU_DEV_TYPE_PCI);
    if (ctx == NULL) {
        err(1, "descriptor %d", FIRST);
    }
    return ctx;
}
