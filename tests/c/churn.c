/*
 * Threads that use guest memory and interrupts while the very regions and eventfds
 * that they use come and go. Nobody touches the memory here, since it may be gone:
 * what is checked is that an entry that outlived its region fails, and that
 * nothing else does anything but fail.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "client.h"

enum { GUEST = 0x100000, GUEST_SIZE = 0x10000, PAGE = 0x1000, THREADS = 3, REGIONS = 4, ROUNDS = 400 };

static vfu_ctx_t *ctx;
static int client, memory;
static atomic_bool stop;

/* How often each region has been unmapped, counted when that was answered. */
static atomic_ulong unmaps[REGIONS];

/* How much of what was wanted happened at all. */
static atomic_ulong used, stale, missing, triggered, disabled, logged;

static void
dma_nothing(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

/* Lines of the library, on the thread that runs the context, and of the others. */
static void
log_line(vfu_ctx_t *c, int level, const char *text)
{
    CHECK(c == ctx && level <= LOG_DEBUG);
    if (strncmp(text, "worker ", 7) == 0) {
        atomic_fetch_add(&logged, 1);
    }
}

static uint64_t
place(int region)
{
    return GUEST + (uint64_t)region * 2 * GUEST_SIZE;
}

struct entry {
    char sg[40];
    int region;
    unsigned long unmaps; /* seen after it was made */
    bool made;
};

/* Uses an entry, new or old. The mapping that it is of is at the latest the one
 * after those that were seen gone when it was made. */
static void
use(struct entry *entry)
{
    dma_sg_t *sg = (dma_sg_t *)entry->sg;
    bool gone = atomic_load(&unmaps[entry->region]) > entry->unmaps;
    struct iovec iov;

    if (vfu_sgl_get(ctx, sg, &iov, 1, 0) == 0) {
        CHECK(!gone);
        CHECK_EQ(iov.iov_len, PAGE);
        CHECK(iov.iov_base != NULL);
        atomic_fetch_add(&used, 1);
    } else {
        CHECK_EQ(errno, EINVAL);
        CHECK(!vfu_sg_is_mappable(ctx, sg));
        atomic_fetch_add(&stale, 1);
    }
    vfu_sgl_mark_dirty(ctx, sg, 1);
    vfu_sgl_put(ctx, sg, &iov, 1);
}

static void
trigger(uint32_t vector)
{
    if (vfu_irq_trigger(ctx, vector) == 0) {
        atomic_fetch_add(&triggered, 1);
    } else {
        CHECK(errno == ENOENT || errno == EAGAIN);
        atomic_fetch_add(&disabled, 1);
    }
}

static void *
work(void *argument)
{
    struct entry kept[REGIONS] = { 0 };
    uint64_t number = (uintptr_t)argument;

    while (!atomic_load(&stop)) {
        struct entry entry;
        uint64_t offset;
        int count;

        number = number * 6364136223846793005 + 1442695040888963407;
        entry.region = number >> 40 & (REGIONS - 1);
        offset = (number >> 50) % (GUEST_SIZE / PAGE) * PAGE;
        count = vfu_addr_to_sgl(ctx, (void *)(uintptr_t)(place(entry.region) + offset), PAGE, (dma_sg_t *)entry.sg, 1,
                                PROT_READ | PROT_WRITE);
        if (count == 1) {
            entry.unmaps = atomic_load(&unmaps[entry.region]);
            entry.made = true;
            use(&entry);
            if (kept[entry.region].made) {
                use(&kept[entry.region]);
            }
            if (number >> 60 == 0) {
                kept[entry.region] = entry;
            }
        } else {
            CHECK(count == -1 && errno == ENOENT);
            atomic_fetch_add(&missing, 1);
        }
        trigger(number >> 44 & 1);
        vfu_log(ctx, LOG_DEBUG, "worker at %#jx", (uintmax_t)place(entry.region));
    }
    return NULL;
}

static void
request(uint16_t cmd, const void *payload, size_t size, int pass)
{
    static char reply[512];
    struct vfio_user_header header;

    client_send_flags(client, 7, cmd, 0, payload, size, pass);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_recv(client, &header, reply, sizeof(reply));
    CHECK_EQ(header.error_no, 0);
}

static void
map(int region)
{
    struct vfio_user_dma_map message = {
        .argsz = sizeof(message), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .addr = place(region), .size = GUEST_SIZE };

    request(VFIO_USER_DMA_MAP, &message, sizeof(message), memory);
}

static void
unmap(int region)
{
    struct vfio_user_dma_unmap message = { .argsz = sizeof(message), .addr = place(region), .size = GUEST_SIZE };

    request(VFIO_USER_DMA_UNMAP, &message, sizeof(message), -1);
    atomic_fetch_add(&unmaps[region], 1);
}

static void
set_irq(uint32_t vector, int event)
{
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFU_DEV_MSIX_IRQ, .start = vector, .count = 1 };

    request(VFIO_USER_DEVICE_SET_IRQS, &set, sizeof(set), event);
}

static void
log_writes(bool start)
{
    struct {
        struct vfio_user_device_feature head;
        struct vfio_user_device_feature_dma_logging_control control;
    } message = { { .argsz = sizeof(message), .flags = VFIO_DEVICE_FEATURE_SET }, { .page_size = PAGE } };

    message.head.flags |= start ? VFIO_DEVICE_FEATURE_DMA_LOGGING_START : VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP;
    request(VFIO_USER_DEVICE_FEATURE, &message, start ? sizeof(message) : sizeof(message.head), -1);
}

static void
report(int region)
{
    struct {
        struct vfio_user_device_feature head;
        struct vfio_user_device_feature_dma_logging_report report;
    } message = { { .argsz = 256, .flags = VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_GET },
                  { .iova = place(region), .length = GUEST_SIZE, .page_size = PAGE } };

    request(VFIO_USER_DEVICE_FEATURE, &message, sizeof(message), -1);
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
    const vfu_migration_callbacks_t migration = { .version = VFU_MIGR_CALLBACKS_VERS, .transition = transition,
                                                  .read_data = no_data, .write_data = no_data };

    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_log(ctx, log_line, LOG_DEBUG), 0);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 64, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 2), 0);
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &migration), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
}

static void
regions_and_interrupts_come_and_go(void)
{
    pthread_t threads[THREADS];
    int event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    for (int i = 0; i < REGIONS; i++) {
        map(i);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)(i + 1)), 0);
    }
    /* Goes on until each kind of thing has happened, however threads are scheduled. */
    for (int i = 0; i < ROUNDS || atomic_load(&used) == 0 || atomic_load(&stale) == 0 ||
                    atomic_load(&missing) == 0 || atomic_load(&triggered) == 0 || atomic_load(&disabled) == 0 ||
                    atomic_load(&logged) == 0; i++) {
        int region = i % REGIONS;

        CHECK_EQ(vfu_setup_log(ctx, i % 2 ? log_line : NULL, LOG_DEBUG), 0);
        if (i % 16 == 0) {
            log_writes(true);
        }
        unmap(region);
        set_irq(i % 2, event);
        sched_yield();
        map(region);
        report(region);
        set_irq(i % 2, -1);
        if (i % 16 == 15) {
            log_writes(false);
        }
    }
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    close(event);
}

int
main(void)
{
    make_socket_folder();
    memory = memfd_create("guest", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(memory, GUEST_SIZE), 0);
    start();
    RUN(regions_and_interrupts_come_and_go);
    close(client);
    vfu_destroy_ctx(ctx);
    remove_socket_folder();
    fprintf(stderr, "%lu used, %lu stale, %lu missing; %lu triggered, %lu disabled\n", used, stale, missing, triggered,
            disabled);
    return check_result();
}
