/*
 * A device whose client takes memory away, for the tests of the guard.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef LOST_H
#define LOST_H

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <vfio-user/libvfio-user-ext.h>

#include "client.h"

enum { BAR_SIZE = 0x1000, PAGE = 0x1000, GUEST = 0x100000, GUEST_SIZE = 0x10000 };

struct device {
    vfu_ctx_t *ctx;
    int client, memory;
    uint16_t next_id;
    /* Told of by the library. */
    int losses, loss_lines, refusals;
    uint64_t lost_iova, lost_offset;
    int regions;
};

static inline void
dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    struct device *device = vfu_get_private(ctx);

    (void)info;
    device->regions++;
}

static inline void
dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    struct device *device = vfu_get_private(ctx);

    (void)info;
    device->regions--;
}

static inline void
dma_lost(vfu_ctx_t *ctx, vfu_dma_info_t *info, uint64_t offset)
{
    struct device *device = vfu_get_private(ctx);

    device->losses++;
    device->lost_iova = (uintptr_t)info->iova.iov_base;
    device->lost_offset = offset;
}

static inline void
log_line(vfu_ctx_t *ctx, int level, const char *text)
{
    struct device *device = vfu_get_private(ctx);

    device->loss_lines += level == LOG_ERR && strstr(text, "taken memory away") != NULL;
    device->refusals += level == LOG_ERR && strstr(text, "can be taken away") != NULL;
}

static inline void
make_device(struct device *device, vfu_region_access_cb_t *access)
{
    static int number;

    *device = (struct device){ .memory = -1 };
    snprintf(socket_path, sizeof(socket_path), "%s/%d", socket_folder, number++ % 100);
    unlink(socket_path); /* of a test that died, as it had to */
    device->ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, device, VFU_DEV_TYPE_PCI);
    CHECK(device->ctx != NULL);
    CHECK_EQ(vfu_setup_log(device->ctx, log_line, LOG_ERR), 0);
    CHECK_EQ(vfu_setup_device_dma(device->ctx, 1000, dma_register, dma_unregister), 0);
    CHECK_EQ(vfux_setup_dma_lost_cb(device->ctx, dma_lost), 0);
    CHECK_EQ(vfu_setup_region(device->ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, access,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(device->ctx), 0);
}

static inline void
attach(struct device *device)
{
    device->client = client_connect();
    client_send_version(device->client);
    CHECK_EQ(vfu_attach_ctx(device->ctx), 0);
    client_recv_version(device->client);
}

static inline void
end_device(struct device *device)
{
    close(device->client);
    vfu_destroy_ctx(device->ctx);
    CHECK_EQ(device->regions, 0);
    if (device->memory != -1) {
        close(device->memory);
    }
}

/* A request that is executed; returns the errno of its reply. */
static inline int
request(struct device *device, uint16_t cmd, const void *payload, size_t size, int pass)
{
    struct vfio_user_header header;
    char reply[512];

    client_send_flags(device->client, ++device->next_id, cmd, 0, payload, size, pass);
    CHECK_EQ(vfu_run_ctx(device->ctx), 1);
    client_recv(device->client, &header, reply, sizeof(reply));
    CHECK_EQ(header.msg_id, device->next_id);
    return header.error_no;
}

static inline int
map_flags(struct device *device, uint64_t iova, uint64_t size, uint32_t flags, int memory)
{
    struct vfio_user_dma_map map = { .argsz = sizeof(map), .flags = flags, .addr = iova, .size = size };

    return request(device, VFIO_USER_DMA_MAP, &map, sizeof(map), memory);
}

static inline int
map(struct device *device, uint64_t iova, uint64_t size, int memory)
{
    return map_flags(device, iova, size, VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE, memory);
}

static inline int
unmap(struct device *device, uint64_t iova, uint64_t size)
{
    struct vfio_user_dma_unmap message = { .argsz = sizeof(message), .addr = iova, .size = size };

    return request(device, VFIO_USER_DMA_UNMAP, &message, sizeof(message), -1);
}

struct entry {
    char bytes[40];
};

/* Memory of the guest, which others change, and the entry that it is from. */
static inline volatile char *
get(struct device *device, uint64_t iova, size_t size, struct entry *entry)
{
    struct iovec iov;
    dma_sg_t *sg = (dma_sg_t *)entry->bytes;

    CHECK_EQ(vfu_addr_to_sgl(device->ctx, (void *)(uintptr_t)iova, size, sg, 1, PROT_READ | PROT_WRITE), 1);
    CHECK_EQ(vfu_sgl_get(device->ctx, sg, &iov, 1, 0), 0);
    return iov.iov_base;
}

static inline bool
is_lost(struct device *device, struct entry *entry)
{
    return vfux_sg_is_lost(device->ctx, (dma_sg_t *)entry->bytes);
}

static inline int
make_memory(size_t size, unsigned int flags)
{
    int memory = memfd_create("guest", MFD_CLOEXEC | flags);

    if (memory != -1) {
        CHECK_EQ(ftruncate(memory, size), 0);
    }
    return memory;
}

/* How a child that does this ends, as waitpid() says it. */
static inline int
status_of(void (*run)(void))
{
    int status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        run();
        _exit(EXIT_SUCCESS);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

static inline bool
died_of_sigbus(int status)
{
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS;
}

static inline bool
readable(int fd)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    return poll(&poll_fd, 1, 0) == 1;
}

#endif /* LOST_H */
