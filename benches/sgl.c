/*
 * Translating an address, getting the memory and putting it back: three calls of
 * the library, against three calls of functions that do nothing, and, where
 * regions are hit at random, a bare binary search of a sorted array besides.
 * Times are of the thread's processor time, so that it doesn't count if another
 * process takes the processor away.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "empty.h"

enum { PAGE = 4096, STRIDE = 2 * PAGE, ROUNDS = 60, BATCH = 20000, SEQUENCE = 1 << 14, MAX_REGIONS = 100000 };

static vfu_ctx_t *ctx;
static int client, memory_fd, nr_regions;
static uint64_t starts[MAX_REGIONS];
static uint32_t sequence[SEQUENCE];
static struct series subject, floor_of;

static void
dma_nothing(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

static int
mig_transition(vfu_ctx_t *c, vfu_migr_state_t state)
{
    (void)c, (void)state;
    return 0;
}

static ssize_t
mig_data(vfu_ctx_t *c, void *buf, uint64_t count)
{
    (void)c, (void)buf;
    return count;
}

static void
start(void)
{
    static const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS, .transition = mig_transition, .read_data = mig_data, .write_data = mig_data };

    memory_fd = memfd_create("guest", MFD_CLOEXEC);
    CHECK(memory_fd >= 0);
    CHECK_EQ(ftruncate(memory_fd, (off_t)MAX_REGIONS * STRIDE), 0);
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, MAX_REGIONS, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &migration), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
}

static void
command(uint16_t cmd, const void *payload, size_t size, int fd)
{
    struct vfio_user_header header;
    char reply[256];

    client_send_flags(client, 1, cmd, VFIO_USER_F_TYPE_COMMAND, payload, size, fd);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_recv(client, &header, reply, sizeof(reply));
    CHECK_EQ(header.error_no, 0);
}

/* Maps regions of a page, with gaps between them, up to this number. The file is
 * used from its end on downwards: so the kernel, which places mappings downwards,
 * can merge them, and its limit on their number isn't met. */
static void
map_up_to(int count)
{
    for (; nr_regions < count; nr_regions++) {
        struct vfio_user_dma_map map = {
            .argsz = sizeof(map), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
            .offset = (uint64_t)(MAX_REGIONS - 1 - nr_regions) * PAGE,
            .addr = (uint64_t)nr_regions * STRIDE + 0x100000, .size = PAGE };

        command(VFIO_USER_DMA_MAP, &map, sizeof(map), memory_fd);
        starts[nr_regions] = map.addr;
    }
    for (int i = 0; i < SEQUENCE; i++) {
        sequence[i] = rand() % nr_regions;
    }
}

static void
set_logging(bool on)
{
    struct {
        struct vfio_user_device_feature head;
        uint64_t page_size;
        uint32_t num_ranges, reserved;
    } request = { .head = { .argsz = sizeof(request) - (on ? 0 : 16),
                            .flags = VFIO_DEVICE_FEATURE_SET | (on ? 6 : 7) }, .page_size = PAGE };

    command(VFIO_USER_DEVICE_FEATURE, &request, request.head.argsz, -1);
}

static int
find(uint64_t address)
{
    int low = 0, high = nr_regions;

    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (starts[middle] <= address) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Nanoseconds per operation of one batch. */
static double
library_batch(bool random)
{
    char sgl[40];
    struct iovec iov;
    uint64_t begin = bench_clock(CLOCK_THREAD_CPUTIME_ID);

    for (int i = 0; i < BATCH; i++) {
        uint64_t address = starts[random ? sequence[i % SEQUENCE] : 0] + 64;

        if (vfu_addr_to_sgl(ctx, (void *)address, 64, (dma_sg_t *)sgl, 1, PROT_READ | PROT_WRITE) != 1 ||
            vfu_sgl_get(ctx, (dma_sg_t *)sgl, &iov, 1, 0) != 0) {
            abort();
        }
        vfu_sgl_put(ctx, (dma_sg_t *)sgl, &iov, 1);
    }
    return (double)(bench_clock(CLOCK_THREAD_CPUTIME_ID) - begin) / BATCH;
}

static double
floor_batch(bool random)
{
    char sgl[40];
    struct iovec iov;
    uint64_t begin = bench_clock(CLOCK_THREAD_CPUTIME_ID);

    for (int i = 0; i < BATCH; i++) {
        uint64_t address = starts[random ? sequence[i % SEQUENCE] : 0] + 64;

        if (random && find(address) >= nr_regions) {
            abort();
        }
        if (empty_addr_to_sgl(ctx, (void *)address, 64, sgl, 1, PROT_READ | PROT_WRITE) != 1 ||
            empty_sgl_get(ctx, sgl, &iov, 1, 0) != 0) {
            abort();
        }
        empty_sgl_put(ctx, sgl, &iov, 1);
    }
    return (double)(bench_clock(CLOCK_THREAD_CPUTIME_ID) - begin) / BATCH;
}

static void
one_thread(bool random, bool logging, double target)
{
    char name[64];

    for (int i = 0; i < ROUNDS; i++) {
        sample(&subject, library_batch(random));
        sample(&floor_of, floor_batch(random));
    }
    snprintf(name, sizeof(name), "%6d region%s, %s%s", nr_regions, nr_regions == 1 ? "" : "s",
             random ? "random" : "the same", logging ? ", logging" : "");
    report(name, &subject, &floor_of, 1, target);
}

static atomic_bool stop, running;

static void *
other_thread(void *random)
{
    stay_on(0, true);
    while (!stop) {
        library_batch(random != NULL);
        running = true;
    }
    return NULL;
}

/* A thread's own time while another does the same, against it alone. */
static void
two_threads(bool random, bool logging)
{
    char name[64];

    for (int i = 0; i < ROUNDS; i++) {
        pthread_t other;

        sample(&floor_of, library_batch(random));
        stop = running = false;
        CHECK_EQ(pthread_create(&other, NULL, other_thread, random ? (void *)1 : NULL), 0);
        while (!running) {
            sched_yield();
        }
        sample(&subject, library_batch(random));
        stop = true;
        CHECK_EQ(pthread_join(other, NULL), 0);
    }
    snprintf(name, sizeof(name), "%6d region%s, %s%s: two threads / one", nr_regions, nr_regions == 1 ? "" : "s",
             random ? "random" : "the same", logging ? ", logging" : "");
    report(name, &subject, &floor_of, 1, 1.1);
}

int
main(void)
{
    static const int counts[] = { 1, 16, 1000, MAX_REGIONS };

    bench_init();
    make_socket_folder();
    start();
    stay_on(0, false);
    heading("translate + get + put of an entry");
    for (int i = 0; i < 4; i++) {
        map_up_to(counts[i]);
        for (int logging = 0; logging < 2; logging++) {
            if (logging) {
                set_logging(true);
            }
            one_thread(false, logging, logging ? 0 : 1.6);
            one_thread(true, logging, counts[i] == 1000 && !logging ? 2.5 : 0);
            if (counts[i] == 1000) {
                two_threads(false, logging);
                two_threads(true, logging);
            }
        }
        set_logging(false);
    }
    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
    remove_socket_folder();
    return 0;
}
