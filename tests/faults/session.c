/* The session, step by step; see session.h.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../c/check.h"
#include "session.h"
#include "shim.h"

extern char socket_path[];

const char *const session_names[SESSION_KINDS] = { "twin", "single", "blocking" };

enum { RW_FLAGS = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE, FILE_IO = 1 << 3 };
enum { LARGE = 300000, PAGE = 4096 };

/* Where the regions are: mapped, by pread and pwrite, by messages, beyond its file. */
enum { MAPPED = GUEST, BY_FILE = 2 * GUEST, BY_MESSAGE = 3 * GUEST, SHORT_FILE = 4 * GUEST };
/* Its dirty bitmap is a page, which is not cleared but given back to the system. */
enum { LOGGED = 0x10000000, LOGGED_SIZE = 0x8000000, LOGGED_BITMAP = LOGGED_SIZE / 4096 / 8 };

static void
information(struct client *client)
{
    struct vfio_user_device_info device = { .argsz = sizeof(device) };
    struct vfio_region_info region = { .argsz = 256 };
    struct vfio_irq_info irq = { .argsz = sizeof(irq), .index = VFU_DEV_MSIX_IRQ };

    client_request(client, VFIO_USER_DEVICE_GET_INFO, &device, sizeof(device), -1);
    for (region.index = 0; region.index < 9; region.index++) {
        client_request(client, VFIO_USER_DEVICE_GET_REGION_INFO, &region, sizeof(region), -1);
    }
    client_request(client, VFIO_USER_DEVICE_GET_IRQ_INFO, &irq, sizeof(irq), -1);
}

struct large_access {
    struct vfio_user_region_access access;
    char data[LARGE];
};

static enum outcome
write_region(struct client *client, uint32_t region, uint64_t offset, uint32_t count, char value)
{
    static struct large_access message;

    message.access = (struct vfio_user_region_access) { .offset = offset, .region = region, .count = count };
    memset(message.data, value, count);
    return client_request(client, VFIO_USER_REGION_WRITE, &message, sizeof(message.access) + count, -1);
}

static enum outcome
read_region(struct client *client, uint32_t region, uint64_t offset, uint32_t count)
{
    struct vfio_user_region_access access = { .offset = offset, .region = region, .count = count };
    enum outcome outcome = client_request(client, VFIO_USER_REGION_READ, &access, sizeof(access), -1);

    CHECK(outcome != DONE || client->size == sizeof(access) + count);
    return outcome;
}

static void
check_read(struct client *client, uint64_t offset, uint32_t count, char value)
{
    if (read_region(client, 0, offset, count) == DONE) {
        const struct vfio_user_region_access *reply = client_payload(client);
        for (uint32_t i = 0; i < count; i++) {
            CHECK_EQ(reply->data[i], value);
        }
    }
}

static void
regions(struct client *client)
{
    struct {
        uint64_t count;
        struct {
            uint64_t offset;
            uint32_t region, count;
            uint64_t data;
        } writes[2];
    } multi = { 2, { { 0x40, 0, 4, 1 }, { 0x44, 0, 4, 1 } } };
    struct large_access posted = { .access = { .offset = 0x200, .region = 0, .count = 4 }, .data = { 7, 7, 7, 7 } };

    if (write_region(client, 0, 8, 4, 3) == DONE) {
        check_read(client, 8, 4, 3);
    }
    if (write_region(client, 0, 0x1000, LARGE, 4) == DONE) {
        check_read(client, 0x1000, LARGE, 4);
    }
    write_region(client, 7, 4, 2, 0);
    read_region(client, 7, 0, 256);
    if (client->device->kind == SESSION_TWIN) {
        client_request(client, VFIO_USER_REGION_WRITE_MULTI, &multi, sizeof(multi), -1);
    }
    for (int i = 0; i < 3; i++) {
        client_send_only(client, VFIO_USER_REGION_WRITE, VFIO_USER_F_NO_REPLY, &posted, sizeof(posted.access) + 4, -1);
    }
    if (client->fd != -1) {
        check_read(client, 0x200, 4, 7);
    }
}

/* Bytes of a message that come one after the other. */
static void
in_pieces(struct client *client)
{
    struct {
        struct vfio_user_header header;
        struct vfio_user_region_access access;
    } message = { { .msg_id = ++client->id, .cmd = VFIO_USER_REGION_READ, .msg_size = sizeof(message) },
                  { .offset = 0, .region = 0, .count = 4 } };

    if (client->fd == -1) {
        return;
    }
    client_send_raw(client, &message, 7, -1);
    client_run_once(client);
    client_send_raw(client, (char *)&message + 7, 13, -1);
    client_run_once(client);
    client_send_raw(client, (char *)&message + 20, sizeof(message) - 20, -1);
    CHECK(client_await(client) == DONE || shim_fired());
}

static enum outcome
map(struct client *client, uint64_t addr, uint64_t size, uint32_t flags, int fd)
{
    struct vfio_user_dma_map request = {
        .argsz = sizeof(request), .flags = RW_FLAGS | flags, .addr = addr, .size = size };

    return client_request(client, VFIO_USER_DMA_MAP, &request, sizeof(request), fd);
}

static enum outcome
unmap(struct client *client, uint64_t addr, uint64_t size, uint32_t flags)
{
    struct vfio_user_dma_unmap request = {
        .argsz = sizeof(request), .flags = flags, .addr = addr, .size = size };

    return client_request(client, VFIO_USER_DMA_UNMAP, &request, sizeof(request), -1);
}

static void
mapping(struct client *client, int memory)
{
    int half = memfd_create("half", MFD_CLOEXEC);

    CHECK_EQ(ftruncate(half, GUEST_SIZE / 2), 0);
    map(client, MAPPED, GUEST_SIZE, 0, memory);
    map(client, BY_FILE, GUEST_SIZE, FILE_IO, memory);
    map(client, BY_MESSAGE, 4 * GUEST_SIZE, 0, -1);
    map(client, MAPPED, GUEST_SIZE, 0, memory); /* the same again */
    client->device->quiesce_later = true;
    map(client, SHORT_FILE, GUEST_SIZE, 0, half);
    client->device->quiesce_later = false;
    close(half);
}

static void
use_memory(struct client *client)
{
    struct device *device = client->device;

    device_use_memory(device, MAPPED + 0x3000, 0x2000, VFU_SGL_DIRECT_ACCESS);
    device_use_memory(device, BY_FILE, GUEST_SIZE, VFU_SGL_DIRECT_ACCESS);
    if (device->kind != SESSION_BLOCKING && client->fd != -1) {
        client_serve_memory(client);
        device_use_memory(device, BY_MESSAGE, 200000, 0);
        client_stop_serving(client);
    }
}

static enum outcome
set_feature(struct client *client, uint32_t feature, const void *data, size_t size)
{
    char message[64];
    struct vfio_user_device_feature head = { .argsz = sizeof(head) + size,
                                             .flags = feature | VFIO_DEVICE_FEATURE_SET };

    memcpy(message, &head, sizeof(head));
    memcpy(message + sizeof(head), data, size);
    return client_request(client, VFIO_USER_DEVICE_FEATURE, message, sizeof(head) + size, -1);
}

static enum outcome
report(struct client *client, uint64_t iova, uint64_t length)
{
    struct {
        struct vfio_user_device_feature head;
        struct vfio_user_device_feature_dma_logging_report report;
    } request = { { .argsz = 8192, .flags = VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_GET },
                  { .iova = iova, .length = length, .page_size = PAGE } };

    return client_request(client, VFIO_USER_DEVICE_FEATURE, &request, sizeof(request), -1);
}

static void
check_clean(struct client *client, uint64_t iova, uint64_t length)
{
    if (report(client, iova, length) == DONE) {
        const struct vfio_user_device_feature *reply = client_payload(client);
        const struct vfio_user_device_feature_dma_logging_report *head = (const void *)reply->data;
        CHECK_EQ(client->size, sizeof(*reply) + sizeof(*head) + LOGGED_BITMAP);
        for (int i = 0; i < LOGGED_BITMAP; i++) {
            CHECK_EQ(head->bitmap[i], 0);
        }
    }
}

static void
logging(struct client *client, int memory)
{
    struct vfio_user_device_feature_dma_logging_control control = { .page_size = PAGE };
    struct {
        struct vfio_user_dma_unmap unmap;
        struct vfio_user_bitmap bitmap;
    } request = { { .argsz = 8192, .flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, .addr = LOGGED, .size = LOGGED_SIZE },
                  { .pgsize = PAGE, .size = LOGGED_BITMAP } };

    CHECK_EQ(ftruncate(memory, LOGGED_SIZE), 0);
    set_feature(client, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &control, sizeof(control));
    map(client, LOGGED, LOGGED_SIZE, 0, memory);
    device_use_memory(client->device, MAPPED, PAGE, VFU_SGL_DIRECT_ACCESS);
    device_use_memory(client->device, LOGGED, PAGE, VFU_SGL_DIRECT_ACCESS);
    report(client, MAPPED, GUEST_SIZE);
    client_request(client, VFIO_USER_DMA_UNMAP, &request, sizeof(request), -1);
    /* With bits set when it goes, and none when there is a new one. */
    map(client, LOGGED, LOGGED_SIZE, 0, memory);
    device_use_memory(client->device, LOGGED, PAGE, VFU_SGL_DIRECT_ACCESS);
    unmap(client, LOGGED, LOGGED_SIZE, 0);
    map(client, LOGGED, LOGGED_SIZE, 0, memory);
    check_clean(client, LOGGED, LOGGED_SIZE);
    unmap(client, LOGGED, LOGGED_SIZE, 0);
    set_feature(client, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, "", 0);
}

static void
interrupts(struct client *client)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFU_DEV_MSIX_IRQ, .count = 1 };
    int events[] = { eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK) };

    for (int i = 0; i < 2; i++) {
        set.start = i;
        client_request(client, VFIO_USER_DEVICE_SET_IRQS, &set, sizeof(set), events[i]);
        close(events[i]);
    }
    device_trigger(client->device);
    set.start = 0;
    set.count = 2;
    set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
    client_request(client, VFIO_USER_DEVICE_SET_IRQS, &set, sizeof(set), -1);
    set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK;
    client_request(client, VFIO_USER_DEVICE_SET_IRQS, &set, sizeof(set), -1);
}

static void
io_fds(struct client *client)
{
    struct vfio_user_region_io_fds_request request = { .argsz = 256 };

    client_request(client, VFIO_USER_DEVICE_GET_REGION_IO_FDS, &request, sizeof(request), -1);
}

static void
migration(struct client *client)
{
    static struct {
        struct vfio_user_mig_data head;
        char data[STATE_SIZE];
    } data;
    const uint32_t path[] = { VFIO_USER_DEVICE_STATE_PRE_COPY, VFIO_USER_DEVICE_STATE_STOP_COPY,
                              VFIO_USER_DEVICE_STATE_RESUMING, VFIO_USER_DEVICE_STATE_RUNNING };

    for (int i = 0; i < 4; i++) {
        struct vfio_user_device_feature_mig_state state = { .device_state = path[i] };
        enum outcome outcome = set_feature(client, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &state, sizeof(state));
        data.head = (struct vfio_user_mig_data) { .argsz = sizeof(data), .size = i == 0 ? 100 : STATE_SIZE };
        if (outcome == DONE && i < 2) {
            client_request(client, VFIO_USER_MIG_DATA_READ, &data.head, sizeof(data.head), -1);
        } else if (outcome == DONE && i == 2) {
            memset(data.data, 0x5a, STATE_SIZE);
            client_request(client, VFIO_USER_MIG_DATA_WRITE, &data, sizeof(data), -1);
        }
    }
    client_request(client, VFIO_USER_DEVICE_RESET, "", 0, -1);
}

/* What has to work whatever failed before. */
static void
clean_client(struct client *client, int memory)
{
    check_read(client, 0x100, 4, 0x11);
    map(client, MAPPED, GUEST_SIZE, 0, memory);
    device_use_memory(client->device, MAPPED, PAGE, VFU_SGL_DIRECT_ACCESS);
    unmap(client, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL);
}

void
session_run(enum session_kind kind)
{
    struct device device;
    struct client client;
    int memory = memfd_create("guest", MFD_CLOEXEC);

    CHECK_EQ(ftruncate(memory, GUEST_SIZE), 0);
    device_create(&device, kind, socket_path);
    if (kind == SESSION_BLOCKING) {
        client_start_server(&device);
    }
    client_attach(&client, &device);
    information(&client);
    regions(&client);
    in_pieces(&client);
    mapping(&client, memory);
    use_memory(&client);
    logging(&client, memory);
    interrupts(&client);
    io_fds(&client);
    migration(&client);
    unmap(&client, BY_FILE, GUEST_SIZE, 0);
    write_region(&client, 0, 0x100, 4, 0x11);
    client_detach(&client);

    /* Twice, since the fault may be in the first. */
    for (int i = 0; i < 2; i++) {
        client_attach(&client, &device);
        if (write_region(&client, 0, 0x100, 4, 0x11) == DONE) {
            clean_client(&client, memory);
        }
        if (i == 1) {
            client_no_more();
        }
        client_detach(&client);
    }
    if (kind == SESSION_BLOCKING) {
        client_stop_server();
    }
    device_destroy(&device);
    close(memory);
}
