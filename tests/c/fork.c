/*
 * A program forks: the child gives its copy of the context up, and the parent and
 * its client go on as if nothing had been.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "client.h"

enum { BAR_SIZE = 0x1000, GUEST = 0x10000, GUEST_SIZE = 0x1000 };

static int resets, regions_gone;

static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx;
    (void)offset;
    if (!is_write) {
        memset(buf, 0x5a, count);
    }
    return count;
}

static int
reset(vfu_ctx_t *ctx, vfu_reset_type_t type)
{
    (void)ctx;
    CHECK_EQ(type, VFU_RESET_LOST_CONN);
    resets++;
    return 0;
}

static void
dma_register(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    CHECK(info->vaddr != NULL);
}

static void
dma_unregister(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    CHECK(info->vaddr != NULL);
    regions_gone++;
}

static vfu_ctx_t *
make_device(void)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);

    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_device_reset_cb(ctx, reset), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 16, dma_register, dma_unregister), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 1), 0);
    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, bar_access,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    resets = regions_gone = 0;
    return ctx;
}

static int
attach(vfu_ctx_t *ctx)
{
    int client = client_connect();

    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    return client;
}

/* Guest memory and an interrupt, for the child to have something to give up. */
static int
give_memory(vfu_ctx_t *ctx, int client)
{
    struct vfio_user_dma_map map = {
        .argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE, .addr = GUEST, .size = GUEST_SIZE };
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER, .index = VFU_DEV_MSIX_IRQ,
        .count = 1 };
    int memory = memfd_create("guest", MFD_CLOEXEC), event = eventfd(0, EFD_CLOEXEC | (has_aio() ? 0 : EFD_NONBLOCK));

    CHECK_EQ(ftruncate(memory, GUEST_SIZE), 0);
    client_send_flags(client, 1, VFIO_USER_DMA_MAP, 0, &map, sizeof(map), memory);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 1, VFIO_USER_DMA_MAP, NULL, 0);
    client_send_flags(client, 2, VFIO_USER_DEVICE_SET_IRQS, 0, &set, sizeof(set), event);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 2, VFIO_USER_DEVICE_SET_IRQS, NULL, 0);
    close(memory);
    return event;
}

/* A child that destroys the context; its callbacks run once each. */
static void
destroy_in_child(vfu_ctx_t *ctx, int regions)
{
    int status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        vfu_destroy_ctx(ctx);
        _exit(resets == 1 && regions_gone == regions ? 0 : 1);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
}

static void
read_bar(vfu_ctx_t *ctx, int client, uint16_t id)
{
    struct {
        struct vfio_user_region_access access;
        unsigned char data[4];
    } reply;

    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, id, VFIO_USER_REGION_READ, &reply, sizeof(reply));
    CHECK_EQ(reply.data[0], 0x5a);
}

static bool
readable(int fd)
{
    struct pollfd poll_fd = { .fd = fd, .events = POLLIN };

    return poll(&poll_fd, 1, 0) == 1;
}

static void
the_parent_s_client_notices_nothing(void)
{
    vfu_ctx_t *ctx = make_device();
    int client = attach(ctx), event = give_memory(ctx, client), poll_fd = vfu_get_poll_fd(ctx);
    uint64_t count;

    /* A request lies unread: the parent's to answer, and its poll descriptor says so. */
    client_send_region_read(client, 3, VFU_PCI_DEV_BAR0_REGION_IDX, 0, 4);
    destroy_in_child(ctx, 1);
    CHECK(readable(poll_fd));
    read_bar(ctx, client, 3);
    CHECK(!readable(poll_fd));
    client_send_region_read(client, 4, VFU_PCI_DEV_BAR0_REGION_IDX, 0, 4);
    CHECK(readable(poll_fd));
    read_bar(ctx, client, 4);
    CHECK_EQ(vfu_irq_trigger(ctx, 0), 0);
    CHECK_EQ(read(event, &count, sizeof(count)), sizeof(count));
    CHECK_EQ(resets, 0);
    CHECK_EQ(regions_gone, 0);

    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    client = attach(ctx);
    close(client);
    close(event);
    vfu_destroy_ctx(ctx);
}

static void
half_a_message_is_still_finished(void)
{
    vfu_ctx_t *ctx = make_device();
    int client = attach(ctx);
    struct vfio_user_region_access access = { .region = VFU_PCI_DEV_BAR0_REGION_IDX, .count = 4 };
    struct vfio_user_header header = {
        .msg_id = 5, .cmd = VFIO_USER_REGION_READ, .msg_size = sizeof(header) + sizeof(access) };

    CHECK_EQ(send(client, &header, sizeof(header), 0), (ssize_t)sizeof(header));
    CHECK_EQ(vfu_run_ctx(ctx), 0);
    CHECK_EQ(send(client, &access, sizeof(access) - 1, 0), (ssize_t)sizeof(access) - 1);
    destroy_in_child(ctx, 0);
    CHECK_EQ(send(client, (char *)&access + sizeof(access) - 1, 1, 0), 1);
    read_bar(ctx, client, 5);
    close(client);
    vfu_destroy_ctx(ctx);
}

static void
who_waits_to_be_accepted_still_is(void)
{
    vfu_ctx_t *ctx = make_device();
    int poll_fd = vfu_get_poll_fd(ctx), client = client_connect();

    client_send_version(client);
    destroy_in_child(ctx, 0);
    CHECK_EQ(access(socket_path, F_OK), 0);
    CHECK(readable(poll_fd));
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    client_send_region_read(client, 1, VFU_PCI_DEV_BAR0_REGION_IDX, 0, 4);
    read_bar(ctx, client, 1);
    close(client);
    vfu_destroy_ctx(ctx);
    CHECK(access(socket_path, F_OK) != 0);
}

int
main(void)
{
    make_socket_folder();
    RUN(the_parent_s_client_notices_nothing);
    RUN(half_a_message_is_still_finished);
    RUN(who_waits_to_be_accepted_still_is);
    remove_socket_folder();
    return check_result();
}
