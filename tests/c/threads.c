/*
 * Threads: one that waits in the library is interrupted or cancelled; others use
 * guest memory and interrupts beside the one that runs the context.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

#include "client.h"

enum { GUEST = 0x100000, GUEST_SIZE = 0x10000, BAR_SIZE = 0x100000, THREADS = 4 };

static void
dma_nothing(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

/* What is at an offset of the region: nowhere the same for long. */
static char
pattern(size_t offset)
{
    return offset ^ offset >> 8 ^ offset >> 16;
}

/* Its replies are larger than a socket takes at once. */
static ssize_t
patterned(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)c;
    for (size_t i = 0; i < count && !is_write; i++) {
        buf[i] = pattern(offset + i);
    }
    return count;
}

static vfu_ctx_t *
create(int flags)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, flags, NULL, VFU_DEV_TYPE_PCI);

    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 64, dma_nothing, dma_nothing), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, THREADS), 0);
    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, patterned,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    return ctx;
}

/* Waits until a thread sleeps in a system call. */
static void
await_sleep(pid_t thread)
{
    char path[64], text[512], state = '?';

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", thread);
    while (state != 'S') {
        FILE *file = fopen(path, "r");
        CHECK(file != NULL);
        CHECK(fgets(text, sizeof(text), file) != NULL);
        fclose(file);
        state = strrchr(text, ')')[2];
        sched_yield();
    }
}

struct waiter {
    vfu_ctx_t *ctx;
    bool asynchronous;
    atomic_int thread;
    int result, error;
};

static void *
attach_in_thread(void *argument)
{
    struct waiter *waiter = argument;

    if (waiter->asynchronous) {
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    }
    atomic_store(&waiter->thread, gettid());
    waiter->result = vfu_attach_ctx(waiter->ctx);
    waiter->error = errno;
    return NULL;
}

static void *
run_in_thread(void *argument)
{
    struct waiter *waiter = argument;

    if (waiter->asynchronous) {
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    }
    atomic_store(&waiter->thread, gettid());
    waiter->result = vfu_run_ctx(waiter->ctx);
    waiter->error = errno;
    return NULL;
}

static pthread_t
start(struct waiter *waiter, void *(*function)(void *))
{
    pthread_t thread;

    atomic_store(&waiter->thread, 0);
    CHECK_EQ(pthread_create(&thread, NULL, function, waiter), 0);
    while (atomic_load(&waiter->thread) == 0) {
        sched_yield();
    }
    await_sleep(atomic_load(&waiter->thread));
    return thread;
}

static void
attach_client(struct waiter *waiter, int *client)
{
    pthread_t thread;

    atomic_store(&waiter->thread, 0);
    CHECK_EQ(pthread_create(&thread, NULL, attach_in_thread, waiter), 0);
    *client = client_connect();
    client_send_version(*client);
    client_recv_version(*client);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(waiter->result, 0);
}

static void
on_signal(int number)
{
    (void)number;
}

static void
signals_end_waiting(void)
{
    struct sigaction action = { .sa_handler = on_signal }; /* no SA_RESTART */
    static struct {
        struct vfio_user_region_access access;
        char data[BAR_SIZE];
    } large;
    struct waiter waiter = { .ctx = create(0) };
    pthread_t thread;
    int client;

    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    thread = start(&waiter, attach_in_thread);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    CHECK(waiter.result == -1 && waiter.error == EINTR);

    /* Half a version message, then a signal: what has arrived is kept. */
    client = client_connect();
    CHECK_EQ(send(client, "\1\0\1\0\24\0", 6, 0), 6);
    thread = start(&waiter, attach_in_thread);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    CHECK(waiter.result == -1 && waiter.error == EINTR);
    CHECK_EQ(send(client, "\0\0\0\0\0\0\0\0\0\0\0\0\2\0", 14, 0), 14);
    CHECK_EQ(vfu_attach_ctx(waiter.ctx), 0);
    client_recv_version(client);

    thread = start(&waiter, run_in_thread);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    CHECK(waiter.result == -1 && waiter.error == EINTR);

    /* A client that reads no replies: what is unsent is kept. */
    client_send_region_read(client, 1, VFU_PCI_DEV_BAR0_REGION_IDX, 0, BAR_SIZE);
    thread = start(&waiter, run_in_thread);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    CHECK(waiter.result == -1 && waiter.error == EINTR);
    thread = start(&waiter, run_in_thread);
    client_reply(client, 1, VFIO_USER_REGION_READ, &large, sizeof(large));
    close(client);
    pthread_join(thread, NULL);
    CHECK(waiter.result == -1 && waiter.error == ENOTCONN);
    vfu_destroy_ctx(waiter.ctx);
}

/* Set: the thread is cancelled as its recvmsg comes back with something. */
static _Thread_local bool late;

/* The library's, too. */
ssize_t
recvmsg(int fd, struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, struct msghdr *, int);
    ssize_t got;

    if (real == NULL) {
        real = (ssize_t (*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg");
    }
    got = real(fd, message, flags);
    if (late && got > 0) {
        pthread_exit(PTHREAD_CANCELED);
    }
    return got;
}

/* Set: the thread is not cancelled in a send that has moved something, as with a newer glibc. */
static _Thread_local bool unhurried;

/* The library's, too. */
ssize_t
send(int fd, const void *bytes, size_t length, int flags)
{
    static ssize_t (*real)(int, const void *, size_t, int);
    ssize_t got;
    int state;

    if (real == NULL) {
        real = (ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");
    }
    if (!unhurried) {
        return real(fd, bytes, length, flags);
    }
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    got = real(fd, bytes, length, flags);
    pthread_setcancelstate(state, NULL);
    return got;
}

static int
open_descriptors(void)
{
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;

    CHECK(folder != NULL);
    while (readdir(folder) != NULL) {
        count++;
    }
    closedir(folder);
    return count;
}

static void *
attach_late(void *argument)
{
    late = true;
    return attach_in_thread(argument);
}

static void *
run_late(void *argument)
{
    late = true;
    return run_in_thread(argument);
}

/*
 * A thread can be cancelled when the kernel has taken a message from the socket for
 * it and nobody has seen that: the connection is lost then, with its descriptors.
 */
static void
a_thread_cancelled_with_a_message_loses_the_client(void)
{
    struct waiter waiter = { .ctx = create(0) };
    const struct vfio_user_dma_map map = { .argsz = sizeof(map), .addr = GUEST, .size = 0x1000,
        .flags = VFIO_USER_F_DMA_REGION_READ };
    int client, memory = memfd_create("guest", MFD_CLOEXEC), before;
    pthread_t thread;
    void *result;

    CHECK_EQ(ftruncate(memory, 0x1000), 0);
    before = open_descriptors();
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(pthread_create(&thread, NULL, attach_late, &waiter), 0);
    CHECK_EQ(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_FAILS(vfu_attach_ctx(waiter.ctx), ECONNRESET);
    close(client);
    CHECK_EQ(open_descriptors(), before);

    attach_client(&waiter, &client);
    thread = start(&waiter, run_late);
    client_send_flags(client, 1, VFIO_USER_DMA_MAP, 0, &map, sizeof(map), memory);
    CHECK_EQ(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK_EQ(open_descriptors(), before + 3);
    CHECK_FAILS(vfu_run_ctx(waiter.ctx), ENOTCONN);
    close(client);
    CHECK_EQ(open_descriptors(), before);

    /* One that took none is not missed. */
    attach_client(&waiter, &client);
    thread = start(&waiter, run_in_thread);
    CHECK_EQ(pthread_cancel(thread), 0);
    CHECK_EQ(pthread_join(thread, &result), 0);
    client_send_flags(client, 1, VFIO_USER_DMA_MAP, 0, &map, sizeof(map), memory);
    thread = start(&waiter, run_in_thread);
    client_reply(client, 1, VFIO_USER_DMA_MAP, NULL, 0);
    close(client);
    pthread_join(thread, NULL);
    CHECK(waiter.result == -1 && waiter.error == ENOTCONN);
    CHECK_EQ(open_descriptors(), before);
    close(memory);
    vfu_destroy_ctx(waiter.ctx);
}

/* The calls in which a blocking context waits. */
enum wait { FOR_A_CLIENT, FOR_ITS_VERSION, FOR_A_REQUEST, FOR_ROOM, WAITS };

/*
 * After a thread was cancelled in the middle of a reply: a glibc that lets what has moved something come
 * back first (2.41 and later) leaves it known how far that got, and the client gets the rest; otherwise
 * nobody knows, and the connection is lost. Returns whether it is the former.
 */
static bool
the_rest_arrives_or_the_connection_ends(struct waiter *waiter, int client)
{
    const size_t head = sizeof(struct vfio_user_header) + sizeof(struct vfio_user_region_access), whole = head + BAR_SIZE;
    static char bytes[BAR_SIZE + 4096];
    struct waiter next = { .ctx = waiter->ctx };
    const struct vfio_user_header *header = (const struct vfio_user_header *)bytes;
    pthread_t thread;
    size_t count = 0;
    ssize_t got;

    CHECK_EQ(pthread_create(&thread, NULL, run_in_thread, &next), 0);
    while (count < whole && (got = recv(client, bytes + count, sizeof(bytes) - count, 0)) > 0) {
        count += got;
    }
    shutdown(client, SHUT_WR);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(next.result == -1 && next.error == ENOTCONN);
    while ((got = recv(client, bytes + count, sizeof(bytes) - count, 0)) > 0) {
        count += got;
    }
    CHECK(count >= head && count <= whole);
    CHECK_EQ(header->msg_id, 1);
    CHECK_EQ(header->msg_size, whole);
    for (size_t i = head; i < count; i++) {
        CHECK_EQ(bytes[i], pattern(i - head));
    }
    return count == whole;
}

/* Cancels a thread that waits; the context can be destroyed then. */
static void
cancel(enum wait wait, bool asynchronous)
{
    struct waiter waiter = { .ctx = create(0), .asynchronous = asynchronous };
    int client = -1;
    pthread_t thread;
    void *result;

    if (wait == FOR_ITS_VERSION) {
        client = client_connect();
        CHECK_EQ(send(client, "\1\0\1\0\24\0", 6, 0), 6);
    } else if (wait > FOR_ITS_VERSION) {
        attach_client(&waiter, &client);
    }
    if (wait == FOR_ROOM) {
        client_send_region_read(client, 1, VFU_PCI_DEV_BAR0_REGION_IDX, 0, BAR_SIZE);
    }
    thread = start(&waiter, wait < FOR_A_REQUEST ? attach_in_thread : run_in_thread);
    CHECK_EQ(pthread_cancel(thread), 0);
    CHECK_EQ(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    if (wait == FOR_ROOM) {
        the_rest_arrives_or_the_connection_ends(&waiter, client);
    }
    vfu_destroy_ctx(waiter.ctx); /* nothing is locked */
    if (client != -1) {
        static char rest[BAR_SIZE];
        ssize_t got;

        do { /* part of a reply, perhaps, then the end in good order */
            got = recv(client, rest, sizeof(rest), 0);
        } while (got > 0);
        CHECK_EQ(got, 0);
        close(client);
    }
}

static void
a_waiting_thread_can_be_cancelled(void)
{
    for (enum wait wait = 0; wait < WAITS; wait++) {
        cancel(wait, false);
        cancel(wait, true);
    }
}

static void *
run_unhurried(void *argument)
{
    unhurried = true;
    return run_in_thread(argument);
}

/* A send that has moved something comes back before the thread is cancelled, interrupted: it ends in that call. */
static void
a_thread_cancelled_where_its_send_comes_back_ends_in_the_call(void)
{
    struct sigaction action = { .sa_handler = on_signal }; /* no SA_RESTART */
    struct waiter waiter = { .ctx = create(0) };
    pthread_t thread;
    void *result;
    int client;

    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    attach_client(&waiter, &client);
    client_send_region_read(client, 1, VFU_PCI_DEV_BAR0_REGION_IDX, 0, BAR_SIZE);
    thread = start(&waiter, run_unhurried);
    CHECK_EQ(pthread_cancel(thread), 0);
    CHECK_EQ(pthread_kill(thread, SIGUSR1), 0);
    CHECK_EQ(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    CHECK(the_rest_arrives_or_the_connection_ends(&waiter, client));
    vfu_destroy_ctx(waiter.ctx);
    close(client);
}

static int enter[2], leave[2];

/* Says that it runs, and waits in a call in which threads can be cancelled. */
static ssize_t
slow_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx, (void)offset, (void)is_write;
    CHECK_EQ(write(enter[1], "", 1), 1);
    CHECK_EQ(read(leave[0], buf, 1), 1);
    return count;
}

static void
a_callback_is_never_cut_short(void)
{
    for (int asynchronous = 0; asynchronous < 2; asynchronous++) {
        struct waiter waiter = { .ctx = create(0), .asynchronous = asynchronous };
        struct region_message reply;
        pthread_t thread;
        void *result;
        int client;
        char c;

        CHECK_EQ(pipe(enter), 0);
        CHECK_EQ(pipe(leave), 0);
        CHECK_EQ(vfu_setup_region(waiter.ctx, VFU_PCI_DEV_BAR1_REGION_IDX, 0x1000, slow_access,
                                  VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
        attach_client(&waiter, &client);
        waiter.result = 77;
        thread = start(&waiter, run_in_thread);
        client_send_region_read(client, 1, VFU_PCI_DEV_BAR1_REGION_IDX, 0, 4);
        CHECK_EQ(read(enter[0], &c, 1), 1);
        CHECK_EQ(pthread_cancel(thread), 0);
        await_sleep(atomic_load(&waiter.thread));
        CHECK_EQ(write(leave[1], "", 1), 1);
        /* The request is finished and answered; then the thread ends. (What of, a
         * glibc may forget: pthread_setcancelstate() of 2.36 does.) */
        client_reply(client, 1, VFIO_USER_REGION_READ, &reply, sizeof(reply.access) + 4);
        CHECK_EQ(pthread_join(thread, &result), 0);
        CHECK_EQ(waiter.result, 77); /* vfu_run_ctx() did not return */
        vfu_destroy_ctx(waiter.ctx);
        CHECK_EQ(recv(client, &c, 1, 0), 0);
        close(client);
        for (int i = 0; i < 2; i++) {
            close(enter[i]);
            close(leave[i]);
        }
    }
}

/* Where a thread that has been cancelled ends, unless it is kept from that. */
static ssize_t
cancellable_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx, (void)buf, (void)offset, (void)is_write;
    pthread_testcancel();
    return count;
}

static void *
run_cancelled(void *argument)
{
    struct waiter *waiter = argument;

    pthread_cancel(pthread_self());
    waiter->result = vfu_run_ctx(waiter->ctx);
    pthread_testcancel();
    return NULL;
}

static int
run_and_be_cancelled(struct waiter *waiter)
{
    pthread_t thread;
    void *result;

    waiter->result = 77;
    CHECK_EQ(pthread_create(&thread, NULL, run_cancelled, waiter), 0);
    CHECK_EQ(pthread_join(thread, &result), 0);
    CHECK(result == PTHREAD_CANCELED);
    return waiter->result;
}

/* With nothing to do neither: it does not wait. */
static void
a_call_that_does_not_wait_returns_in_a_cancelled_thread(void)
{
    struct waiter waiter = { .ctx = create(LIBVFIO_USER_FLAG_ATTACH_NB) };
    struct region_message reply;
    uint32_t value = 5;
    int client = client_connect();

    CHECK_EQ(vfu_setup_region(waiter.ctx, VFU_PCI_DEV_BAR1_REGION_IDX, 0x1000, cancellable_access,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(waiter.ctx), 0);
    client_recv_version(client);
    CHECK_EQ(run_and_be_cancelled(&waiter), 0);
    client_send_region_read(client, 1, VFU_PCI_DEV_BAR1_REGION_IDX, 0, 4);
    CHECK_EQ(run_and_be_cancelled(&waiter), 1);
    client_reply(client, 1, VFIO_USER_REGION_READ, &reply, sizeof(reply.access) + 4);
    for (int i = 0; i < 2; i++) {
        client_send_region_write(client, i, VFIO_USER_F_NO_REPLY, VFU_PCI_DEV_BAR1_REGION_IDX, 0, &value, 4);
    }
    /* In one call, or in two if the first takes long (under valgrind, or emulated). */
    for (int done = 0, more; done < 2; done += more) {
        more = run_and_be_cancelled(&waiter);
        CHECK(more == 1 || (more == 2 && done == 0));
    }
    CHECK_EQ(run_and_be_cancelled(&waiter), 0);
    vfu_destroy_ctx(waiter.ctx);
    close(client);
}

struct worker {
    vfu_ctx_t *ctx;
    int number;
    atomic_bool *stop;
    unsigned long good, stale;
};

/* What SPDK's threads do for each request. */
static void *
use_guest_memory(void *argument)
{
    struct worker *worker = argument;
    char sg[40];
    struct iovec iov;

    while (!atomic_load(worker->stop) || worker->good == 0) {
        vfu_dma_addr_t at = (void *)(uintptr_t)(GUEST + worker->number * 0x1000);

        if (vfu_addr_to_sgl(worker->ctx, at, 0x1000, (dma_sg_t *)sg, 1, PROT_READ | PROT_WRITE) == 1 &&
            vfu_sgl_get(worker->ctx, (dma_sg_t *)sg, &iov, 1, 0) == 0) {
            CHECK_EQ(iov.iov_len, 0x1000);
            ((volatile char *)iov.iov_base)[worker->number]++;
            vfu_sgl_put(worker->ctx, (dma_sg_t *)sg, &iov, 1);
            worker->good++;
        } else {
            CHECK(errno == ENOENT || errno == EINVAL);
            worker->stale++;
        }
        CHECK_EQ(vfu_irq_trigger(worker->ctx, worker->number), 0);
    }
    return NULL;
}

static void
map(vfu_ctx_t *ctx, int client, uint16_t id, uint64_t addr, int fd)
{
    struct vfio_user_dma_map request = {
        .argsz = sizeof(request), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .addr = addr, .size = GUEST_SIZE };

    client_send_flags(client, id, VFIO_USER_DMA_MAP, 0, &request, sizeof(request), fd);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, id, VFIO_USER_DMA_MAP, NULL, 0);
}

static void
unmap(vfu_ctx_t *ctx, int client, uint16_t id, uint64_t addr)
{
    struct vfio_user_dma_unmap request = { .argsz = sizeof(request), .addr = addr, .size = GUEST_SIZE };

    client_send(client, id, VFIO_USER_DMA_UNMAP, &request, sizeof(request));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, id, VFIO_USER_DMA_UNMAP, &request, sizeof(request));
}

static void
many_threads_use_guest_memory(void)
{
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    atomic_bool stop = false;
    struct waiter waiter = { .ctx = create(LIBVFIO_USER_FLAG_ATTACH_NB) };
    struct vfio_irq_set set = {
        .argsz = sizeof(set), .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        .index = VFU_DEV_MSIX_IRQ, .count = 1 };
    int events[THREADS], client = client_connect(), fd = memfd_create("guest", MFD_CLOEXEC);

    CHECK_EQ(ftruncate(fd, GUEST_SIZE), 0);
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(waiter.ctx), 0);
    client_recv_version(client);
    map(waiter.ctx, client, 1, GUEST, fd);
    for (int i = 0; i < THREADS; i++) {
        events[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        set.start = i;
        client_send_flags(client, 2, VFIO_USER_DEVICE_SET_IRQS, 0, &set, sizeof(set), events[i]);
        CHECK_EQ(vfu_run_ctx(waiter.ctx), 1);
        client_reply(client, 2, VFIO_USER_DEVICE_SET_IRQS, NULL, 0);
        workers[i] = (struct worker) { .ctx = waiter.ctx, .number = i, .stop = &stop };
        CHECK_EQ(pthread_create(&threads[i], NULL, use_guest_memory, &workers[i]), 0);
    }
    /* Other regions come and go meanwhile, all round the one in use. */
    for (int i = 0; i < 300; i++) {
        map(waiter.ctx, client, 3, i % 2 ? GUEST - GUEST_SIZE : GUEST + GUEST_SIZE, fd);
        map(waiter.ctx, client, 4, GUEST + 16 * GUEST_SIZE, fd);
        unmap(waiter.ctx, client, 5, i % 2 ? GUEST - GUEST_SIZE : GUEST + GUEST_SIZE);
        unmap(waiter.ctx, client, 6, GUEST + 16 * GUEST_SIZE);
    }
    atomic_store(&stop, true);
    for (int i = 0; i < THREADS; i++) {
        uint64_t triggers;
        unsigned char count;

        CHECK_EQ(pthread_join(threads[i], NULL), 0);
        CHECK_EQ(workers[i].stale, 0);
        CHECK_EQ(pread(fd, &count, 1, i * 0x1000 + i), 1);
        CHECK_EQ(count, (unsigned char)workers[i].good);
        CHECK_EQ(read(events[i], &triggers, sizeof(triggers)), sizeof(triggers));
        CHECK_EQ(triggers, workers[i].good);
        close(events[i]);
    }
    close(client);
    close(fd);
    vfu_destroy_ctx(waiter.ctx);
}

struct reader {
    vfu_ctx_t *ctx;
    bool asynchronous;
    atomic_int thread;
    int result, error;
    char data[32];
};

static void *
read_in_thread(void *argument)
{
    struct reader *reader = argument;
    uint64_t sg[5];

    if (reader->asynchronous) {
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    }
    CHECK_EQ(vfu_addr_to_sgl(reader->ctx, (void *)GUEST, sizeof(reader->data), (dma_sg_t *)sg, 1, PROT_READ), 1);
    atomic_store(&reader->thread, gettid());
    reader->result = vfu_sgl_read(reader->ctx, (dma_sg_t *)sg, 1, reader->data, 0);
    reader->error = errno;
    return NULL;
}

struct dma_message {
    struct vfio_user_header header;
    struct vfio_user_dma_region_access access;
    char data[32];
};

/* Starts a thread that waits for memory, and takes what it asks the client. */
static pthread_t
start_reader(struct reader *reader, int client, struct dma_message *message)
{
    pthread_t thread;

    reader->result = 77;
    atomic_store(&reader->thread, 0);
    CHECK_EQ(pthread_create(&thread, NULL, read_in_thread, reader), 0);
    client_read(client, message, sizeof(*message) - sizeof(message->data));
    CHECK_EQ(message->header.cmd, VFIO_USER_DMA_READ);
    CHECK_EQ(message->access.count, sizeof(message->data));
    while (atomic_load(&reader->thread) == 0) {
        sched_yield();
    }
    await_sleep(atomic_load(&reader->thread));
    return thread;
}

static void
answer(int client, struct dma_message *message, char byte)
{
    message->header.flags = VFIO_USER_F_TYPE_REPLY;
    message->header.msg_size = sizeof(*message);
    memset(message->data, byte, sizeof(message->data));
    CHECK_EQ(send(client, message, sizeof(*message), MSG_NOSIGNAL), sizeof(*message));
}

/* Whatever ends a wait for the client's memory, the connection goes on. */
static void
waiting_ends(bool with_twin)
{
    static struct reader reader;
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    struct dma_message late[3], message;
    struct region_message reply;
    pthread_t thread;
    void *result;
    int client, asked;

    reader.ctx = create(LIBVFIO_USER_FLAG_ATTACH_NB);
    client = client_connect();
    if (with_twin) {
        client_send_twin_version(client);
    } else {
        client_send_version(client);
    }
    CHECK_EQ(vfu_attach_ctx(reader.ctx), 0);
    if (with_twin) {
        asked = client_recv_twin_version(client);
    } else {
        client_recv_version(client);
        asked = client;
    }
    map(reader.ctx, client, 1, GUEST, -1);
    for (int asynchronous = 0; asynchronous < 2; asynchronous++) {
        reader.asynchronous = asynchronous;
        thread = start_reader(&reader, asked, &late[asynchronous]);
        CHECK_EQ(pthread_cancel(thread), 0);
        CHECK_EQ(pthread_join(thread, &result), 0);
        CHECK(result == PTHREAD_CANCELED);
        CHECK_EQ(reader.result, 77); /* vfu_sgl_read() did not return */
    }
    reader.asynchronous = false;
    /* By a handler that restarts other calls, too. */
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    thread = start_reader(&reader, asked, &late[2]);
    pthread_kill(thread, SIGUSR1);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(reader.result == -1 && reader.error == EINTR);

    /* The answers that come now are nobody's. */
    answer(asked, &late[0], 'a');
    answer(asked, &late[2], 'b');
    client_send_region_read(client, 2, VFU_PCI_DEV_BAR0_REGION_IDX, 0, 4);
    CHECK_EQ(vfu_run_ctx(reader.ctx), 1);
    client_reply(client, 2, VFIO_USER_REGION_READ, &reply, sizeof(reply.access) + 4);
    thread = start_reader(&reader, asked, &message);
    answer(asked, &late[1], 'c');
    answer(asked, &message, 'd');
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(reader.result, 0);
    for (size_t i = 0; i < sizeof(reader.data); i++) {
        CHECK_EQ(reader.data[i], 'd');
    }
    vfu_destroy_ctx(reader.ctx);
    close(client);
    if (with_twin) {
        close(asked);
    }
}

static void
waiting_for_memory_ends(void)
{
    waiting_ends(false);
    waiting_ends(true);
}

static atomic_int signals;

static void
count_signal(int number)
{
    (void)number;
    atomic_fetch_add(&signals, 1);
}

#ifndef __SANITIZE_THREAD__
/* As the manual says: signal() makes handlers that do not end these waits. */
static void
a_handler_that_restarts_does_not_end_waiting_for_a_client(void)
{
    struct waiter waiter = { .ctx = create(0) };
    pthread_t thread;
    int client;

    signal(SIGUSR1, count_signal);
    thread = start(&waiter, attach_in_thread);
    pthread_kill(thread, SIGUSR1);
    while (atomic_load(&signals) == 0) {
        sched_yield();
    }
    await_sleep(atomic_load(&waiter.thread));
    client = client_connect();
    client_send_version(client);
    client_recv_version(client);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(waiter.result, 0);
    close(client);
    vfu_destroy_ctx(waiter.ctx);
}
#endif

int
main(void)
{
    make_socket_folder();
    RUN(signals_end_waiting);
    RUN(a_waiting_thread_can_be_cancelled);
    RUN(a_thread_cancelled_where_its_send_comes_back_ends_in_the_call);
    RUN(a_thread_cancelled_with_a_message_loses_the_client);
    RUN(a_callback_is_never_cut_short);
    RUN(a_call_that_does_not_wait_returns_in_a_cancelled_thread);
    RUN(waiting_for_memory_ends);
#ifndef __SANITIZE_THREAD__ /* delivers signals when it sees fit, and then the call has ended */
    RUN(a_handler_that_restarts_does_not_end_waiting_for_a_client);
#endif
    RUN(many_threads_use_guest_memory);
    remove_socket_folder();
    return check_result();
}
