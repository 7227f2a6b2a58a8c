/*
 * A client for the C tests: speaks the protocol by hand over a socket. It shares
 * nothing with the library but the structures of the public header.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef CLIENT_H
#define CLIENT_H

#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <vfio-user/libvfio-user.h>

#include "check.h"

/* A fresh path for a socket; the folder goes with remove_socket_folder(). */
static char socket_folder[] = "/tmp/libvfio-user-test-XXXXXX";
static char socket_path[sizeof(socket_folder) + 8];

static inline void
make_socket_folder(void)
{
    CHECK(mkdtemp(socket_folder) != NULL);
    snprintf(socket_path, sizeof(socket_path), "%s/s", socket_folder);
}

static inline void
remove_socket_folder(void)
{
    CHECK_EQ(rmdir(socket_folder), 0); /* empty: the library removed its socket */
}

/* Whether the kernel has asynchronous I/O, without which the library takes no eventfds
 * that block. QEMU's user mode has none. */
static inline bool
has_aio(void)
{
    unsigned long context = 0;

    if (syscall(SYS_io_setup, 1, &context) != 0) {
        CHECK_EQ(errno, ENOSYS);
        return false;
    }
    CHECK_EQ(syscall(SYS_io_destroy, context), 0);
    return true;
}

static inline int
client_connect(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    strncpy(address.sun_path, socket_path, sizeof(address.sun_path) - 1);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

/* Header and payload in one send, with one descriptor if it is not -1. */
static inline void
client_send_flags(int fd, uint16_t id, uint16_t cmd, uint32_t flags, const void *payload, size_t size, int pass)
{
    struct vfio_user_header header = {
        .msg_id = id, .cmd = cmd, .msg_size = sizeof(header) + size, .flags = flags };
    struct iovec iov[] = { { &header, sizeof(header) }, { (void *)payload, size } };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = { .msg_iov = iov, .msg_iovlen = 2 };

    if (pass != -1) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = control.bytes;
        msg.msg_controllen = sizeof(control.bytes);
        CMSG_FIRSTHDR(&msg)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&msg)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&msg)->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&msg)), &pass, sizeof(int));
    }
    CHECK_EQ(sendmsg(fd, &msg, MSG_NOSIGNAL), (ssize_t)(sizeof(header) + size));
}

static inline void
client_send(int fd, uint16_t id, uint16_t cmd, const void *payload, size_t size)
{
    client_send_flags(fd, id, cmd, VFIO_USER_F_TYPE_COMMAND, payload, size, -1);
}

static inline void
client_read(int fd, void *data, size_t size)
{
    char *at = data;

    while (size > 0) {
        ssize_t got = recv(fd, at, size, 0);
        CHECK(got > 0);
        at += got;
        size -= got;
    }
}

/* Receives a message; returns the size of its payload. */
static inline size_t
client_recv(int fd, struct vfio_user_header *header, void *payload, size_t room)
{
    client_read(fd, header, sizeof(*header));
    CHECK(header->msg_size >= sizeof(*header) && header->msg_size - sizeof(*header) <= room);
    client_read(fd, payload, header->msg_size - sizeof(*header));
    return header->msg_size - sizeof(*header);
}

/* Receives the successful reply to a command, with a payload of this size. */
static inline void
client_reply(int fd, uint16_t id, uint16_t cmd, void *payload, size_t size)
{
    struct vfio_user_header header;

    CHECK_EQ(client_recv(fd, &header, payload, size), size);
    CHECK_EQ(header.msg_id, id);
    CHECK_EQ(header.cmd, cmd);
    CHECK_EQ(header.flags, VFIO_USER_F_TYPE_REPLY);
    CHECK_EQ(header.error_no, 0);
}

static inline void
client_send_version(int fd)
{
    struct vfio_user_version version = { .major = 0, .minor = 2 };

    client_send(fd, 1, VFIO_USER_VERSION, &version, sizeof(version));
}

static inline void
client_recv_version(int fd)
{
    struct vfio_user_header header;
    char payload[512];

    CHECK(client_recv(fd, &header, payload, sizeof(payload)) > 4);
    CHECK_EQ(header.flags, VFIO_USER_F_TYPE_REPLY);
}

/* The same, for a client that offers to be asked on a second socket. */
static inline void
client_send_twin_version(int fd)
{
    static const char text[] = "{\"capabilities\":{\"max_msg_fds\":1,\"twin_socket\":{\"supported\":true}}}";
    char payload[4 + sizeof(text)] = { 0, 0, 2, 0 };

    memcpy(payload + 4, text, sizeof(text));
    client_send(fd, 1, VFIO_USER_VERSION, payload, sizeof(payload));
}

/* Returns the second socket. */
static inline int
client_recv_twin_version(int fd)
{
    struct vfio_user_header header;
    char payload[512];
    struct iovec iov = { &header, sizeof(header) };
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                          .msg_controllen = sizeof(control.bytes) };
    int twin;

    CHECK_EQ(recvmsg(fd, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC), (ssize_t)sizeof(header));
    CHECK_EQ(header.flags, VFIO_USER_F_TYPE_REPLY);
    CHECK(header.msg_size - sizeof(header) <= sizeof(payload));
    client_read(fd, payload, header.msg_size - sizeof(header));
    CHECK_EQ(msg.msg_controllen, sizeof(control.bytes));
    memcpy(&twin, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
    return twin;
}

struct region_message {
    struct vfio_user_region_access access;
    char data[64];
};

static inline void
client_send_region_read(int fd, uint16_t id, uint32_t region, uint64_t offset, uint32_t count)
{
    struct vfio_user_region_access access = { .offset = offset, .region = region, .count = count };

    client_send(fd, id, VFIO_USER_REGION_READ, &access, sizeof(access));
}

static inline void
client_send_region_write(int fd, uint16_t id, uint32_t flags, uint32_t region, uint64_t offset,
                         const void *data, uint32_t count)
{
    struct region_message message = { .access = { .offset = offset, .region = region, .count = count } };

    CHECK(count <= sizeof(message.data));
    memcpy(message.data, data, count);
    client_send_flags(fd, id, VFIO_USER_REGION_WRITE, flags, &message, sizeof(message.access) + count, -1);
}

#endif /* CLIENT_H */
