/*
 * Large transfers. Two processes: the server waits inside the library, or, for
 * the floor, in a loop that receives as many bytes as the request has and sends
 * as many as the reply has. The device's callbacks do nothing with the bytes.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

#include <stdatomic.h>

enum { MAX = 4 << 20, PAGE = 4096, BAR_SIZE = 1 << 20, SCANS = 60 };
static const uint64_t GUEST_SIZE = 64ULL << 30;

static int client, bare;
static pid_t server, bare_server;
static char *buffer, *reply_buffer;
static struct series subject, floor_of;

static ssize_t
bar_access(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)c, (void)buf, (void)offset, (void)is_write;
    return count;
}

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

/* A write of 8 bytes has the device dirty every `offset`-th page of 64 GiB. */
static ssize_t
control_access(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    char sgl[40];
    uint64_t step;

    (void)offset;
    CHECK(is_write && count == sizeof(step));
    memcpy(&step, buf, sizeof(step));
    for (uint64_t page = 0; page < GUEST_SIZE / PAGE; page += step) {
        CHECK_EQ(vfu_addr_to_sgl(c, (void *)(page * PAGE), 64, (dma_sg_t *)sgl, 1, PROT_WRITE), 1);
        vfu_sgl_mark_dirty(c, (dma_sg_t *)sgl, 1);
    }
    return count;
}

static void
serve(void)
{
    static const vfu_migration_callbacks_t migration = {
        .version = VFU_MIGR_CALLBACKS_VERS, .transition = mig_transition, .read_data = mig_data, .write_data = mig_data };
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, 0, NULL, VFU_DEV_TYPE_PCI);
    int flags = VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM;

    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, flags, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_setup_region(ctx, 1, PAGE, control_access, flags, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 16, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &migration), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    CHECK_EQ(kill(getpid(), SIGSTOP), 0); /* the socket is there: see start() */
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
}

/* What the bare server is told, once per series; `scan` words are copied to the
 * reply and cleared before that is sent. */
struct task {
    uint64_t rounds, request, reply, scan;
};

static atomic_uint_fast64_t *bitmap;

static void
serve_bare(int socket)
{
    struct task task;

    while (recv(socket, &task, sizeof(task), MSG_WAITALL) == sizeof(task)) {
        while (task.rounds-- > 0) {
            for (uint64_t left = task.request; left > 0;) {
                ssize_t got = recv(socket, buffer, left, 0);
                CHECK(got > 0);
                left -= got;
            }
            if (task.scan > 0) {
                memcpy(reply_buffer, bitmap, task.scan * 8);
                memset((void *)bitmap, 0, task.scan * 8);
            }
            for (uint64_t left = task.reply; left > 0;) {
                ssize_t sent = send(socket, reply_buffer, left, MSG_NOSIGNAL);
                CHECK(sent > 0);
                left -= sent;
            }
        }
    }
}

static void
start(void)
{
    int pair[2], status;

    buffer = mmap(NULL, MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    reply_buffer = mmap(NULL, MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    bitmap = mmap(NULL, MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    CHECK(buffer != MAP_FAILED && reply_buffer != MAP_FAILED && bitmap != MAP_FAILED);
    fflush(stdout);
    server = fork();
    CHECK(server >= 0);
    if (server == 0) {
        serve();
        _exit(0);
    }
    CHECK_EQ(waitpid(server, &status, WUNTRACED), server);
    CHECK(WIFSTOPPED(status));
    CHECK_EQ(kill(server, SIGCONT), 0);
    client = client_connect();
    client_send_version(client);
    client_recv_version(client);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    bare_server = fork();
    CHECK(bare_server >= 0);
    if (bare_server == 0) {
        close(pair[0]);
        serve_bare(pair[1]);
        _exit(0);
    }
    close(pair[1]);
    bare = pair[0];
}

static void
send_all(int socket, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t sent = send(socket, (const char *)data + done, size - done, MSG_NOSIGNAL);
        CHECK(sent > 0);
        done += sent;
    }
}

/* One request and its reply, as bytes. */
static double
exchange(int socket, size_t request, size_t reply)
{
    uint64_t begin = bench_clock(CLOCK_MONOTONIC);

    send_all(socket, buffer, request);
    client_read(socket, reply_buffer, reply);
    return bench_clock(CLOCK_MONOTONIC) - begin;
}

/* The request is in `buffer`. */
static void
measure(const char *name, int rounds, size_t request, size_t reply, size_t scan, double target)
{
    struct task task = { rounds + 3, request, reply, scan };
    struct vfio_user_header header;

    /* Once, so that it doesn't wake the bare server just before each request. */
    send_all(bare, &task, sizeof(task));
    for (int i = 0; i < rounds + 3; i++) {
        double mine = exchange(client, request, reply), least;

        memcpy(&header, reply_buffer, sizeof(header));
        CHECK_EQ(header.error_no, 0);
        CHECK_EQ(header.msg_size, reply);
        least = exchange(bare, request, reply);
        if (i >= 3) {
            sample(&subject, mine);
            sample(&floor_of, least);
        }
    }
    report(name, &subject, &floor_of, 1, target);
}

/* Puts a request into `buffer`; returns its size. */
static size_t
make(uint16_t cmd, const void *payload, size_t size, size_t data)
{
    struct vfio_user_header header = { .msg_id = 1, .cmd = cmd, .msg_size = sizeof(header) + size + data };

    memcpy(buffer, &header, sizeof(header));
    memcpy(buffer + sizeof(header), payload, size);
    return header.msg_size;
}

static void
small_access(void)
{
    struct vfio_user_region_access access = { .offset = 0, .region = 0, .count = 4 };

    measure("round trip of a 4-byte read / bare", 20000, make(VFIO_USER_REGION_READ, &access, 16, 0), 36, 0, 0);
}

static void
large_access(uint32_t count, const char *read_name, const char *write_name)
{
    struct vfio_user_region_access access = { .offset = 0, .region = 0, .count = count };
    int rounds = count > 100000 ? 300 : 2000;

    measure(read_name, rounds, make(VFIO_USER_REGION_READ, &access, 16, 0), 32 + count, 0, -0.85);
    measure(write_name, rounds, make(VFIO_USER_REGION_WRITE, &access, 16, count), 32, 0, -0.85);
}

static void
command(uint16_t cmd, const void *payload, size_t size, size_t reply, int fd)
{
    struct vfio_user_header header;

    client_send_flags(client, 1, cmd, VFIO_USER_F_TYPE_COMMAND, payload, size, fd);
    CHECK_EQ(client_recv(client, &header, reply_buffer, MAX), reply);
    CHECK_EQ(header.error_no, 0);
}

static void
set_state(uint32_t state)
{
    struct {
        struct vfio_user_device_feature head;
        uint32_t state, data_fd;
    } request = { .head = { .argsz = sizeof(request), .flags = VFIO_DEVICE_FEATURE_SET | 2 }, .state = state };

    command(VFIO_USER_DEVICE_FEATURE, &request, sizeof(request), sizeof(request), -1);
}

static void
migration(void)
{
    uint32_t size = 1 << 20;
    struct vfio_user_mig_data data = { .argsz = sizeof(data) + size, .size = size };

    set_state(3); /* STOP_COPY */
    measure("migration read of 1 MiB / raw stream", 300, make(VFIO_USER_MIG_DATA_READ, &data, sizeof(data), 0),
            16 + sizeof(data) + size, 0, -0.85);
    set_state(4); /* RESUMING */
    measure("migration write of 1 MiB / raw stream", 300, make(VFIO_USER_MIG_DATA_WRITE, &data, sizeof(data), size),
            16, 0, -0.85);
    set_state(2); /* RUNNING */
}

/* Every report finds `step`-th pages dirty: they are dirtied before each. */
static void
scan(uint64_t step, uint64_t page_size, const char *name, double target)
{
    struct {
        struct vfio_user_device_feature head;
        uint64_t iova, length, page_size;
    } request = { .length = GUEST_SIZE, .page_size = page_size };
    size_t words = GUEST_SIZE / PAGE / 64, reply = 16 + sizeof(request) + GUEST_SIZE / page_size / 8;
    struct task task = { SCANS, 16 + sizeof(request), reply, words };

    request.head.argsz = reply - 16;
    request.head.flags = VFIO_DEVICE_FEATURE_GET | 8;
    send_all(bare, &task, sizeof(task));
    for (int i = 0; i < SCANS; i++) {
        struct {
            struct vfio_user_region_access access;
            uint64_t step;
        } dirty = { { .offset = 0, .region = 1, .count = 8 }, step };

        if (step > 0) {
            command(VFIO_USER_REGION_WRITE, &dirty, sizeof(dirty), 16, -1);
        }
        make(VFIO_USER_DEVICE_FEATURE, &request, sizeof(request), 0);
        sample(&subject, exchange(client, task.request, reply));
        sample(&floor_of, exchange(bare, task.request, reply));
    }
    report(name, &subject, &floor_of, 1, target);
}

static void
dirty_pages(void)
{
    struct {
        struct vfio_user_device_feature head;
        uint64_t page_size;
        uint32_t num_ranges, reserved;
    } start_logging = { .head = { .argsz = sizeof(start_logging), .flags = VFIO_DEVICE_FEATURE_SET | 6 },
                        .page_size = PAGE };
    struct vfio_user_dma_map map = { .argsz = sizeof(map), .size = GUEST_SIZE,
        .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE };
    int fd = memfd_create("guest", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, GUEST_SIZE), 0);
    command(VFIO_USER_DMA_MAP, &map, sizeof(map), 0, fd);
    command(VFIO_USER_DEVICE_FEATURE, &start_logging, sizeof(start_logging), sizeof(start_logging), -1);
    scan(0, PAGE, "64 GiB, nothing dirty / copy, clear, send", 1.5);
    scan(64, PAGE, "64 GiB, a page in 64 dirty / the same", 1.5);
    scan(64, 16 * PAGE, "64 GiB, the same by 64 KiB / the same", 2);
    scan(64, 512 * PAGE, "64 GiB, the same by 2 MiB / the same", 2);
}

int
main(void)
{
    bench_init();
    bench_quantile = 0.1; /* both processes have to be lucky with their processors */
    make_socket_folder();
    start();
    heading("two processes");
    small_access();
    large_access(64 << 10, "read of 64 KiB / raw stream", "write of 64 KiB / raw stream");
    large_access(1 << 20, "read of 1 MiB / raw stream", "write of 1 MiB / raw stream");
    migration();
    dirty_pages();
    close(client);
    close(bare);
    CHECK_EQ(waitpid(server, NULL, 0), server);
    CHECK_EQ(waitpid(bare_server, NULL, 0), bare_server);
    remove_socket_folder();
    return 0;
}
