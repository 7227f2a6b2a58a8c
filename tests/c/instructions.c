/*
 * Does one thing a given number of times, for count-instructions.py to count what
 * the library takes for it under valgrind's callgrind.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>

#include "client.h"

enum { BAR_SIZE = 0x1000, REGIONS = 1000, REGION_SIZE = 0x100000, PAGE = 4096 };

#include "bar.h"

static vfu_ctx_t *ctx;
static int client, twin;

static void
no_need_to_know(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

static int
transition(vfu_ctx_t *c, vfu_migr_state_t state)
{
    (void)c, (void)state;
    return 0;
}

static ssize_t
no_data(vfu_ctx_t *c, void *buf, uint64_t count)
{
    (void)c, (void)buf, (void)count;
    return 0;
}

static void
start(void)
{
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                              -1, 0), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 1), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, REGIONS, no_need_to_know, no_need_to_know), 0);
    /* Pages are logged for devices that migrate. */
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &(vfu_migration_callbacks_t) {
        .version = VFU_MIGR_CALLBACKS_VERS, .transition = transition, .read_data = no_data,
        .write_data = no_data }), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_twin_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    twin = client_recv_twin_version(client);
}

static void
map(uint64_t number, int fd)
{
    struct {
        uint32_t argsz, flags;
        uint64_t offset, address, size;
    } request = { 32, 3, number * REGION_SIZE, 2 * number * REGION_SIZE, REGION_SIZE };

    client_send_flags(client, 1, VFIO_USER_DMA_MAP, 0, &request, sizeof(request), fd);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 1, VFIO_USER_DMA_MAP, NULL, 0);
}

static void
map_regions(int count)
{
    int fd = memfd_create("instructions", MFD_CLOEXEC);

    CHECK_EQ(ftruncate(fd, (off_t)count * REGION_SIZE), 0);
    for (int i = 0; i < count; i++) {
        map(i, fd);
    }
    close(fd);
}

static void
log_pages(void)
{
    struct {
        uint32_t argsz, flags;
        uint64_t page_size;
        uint32_t ranges, reserved;
    } request = { sizeof(request), VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, PAGE, 0, 0 };

    client_send(client, 2, VFIO_USER_DEVICE_FEATURE, &request, sizeof(request));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 2, VFIO_USER_DEVICE_FEATURE, &request, sizeof(request));
}

static void
assign_interrupt(void)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFU_DEV_MSIX_IRQ, .count = 1 };
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    client_send_flags(client, 3, VFIO_USER_DEVICE_SET_IRQS, 0, &set, sizeof(set), event);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 3, VFIO_USER_DEVICE_SET_IRQS, NULL, 0);
    close(event);
}

static dma_sg_t *entry;
static char page[PAGE];

static void
translate_get_put(uint64_t region)
{
    vfu_dma_addr_t address = (vfu_dma_addr_t)(uintptr_t)(2 * region * REGION_SIZE + 2 * PAGE);
    struct iovec iov;

    CHECK_EQ(vfu_addr_to_sgl(ctx, address, PAGE, entry, 1, PROT_READ | PROT_WRITE), 1);
    CHECK_EQ(vfu_sgl_get(ctx, entry, &iov, 1, 0), 0);
    vfu_sgl_put(ctx, entry, &iov, 1);
}

/* Over the twin socket, where the answer is there before it is asked for. */
static void
move_by_message(int round, bool is_write)
{
    static struct {
        struct vfio_user_header header;
        struct vfio_user_dma_region_access access;
        char data[PAGE];
    } message;
    uint16_t id = round + 1;
    size_t fixed = sizeof(message) - PAGE;

    message.header = (struct vfio_user_header) {
        .msg_id = id, .cmd = is_write ? VFIO_USER_DMA_WRITE : VFIO_USER_DMA_READ,
        .msg_size = is_write ? fixed : sizeof(message), .flags = VFIO_USER_F_TYPE_REPLY };
    message.access = (struct vfio_user_dma_region_access) { .addr = 0, .count = PAGE };
    CHECK_EQ(write(twin, &message, message.header.msg_size), message.header.msg_size);
    CHECK_EQ(vfu_addr_to_sgl(ctx, NULL, PAGE, entry, 1, PROT_READ | PROT_WRITE), 1);
    CHECK_EQ((is_write ? vfu_sgl_write : vfu_sgl_read)(ctx, entry, 1, page, 0), 0);
    client_read(twin, &message, is_write ? sizeof(message) : fixed);
    CHECK_EQ(message.header.msg_id, id);
}

static void
once(const char *what, int round)
{
    char reply[64];

    if (strcmp(what, "read") == 0) {
        client_send_region_read(client, 7, 0, 64, 4);
        CHECK_EQ(vfu_run_ctx(ctx), 1);
        client_reply(client, 7, VFIO_USER_REGION_READ, reply, 16 + 4);
    } else if (strcmp(what, "write") == 0) {
        client_send_region_write(client, 7, 0, 0, 64, "1234", 4);
        CHECK_EQ(vfu_run_ctx(ctx), 1);
        client_reply(client, 7, VFIO_USER_REGION_WRITE, reply, 16);
    } else if (strcmp(what, "posted") == 0) {
        client_send_region_write(client, 7, VFIO_USER_F_NO_REPLY, 0, 64, "1234", 4);
        CHECK_EQ(vfu_run_ctx(ctx), 1);
    } else if (strcmp(what, "idle") == 0) {
        CHECK_EQ(vfu_run_ctx(ctx), 0);
    } else if (strcmp(what, "info") == 0) {
        struct vfio_user_device_info info = { .argsz = sizeof(info) };

        client_send(client, 7, VFIO_USER_DEVICE_GET_INFO, &info, sizeof(info));
        CHECK_EQ(vfu_run_ctx(ctx), 1);
        client_reply(client, 7, VFIO_USER_DEVICE_GET_INFO, &info, sizeof(info));
    } else if (strcmp(what, "dma-read") == 0 || strcmp(what, "dma-write") == 0) {
        move_by_message(round, strcmp(what, "dma-write") == 0);
    } else if (strcmp(what, "trigger") == 0) {
        CHECK_EQ(vfu_irq_trigger(ctx, 0), 0);
    } else {
        /* A number prime to that of regions leads to another one each time. */
        translate_get_put(strcmp(what, "random") == 0 ? (uint64_t)round * 617 % REGIONS : 0);
    }
}

int
main(int argc, char **argv)
{
    CHECK_EQ(argc, 3);
    make_socket_folder();
    entry = malloc(dma_sg_size());
    start();
    map_regions(strcmp(argv[1], "random") == 0 ? REGIONS : 1);
    if (strcmp(argv[1], "logging") == 0) {
        log_pages();
    }
    assign_interrupt();
    for (int i = 0; i < atoi(argv[2]); i++) {
        once(argv[1], i);
    }
    close(client);
    close(twin);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
    free(entry);
    remove_socket_folder();
    return 0;
}
