/* SPDX-License-Identifier: BSD-3-Clause */

#include <err.h>
#include <sys/epoll.h>
#include <vfio-user/libvfio-user.h>

/* Adds a context to the descriptors that an epoll waits for. Do so again after vfu_attach_ctx(). */
void
watch(int epoll, vfu_ctx_t *ctx)
{
    struct epoll_event event = { .events = EPOLLIN, .data.ptr = ctx };
    int fd = vfu_get_poll_fd(ctx);

    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        err(1, "cannot wait for the client");
    }
}
