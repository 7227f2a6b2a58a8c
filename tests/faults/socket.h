/*
 * The sockets of the fault tests' client: nothing here waits for what it writes,
 * and a server that has gone is no failure.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef SOCKET_H
#define SOCKET_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "../c/check.h"

extern char socket_path[];

static inline int
socket_connect(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    strncpy(address.sun_path, socket_path, sizeof(address.sun_path) - 1);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

union socket_control {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(8 * sizeof(int))];
};

/* With one descriptor if it is not -1. */
static inline ssize_t
socket_send(int fd, const void *bytes, size_t size, int pass)
{
    struct iovec iov = { (void *)bytes, size };
    union socket_control control = { .bytes = { 0 } };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (pass != -1) {
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(sizeof(int));
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &pass, sizeof(int));
    }
    return sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* The last descriptor that comes is put to *passed if there is none yet; all
 * others are closed. */
static inline ssize_t
socket_recv(int fd, void *bytes, size_t room, int flags, int *passed)
{
    struct iovec iov = { bytes, room };
    union socket_control control;
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                          .msg_controllen = sizeof(control.bytes) };
    ssize_t got = recvmsg(fd, &msg, flags | MSG_CMSG_CLOEXEC);

    for (struct cmsghdr *c = got < 0 ? NULL : CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c)) {
        for (size_t i = 0; i < (c->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
            int came;
            memcpy(&came, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (*passed == -1) {
                *passed = came;
            } else {
                close(came);
            }
        }
    }
    return got;
}

/* All of it, or false if the peer has gone. */
static inline bool
socket_read(int fd, void *bytes, size_t size)
{
    for (char *at = bytes; size > 0;) {
        ssize_t got = recv(fd, at, size, 0);
        if (got <= 0) {
            return false;
        }
        at += got;
        size -= got;
    }
    return true;
}

static inline bool
socket_send_all(int fd, const void *bytes, size_t size)
{
    for (const char *at = bytes; size > 0;) {
        ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
        if (sent <= 0) {
            return false;
        }
        at += sent;
        size -= sent;
    }
    return true;
}

#endif /* SOCKET_H */
