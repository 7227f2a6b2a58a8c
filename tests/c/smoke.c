/*
 * A device from its creation to its end, with a client that speaks the protocol
 * by hand: negotiates, reads and writes a region, leaves. Uses what a device
 * program has, the public header and the library.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <vfio-user/libvfio-user.h>

#include "check.h"

enum { BAR0_SIZE = 0x1000, REGISTER = 0x10 };

struct device {
    uint32_t value; /* register at REGISTER of BAR 0 */
    int resets;
};

static char folder[] = "/tmp/libvfio-user-smoke-XXXXXX";
static char path[sizeof(folder) + sizeof("/socket")];

static ssize_t
bar0_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *device = vfu_get_private(ctx);

    if (offset != REGISTER || count != sizeof(device->value)) {
        errno = ENXIO;
        return -1;
    }
    if (is_write) {
        memcpy(&device->value, buf, count);
    } else {
        memcpy(buf, &device->value, count);
    }
    return count;
}

static int
on_reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    struct device *device = vfu_get_private(ctx);

    CHECK_EQ(type, VFU_RESET_LOST_CONN);
    device->resets++;
    return 0;
}

static vfu_ctx_t *
create_device(struct device *device, int flags)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, flags, device, VFU_DEV_TYPE_PCI);

    CHECK(ctx != NULL);
    CHECK(vfu_get_private(ctx) == device);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0), 0);
    vfu_pci_set_id(ctx, 0x1234, 0x5678, 0, 0);
    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR0_SIZE, bar0_access,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0),
             0);
    CHECK_EQ(vfu_setup_device_reset_cb(ctx, on_reset), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    return ctx;
}

/*
 * The client. It waits where it reads, so it runs in a thread of its own beside
 * a blocking context.
 */

static int
connect_client(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(fd >= 0);
    strcpy(address.sun_path, path);
    CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void
send_command(int fd, uint16_t id, uint16_t command, const void *payload, size_t size)
{
    uint8_t message[256];
    struct vfio_user_header header = {
        .msg_id = id,
        .cmd = command,
        .msg_size = sizeof(header) + size,
        .flags = VFIO_USER_F_TYPE_COMMAND,
    };

    CHECK(sizeof(header) + size <= sizeof(message));
    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), payload, size);
    CHECK_EQ(send(fd, message, sizeof(header) + size, 0), sizeof(header) + size);
}

/* Receives a reply; returns the size of its payload, or minus the errno it carries. */
static ssize_t
receive_reply(int fd, uint16_t id, uint16_t command, void *payload, size_t room)
{
    struct vfio_user_header header;

    CHECK_EQ(recv(fd, &header, sizeof(header), MSG_WAITALL), sizeof(header));
    CHECK_EQ(header.msg_id, id);
    CHECK_EQ(header.cmd, command);
    CHECK_EQ(header.flags & VFIO_USER_F_TYPE_MASK, VFIO_USER_F_TYPE_REPLY);
    CHECK(header.msg_size >= sizeof(header));

    size_t size = header.msg_size - sizeof(header);
    CHECK(size <= room);
    if (size > 0) {
        CHECK_EQ(recv(fd, payload, size, MSG_WAITALL), size);
    }
    return header.flags & VFIO_USER_F_ERROR ? -(ssize_t)header.error_no : (ssize_t)size;
}

static void
negotiate(int fd)
{
    static const struct {
        struct vfio_user_version version;
        char json[sizeof("{\"capabilities\":{\"max_msg_fds\":8}}")];
    } __attribute__((packed)) request = {
        .version = { .major = LIB_VFIO_USER_MAJOR, .minor = LIB_VFIO_USER_MINOR },
        .json = "{\"capabilities\":{\"max_msg_fds\":8}}",
    };
    uint8_t reply[512];
    struct vfio_user_version version;

    send_command(fd, 1, VFIO_USER_VERSION, &request, sizeof(request));
    ssize_t size = receive_reply(fd, 1, VFIO_USER_VERSION, reply, sizeof(reply));
    CHECK(size > (ssize_t)sizeof(version));
    memcpy(&version, reply, sizeof(version));
    CHECK_EQ(version.major, LIB_VFIO_USER_MAJOR);
    CHECK_EQ(version.minor, LIB_VFIO_USER_MINOR);
    CHECK_EQ(reply[size - 1], '\0');
    CHECK(strstr((char *)reply + sizeof(version), "\"capabilities\"") != NULL);
}

struct access {
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    uint32_t value;
} __attribute__((packed));

static ssize_t
read_register(int fd, uint16_t id, uint64_t offset, uint32_t *value)
{
    struct access access = { offset, VFU_PCI_DEV_BAR0_REGION_IDX, sizeof(*value), 0 };

    send_command(fd, id, VFIO_USER_REGION_READ, &access, offsetof(struct access, value));
    ssize_t size = receive_reply(fd, id, VFIO_USER_REGION_READ, &access, sizeof(access));
    if (size >= 0) {
        CHECK_EQ(access.offset, offset);
        CHECK_EQ(access.region, VFU_PCI_DEV_BAR0_REGION_IDX);
        CHECK_EQ(access.count, sizeof(*value));
        *value = access.value;
    }
    return size;
}

static ssize_t
write_register(int fd, uint16_t id, uint64_t offset, uint32_t value)
{
    struct access access = { offset, VFU_PCI_DEV_BAR0_REGION_IDX, sizeof(value), value };

    send_command(fd, id, VFIO_USER_REGION_WRITE, &access, sizeof(access));
    return receive_reply(fd, id, VFIO_USER_REGION_WRITE, &access, sizeof(access));
}

static void *
client(void *unused)
{
    int fd = connect_client();
    uint32_t value = 0;

    (void)unused;
    negotiate(fd);

    CHECK_EQ(read_register(fd, 2, REGISTER, &value), sizeof(struct access));
    CHECK_EQ(value, 0x01020304);
    CHECK_EQ(write_register(fd, 3, REGISTER, 0xcafe), offsetof(struct access, value));
    CHECK_EQ(read_register(fd, 4, REGISTER, &value), sizeof(struct access));
    CHECK_EQ(value, 0xcafe);

    /* The callback's errno reaches the client, and the connection goes on. */
    CHECK_EQ(read_register(fd, 5, 0, &value), -ENXIO);
    /* Outside of the region: refused by the library. */
    CHECK_EQ(read_register(fd, 6, BAR0_SIZE, &value), -EINVAL);
    CHECK_EQ(read_register(fd, 7, REGISTER, &value), sizeof(struct access));

    close(fd);
    return NULL;
}

/* A blocking context serves a client to its end, and then another one. */
static void
test_blocking_context(void)
{
    struct device device = { 0 };
    vfu_ctx_t *ctx = create_device(&device, 0);

    for (int clients = 1; clients <= 2; clients++) {
        pthread_t thread;

        device.value = 0x01020304;
        CHECK_EQ(pthread_create(&thread, NULL, client, NULL), 0);
        CHECK_EQ(vfu_attach_ctx(ctx), 0);
        CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK_EQ(device.value, 0xcafe);
        CHECK_EQ(device.resets, clients);
    }

    vfu_destroy_ctx(ctx);
    CHECK_EQ(device.resets, 3);
}

/* Nothing to do is no reason to wait in a non-blocking context. */
static void
test_non_blocking_context(void)
{
    struct device device = { .value = 0x01020304 };
    vfu_ctx_t *ctx = create_device(&device, LIBVFIO_USER_FLAG_ATTACH_NB);
    struct vfio_user_version version = { .major = 0, .minor = 1 };
    uint8_t reply[512];

    CHECK_FAILS(vfu_attach_ctx(ctx), EAGAIN);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);

    int fd = connect_client();
    send_command(fd, 1, VFIO_USER_VERSION, &version, sizeof(version));
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    CHECK(receive_reply(fd, 1, VFIO_USER_VERSION, reply, sizeof(reply)) > 0);
    CHECK_EQ(vfu_run_ctx(ctx), 0);
    CHECK(vfu_get_poll_fd(ctx) >= 0);

    struct access access = { REGISTER, VFU_PCI_DEV_BAR0_REGION_IDX, 4, 0 };
    send_command(fd, 2, VFIO_USER_REGION_READ, &access, offsetof(struct access, value));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    CHECK_EQ(receive_reply(fd, 2, VFIO_USER_REGION_READ, &access, sizeof(access)),
             sizeof(access));
    CHECK_EQ(access.value, 0x01020304);

    close(fd);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
}

/* The socket is there from creation to destruction, and not taken twice. */
static void
test_socket_path(void)
{
    struct device device = { 0 };
    struct stat info;
    vfu_ctx_t *ctx = create_device(&device, 0);

    CHECK_EQ(stat(path, &info), 0);
    CHECK(S_ISSOCK(info.st_mode));
    CHECK(vfu_create_ctx(VFU_TRANS_SOCK, path, 0, NULL, VFU_DEV_TYPE_PCI) == NULL);
    CHECK_EQ(errno, EADDRINUSE);

    vfu_destroy_ctx(ctx);
    CHECK_FAILS(stat(path, &info), ENOENT);
}

int
main(void)
{
    CHECK(mkdtemp(folder) != NULL);
    sprintf(path, "%s/socket", folder);

    RUN(test_socket_path);
    RUN(test_blocking_context);
    RUN(test_non_blocking_context);

    CHECK_EQ(rmdir(folder), 0);
    return check_result();
}
