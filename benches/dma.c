/*
 * Mapping and unmapping, against the system calls that these are made of. Client
 * and server are one thread; only vfu_run_ctx() is measured.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

#include <sys/stat.h>
#include <sys/syscall.h>

enum { SIZE = 1 << 20, ROUNDS = 5000, KEPT = 256 };

static vfu_ctx_t *ctx;
static int client, memory_fd, bare[2];
static char scratch[65536];
static struct series subject, floor_of;
static double overhead;

static void
dma_nothing(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

static void
start(void)
{
    memory_fd = memfd_create("guest", MFD_CLOEXEC);
    CHECK(memory_fd >= 0);
    CHECK_EQ(ftruncate(memory_fd, (off_t)SIZE * (KEPT + 1)), 0);
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 1024, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, bare), 0);
    overhead = clock_cost();
}

static double
timed_run(void)
{
    uint64_t begin = now();
    int done = vfu_run_ctx(ctx);
    uint64_t end = now();

    CHECK_EQ(done, 1);
    return (end - begin) * bench_tick - overhead;
}

static void
send_map(int socket, uint64_t number)
{
    struct vfio_user_dma_map map = {
        .argsz = sizeof(map), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .offset = number * SIZE, .addr = number * SIZE, .size = SIZE };

    client_send_flags(socket, 1, VFIO_USER_DMA_MAP, VFIO_USER_F_TYPE_COMMAND, &map, sizeof(map), memory_fd);
}

static void
send_unmap(int socket, uint64_t number)
{
    struct vfio_user_dma_unmap unmap = { .argsz = sizeof(unmap), .addr = number * SIZE, .size = SIZE };

    client_send(socket, 1, VFIO_USER_DMA_UNMAP, &unmap, sizeof(unmap));
}

/* What a map consists of: the message with the descriptor, a look at the size of
 * the file (memory beyond its end would kill the process), the mapping, which is
 * to be in no core dump, the reply. If there is a region of the same file, its
 * descriptor is used (`known`), and the new one closed. */
static double
floor_map(void **mapping, int known, int *kept)
{
    char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
    struct iovec iov = { scratch, sizeof(scratch) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                          .msg_controllen = sizeof(control) };
    struct stat stat;
    pid_t pid = getpid();
    uint64_t begin = now(), end;
    int fd;

    CHECK(recvmsg(bare[1], &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) > 0);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    CHECK_EQ(fstat(fd, &stat), 0);
    *mapping = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)KEPT * SIZE);
    CHECK(*mapping != MAP_FAILED);
    CHECK_EQ(madvise(*mapping, SIZE, MADV_DONTDUMP), 0);
    if (known != -1) {
        CHECK_EQ(syscall(SYS_kcmp, pid, pid, 0 /* KCMP_FILE */, fd, known), 0);
        CHECK_EQ(close(fd), 0);
        fd = -1;
    }
    *kept = fd;
    CHECK_EQ(send(bare[1], scratch, 16, MSG_DONTWAIT | MSG_NOSIGNAL), 16);
    end = now();
    return (end - begin) * bench_tick - overhead;
}

static double
floor_unmap(void *mapping, int kept)
{
    uint64_t begin = now(), end;

    CHECK(recv(bare[1], scratch, sizeof(scratch), MSG_DONTWAIT) > 0);
    CHECK_EQ(munmap(mapping, SIZE), 0);
    if (kept != -1) {
        CHECK_EQ(close(kept), 0);
    }
    CHECK_EQ(send(bare[1], scratch, 40, MSG_DONTWAIT | MSG_NOSIGNAL), 40);
    end = now();
    return (end - begin) * bench_tick - overhead;
}

static void
map_and_unmap(int others)
{
    static struct series unmap, floor_of_unmap;
    char name[64];
    void *mapping;
    int kept;

    for (int i = 0; i < others; i++) {
        send_map(client, i);
        CHECK_EQ(vfu_run_ctx(ctx), 1);
        client_read(client, scratch, 16);
    }
    for (int i = 0; i < ROUNDS; i++) {
        send_map(client, KEPT);
        sample(&subject, timed_run());
        client_read(client, scratch, 16);
        send_map(bare[0], KEPT);
        sample(&floor_of, floor_map(&mapping, others > 0 ? memory_fd : -1, &kept));
        client_read(bare[0], scratch, 16);
        send_unmap(client, KEPT);
        sample(&unmap, timed_run());
        client_read(client, scratch, 40);
        send_unmap(bare[0], KEPT);
        sample(&floor_of_unmap, floor_unmap(mapping, kept));
        client_read(bare[0], scratch, 40);
    }
    snprintf(name, sizeof(name), "map beside %d others / its system calls", others);
    report(name, &subject, &floor_of, 1, -0.7);
    snprintf(name, sizeof(name), "unmap beside %d others / its system calls", others);
    report(name, &unmap, &floor_of_unmap, 1, -0.7);
}

int
main(void)
{
    bench_init();
    make_socket_folder();
    start();
    heading("DMA regions");
    map_and_unmap(0);
    map_and_unmap(KEPT);
    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
    remove_socket_folder();
    return 0;
}
