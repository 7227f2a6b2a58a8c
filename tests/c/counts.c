/*
 * What a context costs, from its making to its end, and a request: at most one
 * receive and one send, and no allocation. An
 * idle poll costs one system call. A map asks the kernel nothing that is known. A
 * DMA message over a second socket is one send and one receive, and so is, in a
 * blocking context, a read that is longer than a socket takes at once.
 *
 * Allocations are counted by functions of this program that stand in front of the
 * C library's. System calls are counted from outside: run under strace by
 * count-syscalls.py, which looks at what lies between the marks. Each mark is a
 * system call that nothing else makes.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "client.h"

enum { BAR_SIZE = 0x10000, ROUNDS = 50, BURST = 64, PAGE = 4096, HUGE = 1 << 20 };

#include "bar.h"

static atomic_ulong allocations;

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t align, size_t size);

void *
malloc(size_t size)
{
    allocations++;
    return __libc_malloc(size);
}

void *
calloc(size_t n, size_t size)
{
    allocations++;
    return __libc_calloc(n, size);
}

void *
realloc(void *old, size_t size)
{
    allocations++;
    return __libc_realloc(old, size);
}

void *
aligned_alloc(size_t align, size_t size)
{
    allocations++;
    return __libc_memalign(align, size);
}

int
posix_memalign(void **out, size_t align, size_t size)
{
    allocations++;
    *out = __libc_memalign(align, size);
    return *out == NULL ? ENOMEM : 0;
}

static vfu_ctx_t *ctx;
static int client;

static int
transition(vfu_ctx_t *c, vfu_migr_state_t state)
{
    (void)c, (void)state;
    return 0;
}

static ssize_t
read_data(vfu_ctx_t *c, void *buf, uint64_t count)
{
    (void)c;
    memset(buf, 0x5a, count);
    return count;
}

static ssize_t
write_data(vfu_ctx_t *c, void *buf, uint64_t count)
{
    (void)c;
    for (uint64_t i = 0; i < count; i += 4096) {
        CHECK_EQ(((char *)buf)[i], (char)(i >> 12));
    }
    return count;
}

/* Says to whoever traces this program that the calls up to the next mark belong
 * to this kind of request. getpriority() of a negative "who" is used by nobody. */
static void
mark(int what)
{
    (void)syscall(SYS_getpriority, -what, 0);
}

enum { MARK_END = 1, MARK_READ, MARK_WRITE, MARK_BURST, MARK_IDLE, MARK_LARGE, MARK_MAP_FD, MARK_UNMAP_FD, MARK_MAP, MARK_UNMAP,
       MARK_DMA_READ, MARK_DMA_WRITE, MARK_HUGE, MARK_CREATE, MARK_SET_UP, MARK_ATTACH, MARK_ATTACH_TWIN, MARK_DESTROY };

static void
no_need_to_know(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

/* Runs the context once, marked and counted. */
static int
run(int what)
{
    unsigned long before = allocations;
    int count;

    mark(what);
    count = vfu_run_ctx(ctx);
    mark(MARK_END);
    if (what != MARK_MAP_FD) { /* descriptors are kept in memory of their own */
        CHECK_EQ(allocations - before, 0);
    }
    return count;
}

/* The calls from the one callback to the next. */
static ssize_t
huge_access(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    static unsigned long before;
    static int rounds;

    (void)c, (void)offset, (void)is_write;
    if (count < HUGE) {
        CHECK(rounds == 1 || allocations == before);
        mark(MARK_END);
    }
    memset(buf, 0x5a, count);
    if (count == HUGE) {
        /* The first one may allocate what the later ones use. */
        rounds++;
        before = allocations;
        mark(MARK_HUGE);
    }
    return count;
}

static void
create(int flags)
{
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, flags, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                              -1, 0), 0);
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &(vfu_migration_callbacks_t) {
        .version = VFU_MIGR_CALLBACKS_VERS, .transition = transition, .read_data = read_data,
        .write_data = write_data }), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 8, no_need_to_know, no_need_to_know), 0);
    CHECK_EQ(vfu_setup_region(ctx, 1, HUGE, huge_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                              -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
}

static void
start(void)
{
    create(LIBVFIO_USER_FLAG_ATTACH_NB);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    CHECK(vfu_get_poll_fd(ctx) >= 0); /* having one must cost nothing */
}
static void
one_access(bool is_write, uint32_t count)
{
    static struct region_message reply;

    if (is_write) {
        client_send_region_write(client, 7, 0, 0, 8, "12345678", count);
    } else {
        client_send_region_read(client, 7, 0, 8, count);
    }
    CHECK_EQ(run(is_write ? MARK_WRITE : MARK_READ), 1);
    client_reply(client, 7, is_write ? VFIO_USER_REGION_WRITE : VFIO_USER_REGION_READ, &reply,
                 is_write ? 16 : 16 + count);
}

static void
warm_up(void)
{
    static char large[16 + BAR_SIZE];

    /* Without marks: the first requests may allocate what the later ones use. */
    for (int i = 0; i < 4; i++) {
        client_send_region_read(client, 7, 0, 0, BAR_SIZE / 2);
        CHECK_EQ(vfu_run_ctx(ctx), 1);
        client_reply(client, 7, VFIO_USER_REGION_READ, large, 16 + BAR_SIZE / 2);
        client_send_region_write(client, 7, 0, 0, 8, "12345678", 8);
        CHECK_EQ(vfu_run_ctx(ctx), 1);
        client_reply(client, 7, VFIO_USER_REGION_WRITE, large, 16);
    }
}

static void
each_access_allocates_nothing(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        one_access(false, 1 + i % 8);
        one_access(true, 1 + i % 8);
    }
}

static void
a_large_read_allocates_nothing(void)
{
    static char large[16 + BAR_SIZE];

    for (int i = 0; i < 4; i++) {
        client_send_region_read(client, 7, 0, 0, BAR_SIZE / 2);
        CHECK_EQ(run(MARK_LARGE), 1);
        client_reply(client, 7, VFIO_USER_REGION_READ, large, 16 + BAR_SIZE / 2);
    }
}

static void
a_burst_of_posted_writes(void)
{
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < BURST; i++) {
            client_send_region_write(client, i, VFIO_USER_F_NO_REPLY, 0, 8 * i, "abcdefgh", 8);
        }
        CHECK_EQ(run(MARK_BURST), BURST);
    }
}

/* More than a socket holds: what fits is sent, the context runs, what came is
 * received, until the whole reply is there. */
static void
exchange(const char *request, size_t request_size, char *reply, size_t reply_size)
{
    size_t sent = 0, received = 0;

    while (received < reply_size) {
        ssize_t count;

        if (sent < request_size) {
            count = send(client, request + sent, request_size - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            sent += count > 0 ? count : 0;
        }
        CHECK(vfu_run_ctx(ctx) >= 0);
        count = recv(client, reply + received, reply_size - received, MSG_DONTWAIT);
        received += count > 0 ? count : 0;
    }
}

struct data_message {
    struct vfio_user_header header;
    uint32_t argsz, size;
    char data[1 << 20];
};

static void
set_state(uint32_t state)
{
    struct {
        uint32_t argsz, flags, state, data_fd;
    } set = { sizeof(set), VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, state, 0 };

    client_send(client, 9, VFIO_USER_DEVICE_FEATURE, &set, sizeof(set));
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 9, VFIO_USER_DEVICE_FEATURE, &set, sizeof(set));
}

static void
migration_data_allocate_nothing(void)
{
    static struct data_message out, in;
    enum { HEAD = offsetof(struct data_message, data), LARGE = sizeof(in.data) };
    unsigned long before = 0;

    for (size_t i = 0; i < LARGE; i += 4096) {
        out.data[i] = i >> 12;
    }
    for (int i = 0; i < 8; i++) {
        if (i == 2) {
            before = allocations; /* from here on nothing is new */
        }
        set_state(VFIO_USER_DEVICE_STATE_STOP_COPY);
        out.header = (struct vfio_user_header) { 10, VFIO_USER_MIG_DATA_READ, HEAD, 0, 0 };
        out.argsz = 8 + LARGE;
        out.size = LARGE;
        exchange((char *)&out, HEAD, (char *)&in, HEAD + LARGE);
        CHECK(in.header.flags == VFIO_USER_F_TYPE_REPLY && in.size == LARGE && in.data[LARGE - 1] == 0x5a);
        set_state(VFIO_USER_DEVICE_STATE_RESUMING);
        out.header = (struct vfio_user_header) { 11, VFIO_USER_MIG_DATA_WRITE, HEAD + LARGE, 0, 0 };
        exchange((char *)&out, HEAD + LARGE, (char *)&in, sizeof(in.header));
        CHECK_EQ(in.header.flags, VFIO_USER_F_TYPE_REPLY);
    }
    CHECK_EQ(allocations - before, 0);
    set_state(VFIO_USER_DEVICE_STATE_RUNNING);
}

/* Maps a page at this number of a page, with a descriptor or without (-1). */
static void
send_map(uint64_t page, int fd)
{
    struct {
        uint32_t argsz, flags;
        uint64_t offset, address, size;
    } map = { 32, 3, 0, page * 4096, 4096 };

    client_send_flags(client, 12, VFIO_USER_DMA_MAP, 0, &map, sizeof(map), fd);
}

static void
maps_ask_for_nothing_twice(void)
{
    struct {
        uint32_t argsz, flags;
        uint64_t address, size;
    } unmap = { 24, 0, 4096, 4096 };
    int fd = memfd_create("counts", MFD_CLOEXEC);

    CHECK_EQ(ftruncate(fd, 4096), 0);
    send_map(0, fd);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 12, VFIO_USER_DMA_MAP, NULL, 0);
    for (int i = 0; i < 2 * ROUNDS; i++) {
        bool has_fd = i % 2 == 0;

        /* The first of a kind may allocate what the later ones use. */
        send_map(1, has_fd ? fd : -1);
        CHECK_EQ(i < 2 ? vfu_run_ctx(ctx) : run(has_fd ? MARK_MAP_FD : MARK_MAP), 1);
        client_reply(client, 12, VFIO_USER_DMA_MAP, NULL, 0);
        client_send(client, 13, VFIO_USER_DMA_UNMAP, &unmap, sizeof(unmap));
        CHECK_EQ(i < 2 ? vfu_run_ctx(ctx) : run(has_fd ? MARK_UNMAP_FD : MARK_UNMAP), 1);
        client_reply(client, 13, VFIO_USER_DMA_UNMAP, &unmap, sizeof(unmap));
    }
    close(fd);
}

static void
an_idle_call(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(run(MARK_IDLE), 0);
    }
}

static void
the_end(void)
{
    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
}

/* The client's memory, as far as it is asked for. */
static void *
answer_dma(void *argument)
{
    int twin = *(int *)argument;
    static struct {
        struct vfio_user_header header;
        struct vfio_user_dma_region_access access;
        char data[PAGE];
    } message;
    enum { HEAD = offsetof(__typeof__(message), data) };

    for (int i = 0; i < 2 * ROUNDS; i++) {
        bool is_read;

        client_read(twin, &message, HEAD);
        is_read = message.header.cmd == VFIO_USER_DMA_READ;
        if (is_read) {
            memset(message.data, i, PAGE);
        } else {
            client_read(twin, message.data, PAGE);
        }
        message.header.flags = VFIO_USER_F_TYPE_REPLY;
        message.header.msg_size = is_read ? sizeof(message) : HEAD;
        CHECK_EQ(send(twin, &message, message.header.msg_size, MSG_NOSIGNAL), message.header.msg_size);
    }
    return NULL;
}

static void
a_dma_message_is_one_send_and_one_receive(void)
{
    static char data[PAGE];
    uint64_t sg[8];
    pthread_t thread;
    int twin;

    CHECK(dma_sg_size() <= sizeof(sg));
    create(LIBVFIO_USER_FLAG_ATTACH_NB);
    client = client_connect();
    client_send_twin_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    twin = client_recv_twin_version(client);
    send_map(1, -1);
    CHECK_EQ(vfu_run_ctx(ctx), 1);
    client_reply(client, 12, VFIO_USER_DMA_MAP, NULL, 0);
    CHECK_EQ(vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)4096, PAGE, (dma_sg_t *)sg, 1, PROT_READ | PROT_WRITE), 1);
    CHECK_EQ(pthread_create(&thread, NULL, answer_dma, &twin), 0);
    for (int i = 0; i < 2 * ROUNDS; i++) {
        bool is_read = i % 2 == 0;
        unsigned long before = allocations;

        /* The first ones may set up what the later ones use. */
        mark(i < 2 ? MARK_END : is_read ? MARK_DMA_READ : MARK_DMA_WRITE);
        CHECK_EQ((is_read ? vfu_sgl_read : vfu_sgl_write)(ctx, (dma_sg_t *)sg, 1, data, 0), 0);
        mark(MARK_END);
        CHECK(i < 2 || allocations == before);
        CHECK(!is_read || (data[0] == (char)i && data[PAGE - 1] == (char)i));
    }
    CHECK_EQ(pthread_join(thread, NULL), 0);
    close(twin);
    the_end();
}

static void *
read_huge(void *argument)
{
    static char reply[16 + HUGE];

    (void)argument;
    client_send_version(client);
    client_recv_version(client);
    for (int i = 0; i < 8; i++) {
        client_send_region_read(client, 7, 1, 0, HUGE);
        client_reply(client, 7, VFIO_USER_REGION_READ, reply, 16 + HUGE);
        CHECK_EQ(reply[15 + HUGE], 0x5a);
        client_send_region_read(client, 7, 1, 0, 1);
        client_reply(client, 7, VFIO_USER_REGION_READ, reply, 16 + 1);
    }
    close(client);
    return NULL;
}

static void
a_huge_read_is_one_send_that_waits(void)
{
    pthread_t thread;

    create(0);
    client = client_connect();
    CHECK_EQ(pthread_create(&thread, NULL, read_huge, NULL), 0);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
    CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* The first of a process may set up what the later ones use. */
static void
begin_life(int round, int what)
{
    mark(round == 0 ? MARK_END : what);
}

/* A context and its client, from the beginning to the end: system calls, and no more
 * allocations than these. */
static void
a_life_asks_for_little(void)
{
    enum { CREATE = 1, SET_UP = 1, ATTACH = 9, ATTACH_TWIN = 12 };

    for (int round = 0; round < 8; round++) {
        bool has_twin = round % 2 != 0;
        unsigned long before = allocations;

        begin_life(round, MARK_CREATE);
        ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
        mark(MARK_END);
        CHECK(ctx != NULL);
        CHECK(allocations - before <= CREATE);
        before = allocations;
        begin_life(round, MARK_SET_UP);
        CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_CONVENTIONAL, PCI_HEADER_TYPE_NORMAL, 0), 0);
        CHECK_EQ(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                                  -1, 0), 0);
        CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 16), 0);
        CHECK_EQ(vfu_setup_device_dma(ctx, 8, no_need_to_know, no_need_to_know), 0);
        CHECK_EQ(vfu_realize_ctx(ctx), 0);
        mark(MARK_END);
        CHECK(allocations - before <= SET_UP);
        client = client_connect();
        has_twin ? client_send_twin_version(client) : client_send_version(client);
        before = allocations;
        begin_life(round, has_twin ? MARK_ATTACH_TWIN : MARK_ATTACH);
        CHECK_EQ(vfu_attach_ctx(ctx), 0);
        mark(MARK_END);
        CHECK(allocations - before <= (has_twin ? ATTACH_TWIN : ATTACH));
        has_twin ? (void)close(client_recv_twin_version(client)) : client_recv_version(client);
        close(client);
        CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
        begin_life(round, MARK_DESTROY);
        vfu_destroy_ctx(ctx);
        mark(MARK_END);
    }
}

int
main(void)
{
    make_socket_folder();
    RUN(a_life_asks_for_little);
    RUN(start);
    RUN(warm_up);
    RUN(each_access_allocates_nothing);
    RUN(a_large_read_allocates_nothing);
    RUN(a_burst_of_posted_writes);
    RUN(migration_data_allocate_nothing);
    RUN(maps_ask_for_nothing_twice);
    RUN(an_idle_call);
    RUN(the_end);
    RUN(a_dma_message_is_one_send_and_one_receive);
    RUN(a_huge_read_is_one_send_that_waits);
    remove_socket_folder();
    return check_result();
}
