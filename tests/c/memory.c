/*
 * What a client makes a server keep goes back to the system when the client is
 * lost: resident memory is then what it was before there ever was a client. A
 * process of its own, since it is measured.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <sys/mman.h>

#include "client.h"

enum { PAGE = 0x1000, MESSAGES = 1000000, FILES = 100000, BATCH = 250, ENTRIES = 16, ROUNDS = 3, SLACK = 64,
       BAR_SIZE = 1 << 20, IDLE = (1 << 14) + 1 };

static vfu_ctx_t *ctx;
static int client, memory;
static uint64_t registered, unregistered;

struct map_message {
    struct vfio_user_header header;
    struct vfio_user_dma_map map;
};

static void
count_register(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    CHECK(c == ctx && info->iova.iov_len == PAGE);
    registered++;
}

static void
count_unregister(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    CHECK(c == ctx && info->iova.iov_len == PAGE);
    unregistered++;
}

/* KiB of this process's memory that no file has. */
static long
resident(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = -1;

    CHECK(file != NULL);
    while (fgets(line, sizeof(line), file) != NULL) {
        sscanf(line, "Anonymous: %ld kB", &kib);
    }
    fclose(file);
    CHECK(kib >= 0);
    return kib;
}

static uint64_t
place(uint64_t region)
{
    return region * 2 * PAGE;
}

static struct map_message
map_message(uint64_t region, uint32_t flags)
{
    struct map_message message = {
        .header = { .cmd = VFIO_USER_DMA_MAP, .msg_size = sizeof(message), .flags = VFIO_USER_F_NO_REPLY },
        .map = { .argsz = sizeof(message.map), .addr = place(region), .size = PAGE,
                 .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE | flags } };

    return message;
}

static void
run_until(uint64_t regions)
{
    while (registered < regions) {
        CHECK(vfu_run_ctx(ctx) >= 0);
    }
}

static void
attach(void)
{
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    registered = unregistered = 0;
}

static void
lose(void)
{
    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    CHECK_EQ(unregistered, registered);
}

static void
map_messages(uint64_t first, uint64_t count)
{
    static struct map_message batch[BATCH];

    for (uint64_t done = 0; done < count; done += BATCH) {
        for (int i = 0; i < BATCH; i++) {
            batch[i] = map_message(first + done + i, 0);
        }
        CHECK_EQ(send(client, batch, sizeof(batch), MSG_NOSIGNAL), sizeof(batch));
        run_until(first + done + BATCH);
    }
}

/* Every other region is read and written, not mapped. */
static void
map_files(uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        struct map_message message = map_message(i, i % 2 ? VFIO_USER_F_DMA_REGION_MMAP : VFIO_USER_F_DMA_REGION_FILE_IO);

        /* Memory that lies in the process as in the file is one range to the kernel. */
        message.map.offset = (first + count - i - 1) / 2 * PAGE;
        client_send_flags(client, 0, VFIO_USER_DMA_MAP, VFIO_USER_F_NO_REPLY, &message.map, sizeof(message.map), memory);
        run_until(i + 1);
    }
}

static bool
translates(uint64_t region, char *entry)
{
    int count = vfu_addr_to_sgl(ctx, (void *)place(region), PAGE, (dma_sg_t *)entry, 1, PROT_READ | PROT_WRITE);

    CHECK(count == 1 || (count == -1 && errno == ENOENT));
    return count == 1;
}

static void
check_stale(char (*entries)[40])
{
    struct iovec iov;

    for (int i = 0; i < ENTRIES; i++) {
        CHECK_FAILS(vfu_sgl_get(ctx, (dma_sg_t *)entries[i], &iov, 1, 0), EINVAL);
    }
}

static ssize_t
zeros(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)c, (void)offset, (void)is_write;
    memset(buf, 0, count);
    return count;
}

static int
transition(vfu_ctx_t *c, vfu_migr_state_t state)
{
    (void)c, (void)state;
    return 0;
}

static ssize_t
read_data(vfu_ctx_t *c, void *data, uint64_t size)
{
    (void)c, (void)data, (void)size;
    return 0;
}

static ssize_t
write_data(vfu_ctx_t *c, void *data, uint64_t size)
{
    (void)c, (void)data;
    return size;
}

static void
open_context(void)
{
    static const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS, .transition = transition, .read_data = read_data, .write_data = write_data };

    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 2 * MESSAGES, count_register, count_unregister), 0);
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &migration), 0);
    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, zeros,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
}

static void
log_writes(void)
{
    struct {
        struct vfio_user_device_feature head;
        struct vfio_user_device_feature_dma_logging_control control;
    } message = {
        { .argsz = sizeof(message), .flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START },
        { .page_size = PAGE } };

    client_send(client, 0, VFIO_USER_DEVICE_FEATURE, &message, sizeof(message));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 0, VFIO_USER_DEVICE_FEATURE, &message, sizeof(message));
}

/* Dirty pages are logged, and all are dirty. */
static void
map_logged_files(uint64_t first, uint64_t count)
{
    log_writes();
    map_files(first, count);
    for (uint64_t i = first; i < first + count; i++) {
        char entry[40];

        CHECK(translates(i, entry));
        vfu_sgl_mark_dirty(ctx, (dma_sg_t *)entry, 1);
    }
}

/* As many regions as `map` makes, lost, and what remains. */
static void
goes_back(void (*map)(uint64_t first, uint64_t count), uint64_t count)
{
    char entries[ENTRIES][40];
    long before, full, after;

    open_context();
    resident(); /* takes its own share the first time */
    before = resident();
    for (int round = 0; round < ROUNDS; round++) {
        attach();
        map(0, count);
        for (int i = 0; i < ENTRIES; i++) {
            CHECK(translates(i * (count - 1) / (ENTRIES - 1), entries[i]));
        }
        full = resident();
        lose();
        after = resident();
        fprintf(stderr, "%ld KiB, with %lu regions %ld, after them %ld\n", before, (unsigned long)count, full, after);
        check_stale(entries);
        CHECK(!translates(0, entries[0]));
        CHECK(count <= BATCH || full > before + 1024);
        CHECK(after <= before + SLACK);
    }

    /* Regions that come to the same places are others. */
    attach();
    map_messages(0, BATCH);
    for (int i = 0; i < ENTRIES; i++) {
        char entry[40];
        CHECK(translates(i, entry));
    }
    check_stale(entries);
    lose();
    vfu_destroy_ctx(ctx);
}

static void
few_regions_go_back(void)
{
    goes_back(map_messages, BATCH);
}

static void
message_regions_go_back(void)
{
    goes_back(map_messages, MESSAGES);
}

static void
regions_of_files_go_back(void)
{
    goes_back(map_files, FILES);
}

static void
few_logged_regions_go_back(void)
{
    goes_back(map_logged_files, ENTRIES);
}

static void
logged_regions_go_back(void)
{
    goes_back(map_logged_files, FILES);
}

/* Of the largest reply. */
static void
read_all(void)
{
    static char reply[16 + 16 + BAR_SIZE];
    size_t have = 0;

    client_send_region_read(client, 1, VFU_PCI_DEV_BAR0_REGION_IDX, 0, BAR_SIZE);
    while (have < sizeof(reply)) {
        ssize_t got;

        CHECK(vfu_run_ctx(ctx) >= 0);
        got = recv(client, reply + have, sizeof(reply) - have, MSG_DONTWAIT);
        CHECK(got > 0 || (got == -1 && errno == EAGAIN));
        have += got > 0 ? got : 0;
    }
}

/* Calls that find nothing to do. */
static void
idle(void)
{
    for (int i = 0; i < IDLE; i++) {
        CHECK_EQ(vfu_run_ctx(ctx), 0);
    }
}

/* The client stays. */
static void
large_buffers_go_when_there_is_nothing_to_do(void)
{
    long before, full, after;

    open_context();
    attach();
    read_all();
    idle();
    before = resident();
    read_all();
    full = resident();
    idle();
    after = resident();
    fprintf(stderr, "%ld KiB, after a large reply %ld, later %ld\n", before, full, after);
    CHECK(full > before + BAR_SIZE / 1024 - SLACK);
    CHECK(after <= before + SLACK);
    lose();
    vfu_destroy_ctx(ctx);
}

int
main(void)
{
    make_socket_folder();
    memory = memfd_create("guest", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(memory, (off_t)FILES * PAGE), 0);
    /* The first is the process's first client, too. */
    RUN(few_regions_go_back);
    RUN(few_logged_regions_go_back);
    RUN(message_regions_go_back);
    RUN(regions_of_files_go_back);
    RUN(logged_regions_go_back);
    RUN(large_buffers_go_when_there_is_nothing_to_do);
    close(memory);
    remove_socket_folder();
    return check_result();
}
