/*
 * Many devices in one process: contexts that are made, attached by a client each,
 * polled once while idle, and destroyed. The floors are the system calls that this
 * takes at the least. Each context takes three descriptors, one of them its client's;
 * as many are made as the limit of the process allows, up to 10,000.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

#include <malloc.h>
#include <sys/resource.h>

enum { WANTED = 10000, FDS_EACH = 3, SPARE_FDS = 1200, BATCH = 10 };

static vfu_ctx_t *contexts[WANTED];
static int clients[WANTED];
static int listeners[WANTED], accepted[WANTED];
static struct sockaddr_un addresses[WANTED];

static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx, (void)buf, (void)offset, (void)is_write;
    return count;
}

static void
dma_nothing(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx, (void)info;
}

/* KiB of memory that no file has. */
static long
resident(void)
{
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    char line[256];
    long kib = 0;

    CHECK(file != NULL);
    while (fgets(line, sizeof(line), file) != NULL) {
        sscanf(line, "Anonymous: %ld kB", &kib);
    }
    fclose(file);
    return kib;
}

static int
how_many(void)
{
    struct rlimit limit;

    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur >= (rlim_t)WANTED * FDS_EACH + SPARE_FDS) {
        return WANTED;
    }
    CHECK(limit.rlim_cur > SPARE_FDS + FDS_EACH * BATCH);
    return ((int)limit.rlim_cur - SPARE_FDS) / FDS_EACH / BATCH * BATCH;
}

static void
make(int i)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, addresses[i].sun_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                                    VFU_DEV_TYPE_PCI);

    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_region(ctx, 0, 4096, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0),
             0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 16), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 1024, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    contexts[i] = ctx;
}

static void
floor_make(int i)
{
    listeners[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    CHECK_EQ(bind(listeners[i], (struct sockaddr *)&addresses[i], sizeof(addresses[i])), 0);
    CHECK_EQ(listen(listeners[i], 0), 0);
}

static void
connect_client(int i)
{
    clients[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK_EQ(connect(clients[i], (struct sockaddr *)&addresses[i], sizeof(addresses[i])), 0);
    client_send_version(clients[i]);
}

static void
attach(int i)
{
    CHECK_EQ(vfu_attach_ctx(contexts[i]), 0);
}

static void
floor_attach(int i)
{
    static char scratch[4096];
    struct iovec iov = { scratch, sizeof(scratch) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    accepted[i] = accept4(listeners[i], NULL, NULL, SOCK_CLOEXEC);
    CHECK(recvmsg(accepted[i], &msg, MSG_DONTWAIT) > 0);
    CHECK_EQ(send(accepted[i], scratch, 80, MSG_DONTWAIT | MSG_NOSIGNAL), 80);
}

static void
poll_once(int i)
{
    CHECK_EQ(vfu_run_ctx(contexts[i]), 0);
}

static void
floor_poll(int i)
{
    char scratch[16];
    struct iovec iov = { scratch, sizeof(scratch) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    CHECK_FAILS(recvmsg(accepted[i], &msg, MSG_DONTWAIT), EAGAIN);
}

static void
destroy(int i)
{
    vfu_destroy_ctx(contexts[i]);
}

static void
floor_destroy(int i)
{
    CHECK_EQ(close(accepted[i]), 0);
    CHECK_EQ(unlink(addresses[i].sun_path), 0);
    CHECK_EQ(close(listeners[i]), 0);
}

static void
each(struct series *series, void (*step)(int), int count)
{
    for (int i = 0; i < count; i += BATCH) {
        uint64_t begin = now();

        for (int k = i; k < i + BATCH; k++) {
            step(k);
        }
        sample(series, (now() - begin) * bench_tick);
    }
}

static void
receive_version(int i)
{
    client_recv_version(clients[i]);
}

static void
close_client(int i)
{
    close(clients[i]);
}

static void
without_time(void (*step)(int), int count)
{
    for (int i = 0; i < count; i++) {
        step(i);
    }
}

int
main(void)
{
    static struct series made, attached, polled, destroyed, floors[4];
    int count = how_many();
    long before, fresh, busy;

    bench_init();
    make_socket_folder();
    stay_on(0, true);
    for (int i = 0; i < WANTED; i++) {
        addresses[i].sun_family = AF_UNIX;
        snprintf(addresses[i].sun_path, sizeof(addresses[i].sun_path), "%s%d", socket_path, i);
        contexts[i] = NULL;
        clients[i] = listeners[i] = accepted[i] = -1;
    }
    /* What the process has once; and memory that a virtual machine's host may have
     * to find first. */
    memset(&made, 0xff, sizeof(made));
    made.count = 0;
    without_time(make, count);
    without_time(destroy, count);
    malloc_trim(0);

    each(&floors[0], floor_make, count);
    without_time(connect_client, count);
    each(&floors[1], floor_attach, count);
    each(&floors[2], floor_poll, count);
    each(&floors[3], floor_destroy, count);
    without_time(close_client, count);

    before = resident();
    each(&made, make, count);
    fresh = resident();
    without_time(connect_client, count);
    each(&attached, attach, count);
    without_time(receive_version, count);
    each(&polled, poll_once, count);
    busy = resident();
    each(&destroyed, destroy, count);
    without_time(close_client, count);

    heading(count == WANTED ? "contexts, 10,000 in one process" : "contexts, as many as descriptors allow");
    report("create, set up, realize", &made, &floors[0], BATCH, 0);
    report("attach", &attached, &floors[1], BATCH, 0);
    report("idle vfu_run_ctx, each another context", &polled, &floors[2], BATCH, 0);
    report("destroy", &destroyed, &floors[3], BATCH, 0);
    printf("%d contexts: %.1f KiB each, %.1f with a client; a gigabyte holds %.0f, or %.0f\n", count,
           (double)(fresh - before) / count, (double)(busy - before) / count,
           (double)(1 << 20) * count / (fresh - before), (double)(1 << 20) * count / (busy - before));
    remove_socket_folder();
    return 0;
}
