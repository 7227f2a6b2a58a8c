/*
 * A server that may make no other system calls than those of
 * docs/system-calls.list: a seccomp filter of just these is installed once the
 * context is realized, and then clients do all that clients can. A call that the
 * list lacks ends the server, and the test says which it was.
 *
 * usage: confined LIST
 *        confined --trace     without a filter: scripts/system-calls looks at the
 *                             calls between the marks, of which the list is made
 *
 * Server and client are two processes. What the device does is told by the
 * offset that is written to: enum work.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <alloca.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <vfio-user/libvfio-user-ext.h>

#include "client.h"
#include "confine.h"

enum { SKIPPED = 77 };
enum { PAGE = 4096, BAR_SIZE = 1 << 20, REGIONS = 5000, SESSIONS = 3, BUFFER = 64 << 10 };

/* Where the client's memory is, by the way that the device reaches it. */
#define MAPPED UINT64_C(0)
#define IN_FILE UINT64_C(0x10000000)
#define BY_MESSAGES UINT64_C(0x1000000000)
#define MANY UINT64_C(0x200000000000)
/* Its dirty pages are a report that is made in parts. */
#define MESSAGE_MEMORY (UINT64_C(256) << 30)

enum work { COPY = 0, BY_MESSAGE = 8, DIRECTLY = 16, TRIGGER = 24, ASK_WHO = 32 };

/* --- the server ---------------------------------------------------------------- */

static vfu_ctx_t *ctx;
static char bar[BAR_SIZE], buffer[BUFFER];

static int
copy(uint64_t iova)
{
    dma_sg_t *sg = alloca(dma_sg_size());
    struct iovec iov;

    if (vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)iova, PAGE, sg, 1, PROT_READ | PROT_WRITE) != 1 ||
        vfu_sgl_get(ctx, sg, &iov, 1, 0) != 0) {
        return -1;
    }
    memset(iov.iov_base, 1, PAGE);
    vfu_sgl_mark_dirty(ctx, sg, 1);
    vfu_sgl_put(ctx, sg, &iov, 1);
    return 0;
}

static int
transfer(uint64_t iova, int flags)
{
    dma_sg_t *sg = alloca(dma_sg_size());

    if (vfu_addr_to_sgl(ctx, (vfu_dma_addr_t)(uintptr_t)iova, BUFFER, sg, 1, PROT_READ | PROT_WRITE) != 1) {
        return -1;
    }
    return vfu_sgl_read(ctx, sg, 1, buffer, flags) == 0 ? vfu_sgl_write(ctx, sg, 1, buffer, flags) : -1;
}

static ssize_t
bar_access(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    vfux_credentials_t who;
    uint64_t value;

    if (!is_write || count != sizeof(value)) {
        is_write ? memcpy(bar + offset, buf, count) : memcpy(buf, bar + offset, count);
        return count;
    }
    memcpy(&value, buf, sizeof(value));
    switch (offset) {
    case COPY:
        return copy(value) == 0 ? (ssize_t)count : -1;
    case BY_MESSAGE:
        return transfer(value, 0) == 0 ? (ssize_t)count : -1;
    case DIRECTLY:
        return transfer(value, VFU_SGL_DIRECT_ACCESS) == 0 ? (ssize_t)count : -1;
    case TRIGGER:
        return vfu_irq_trigger(c, value) == 0 ? (ssize_t)count : -1;
    case ASK_WHO:
        return vfux_get_client_credentials(c, &who) == 0 ? (ssize_t)count : -1;
    default:
        return count;
    }
}

static void
memory_changes(vfu_ctx_t *c, vfu_dma_info_t *info)
{
    (void)c, (void)info;
}

static int
becomes_quiet_later(vfu_ctx_t *c)
{
    (void)c;
    errno = EBUSY;
    return -1;
}

static int
reset(vfu_ctx_t *c, vfu_reset_type_t type)
{
    (void)c, (void)type;
    return 0;
}

static int
transition(vfu_ctx_t *c, vfu_migr_state_t state)
{
    (void)c, (void)state;
    return 0;
}

static ssize_t
migration_data(vfu_ctx_t *c, void *buf, uint64_t count)
{
    (void)c, (void)buf;
    return count;
}

static void
set_up(bool nonblocking)
{
    struct iovec area = { .iov_base = NULL, .iov_len = BAR_SIZE };
    int memory = memfd_create("bar", MFD_CLOEXEC), event = eventfd(0, EFD_CLOEXEC);

    CHECK_EQ(ftruncate(memory, BAR_SIZE), 0);
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, nonblocking ? LIBVFIO_USER_FLAG_ATTACH_NB : 0, NULL,
                         VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, 0, 0), 0);
    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, BAR_SIZE, bar_access,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0, -1, 0), 0);
    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR1_REGION_IDX, BAR_SIZE, bar_access,
                              VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, &area, 1, memory, 0), 0);
    CHECK_EQ(vfu_create_ioeventfd(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, event, 64, 4, 0, 0, -1, 0), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, REGIONS + 16, memory_changes, memory_changes), 0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 2048), 0);
    CHECK_EQ(vfu_setup_device_reset_cb(ctx, reset), 0);
    vfu_setup_device_quiesce_cb(ctx, becomes_quiet_later);
    CHECK_EQ(vfu_setup_device_migration_callbacks(ctx, &(vfu_migration_callbacks_t) {
        .version = VFU_MIGR_CALLBACKS_VERS, .transition = transition, .read_data = migration_data,
        .write_data = migration_data }), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
}

static void
wait_for(int fd)
{
    struct pollfd entry = { .fd = fd, .events = POLLIN };

    CHECK_EQ(poll(&entry, 1, -1), 1);
}

/* Serves one client until it is gone. */
static void
serve(bool nonblocking)
{
    int polled = nonblocking ? vfu_get_poll_fd(ctx) : -1;

    while (vfu_attach_ctx(ctx) != 0) {
        CHECK(nonblocking && errno == EAGAIN);
        wait_for(polled);
    }
    for (;;) {
        if (vfu_run_ctx(ctx) < 0) {
            if (errno == ENOTCONN) {
                return;
            }
            CHECK_EQ(errno, EBUSY);
            (void)vfu_device_quiesced(ctx, 0);
        } else if (nonblocking) {
            wait_for(polled);
        }
    }
}

/* The process of the server. A byte is written when the client may connect; the
 * last client waits in vain when the context is destroyed. */
static void
server(bool nonblocking, const char *list, int ready, int enough)
{
    char byte = 0;

    set_up(nonblocking);
    CHECK_EQ(write(ready, &byte, 1), 1);
    confine(list);
    for (int i = 0; i < SESSIONS; i++) {
        serve(nonblocking);
    }
    wait_for(enough);
    vfu_destroy_ctx(ctx);
    end_confined(list == NULL);
}

/* --- the client ---------------------------------------------------------------- */

static int client, twin;
static char large[BAR_SIZE + 64];

/* Receives a message with a descriptor or without, which is -1 then. */
static size_t
receive(int fd, struct vfio_user_header *header, char *payload, size_t room, int *passed)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    struct iovec iov = { header, sizeof(*header) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                          .msg_controllen = sizeof(control.bytes) };
    size_t size;

    *passed = -1;
    CHECK_EQ(recvmsg(fd, &msg, MSG_WAITALL | MSG_CMSG_CLOEXEC), (ssize_t)sizeof(*header));
    if (CMSG_FIRSTHDR(&msg) != NULL) {
        memcpy(passed, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
    }
    size = header->msg_size - sizeof(*header);
    CHECK(size <= room);
    client_read(fd, payload, size);
    return size;
}

/* Answers the server's commands until the reply to our own comes: its errno. */
static int
answer_until_reply(uint16_t cmd, void *payload, size_t *size)
{
    struct vfio_user_header header;
    struct pollfd entries[] = { { client, POLLIN, 0 }, { twin, POLLIN, 0 } };
    int passed;

    for (;;) {
        struct vfio_user_dma_region_access *access = (void *)large;
        int from;
        size_t got;

        CHECK(poll(entries, 2, 60000) > 0);
        from = entries[1].revents ? twin : client;
        got = receive(from, &header, large, sizeof(large), &passed);
        if (passed != -1) {
            close(passed);
        }
        if (header.flags & VFIO_USER_F_TYPE_REPLY) {
            CHECK_EQ(header.cmd, cmd);
            if (payload != NULL) {
                CHECK(got <= *size);
                memcpy(payload, large, *size = got);
            }
            return header.error_no;
        }
        got = header.cmd == VFIO_USER_DMA_READ ? sizeof(*access) + access->count : sizeof(*access);
        client_send_flags(from, header.msg_id, header.cmd, VFIO_USER_F_TYPE_REPLY, large, got, -1);
    }
}

static int
ask(uint16_t cmd, const void *payload, size_t size, int pass)
{
    client_send_flags(client, 2, cmd, 0, payload, size, pass);
    return answer_until_reply(cmd, NULL, NULL);
}

static void
work(enum work what, uint64_t value)
{
    client_send_region_write(client, 2, 0, VFU_PCI_DEV_BAR0_REGION_IDX, what, &value, sizeof(value));
    CHECK_EQ(answer_until_reply(VFIO_USER_REGION_WRITE, NULL, NULL), 0);
}

static int
map(uint64_t address, uint64_t size, uint64_t offset, int how, int fd)
{
    struct vfio_user_dma_map map = {
        .argsz = sizeof(map), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE | how,
        .offset = offset, .addr = address, .size = size };

    return ask(VFIO_USER_DMA_MAP, &map, sizeof(map), fd);
}

static int
unmap(uint64_t address, uint64_t size, uint32_t flags)
{
    struct {
        struct vfio_user_dma_unmap unmap;
        struct vfio_user_bitmap bitmap;
    } request = { { .argsz = sizeof(request) + PAGE, .flags = flags, .addr = address, .size = size },
                  { .pgsize = PAGE, .size = BAR_SIZE / PAGE / 8 } };

    return ask(VFIO_USER_DMA_UNMAP, &request, sizeof(request), -1);
}

static int
set_irqs(uint32_t flags, uint32_t vector, uint32_t count, int fd)
{
    struct vfio_irq_set set = { .argsz = sizeof(set), .flags = flags, .index = VFU_DEV_MSIX_IRQ,
                                .start = vector, .count = count };

    return ask(VFIO_USER_DEVICE_SET_IRQS, &set, sizeof(set), fd);
}

static int
feature(uint32_t flags, const void *data, size_t size)
{
    char request[8 + 64];
    struct vfio_user_device_feature head = { .argsz = sizeof(large) - 64, .flags = flags };

    memcpy(request, &head, sizeof(head));
    if (size > 0) {
        memcpy(request + sizeof(head), data, size);
    }
    return ask(VFIO_USER_DEVICE_FEATURE, request, sizeof(head) + size, -1);
}

static void
set_state(uint32_t state)
{
    struct vfio_user_device_feature_mig_state data = { state, 0 };

    CHECK_EQ(feature(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, &data, sizeof(data)), 0);
}

static void
enter(bool with_twin)
{
    static const char plain[] = "\0\0\2\0{\"capabilities\":{\"write_multiple\":true}}";
    static const char wanted[] =
        "\0\0\2\0{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}}}";
    struct vfio_user_header header;

    client = client_connect();
    if (with_twin) {
        client_send(client, 1, VFIO_USER_VERSION, wanted, sizeof(wanted));
    } else {
        client_send(client, 1, VFIO_USER_VERSION, plain, sizeof(plain));
    }
    receive(client, &header, large, sizeof(large), &twin);
    CHECK_EQ(header.flags, VFIO_USER_F_TYPE_REPLY);
    CHECK_EQ(twin != -1, with_twin);
}

static void
ask_for_everything(void)
{
    struct vfio_user_device_info info = { .argsz = sizeof(info) };
    struct vfio_region_info region = { .argsz = 4096, .index = VFU_PCI_DEV_BAR1_REGION_IDX };
    struct vfio_irq_info irq = { .argsz = sizeof(irq), .index = VFU_DEV_MSIX_IRQ };
    struct vfio_user_region_io_fds_request io = { .argsz = 4096 };

    CHECK_EQ(ask(VFIO_USER_DEVICE_GET_INFO, &info, sizeof(info), -1), 0);
    CHECK_EQ(ask(VFIO_USER_DEVICE_GET_REGION_INFO, &region, sizeof(region), -1), 0);
    CHECK_EQ(ask(VFIO_USER_DEVICE_GET_IRQ_INFO, &irq, sizeof(irq), -1), 0);
    CHECK_EQ(ask(VFIO_USER_DEVICE_GET_REGION_IO_FDS, &io, sizeof(io), -1), 0);
    CHECK_EQ(ask(VFIO_USER_DEVICE_RESET, NULL, 0, -1), 0);
    CHECK(ask(4711, NULL, 0, -1) != 0);
    work(ASK_WHO, 0);
}

static void
move_much(void)
{
    static char message[sizeof(struct vfio_user_region_access) + BAR_SIZE];
    struct vfio_user_region_access access = { .count = BAR_SIZE - 8, .offset = 8 };

    memcpy(message, &access, sizeof(access));
    CHECK_EQ(ask(VFIO_USER_REGION_WRITE, message, sizeof(access) + access.count, -1), 0);
    CHECK_EQ(ask(VFIO_USER_REGION_READ, &access, sizeof(access), -1), 0);
    for (int i = 0; i < 1000; i++) {
        client_send_region_write(client, 3, VFIO_USER_F_NO_REPLY, 0, 128, "12345678", 8);
    }
    /* Replies that nobody reads, until there is no room for more. */
    for (int i = 0; i < 3; i++) {
        client_send(client, 4, VFIO_USER_REGION_READ, &access, sizeof(access));
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(answer_until_reply(VFIO_USER_REGION_READ, NULL, NULL), 0);
    }
}

static void
use_memory(void)
{
    FILE *file = tmpfile();
    int memory = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING), ends[2];
    struct vfio_user_device_feature_dma_logging_control start = { .page_size = PAGE };
    struct vfio_user_device_feature_dma_logging_report
        report = { .length = 16 * PAGE, .page_size = PAGE },
        whole = { .iova = BY_MESSAGES, .length = UINT64_C(8) << 30, .page_size = PAGE };

    CHECK(file != NULL && pipe(ends) == 0);
    CHECK_EQ(ftruncate(memory, BAR_SIZE), 0);
    CHECK_EQ(ftruncate(fileno(file), BAR_SIZE), 0);
    CHECK_EQ(map(MAPPED, BAR_SIZE, 0, 0, memory), 0);
    CHECK_EQ(map(MAPPED + 2 * BAR_SIZE, 2 * BAR_SIZE, 0, VFIO_USER_F_DMA_REGION_MMAP, memory), 0); /* too long */
    CHECK_EQ(map(IN_FILE, BAR_SIZE, 0, VFIO_USER_F_DMA_REGION_FILE_IO, fileno(file)), 0);
    CHECK_EQ(map(BY_MESSAGES, MESSAGE_MEMORY, 0, 0, -1), 0);
    CHECK(map(MANY, PAGE, 0, VFIO_USER_F_DMA_REGION_FILE_IO, ends[0]) != 0);
    CHECK(map(MANY, PAGE, 0, 0, ends[0]) != 0);
    CHECK_EQ(feature(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_START, &start, sizeof(start)), 0);
    work(COPY, MAPPED);
    work(DIRECTLY, MAPPED);
    work(DIRECTLY, IN_FILE);
    work(BY_MESSAGE, BY_MESSAGES);
    CHECK_EQ(feature(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &report, sizeof(report)), 0);
    CHECK_EQ(feature(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, &whole, sizeof(whole)), 0);
    for (uint64_t i = 0; i < REGIONS; i++) {
        bool has_file = i % 8 == 0;
        CHECK_EQ(map(MANY + i * PAGE, PAGE, has_file ? i % 256 * PAGE : 0, 0, has_file ? memory : -1), 0);
    }
    CHECK_EQ(unmap(MAPPED, BAR_SIZE, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP), 0);
    CHECK_EQ(feature(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP, NULL, 0), 0);
    CHECK_EQ(unmap(IN_FILE, BAR_SIZE, 0), 0);
    CHECK_EQ(unmap(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 0);
    CHECK_EQ(map(MAPPED, BAR_SIZE, 0, 0, memory), 0); /* is left to the loss */
    CHECK_EQ(map(IN_FILE, BAR_SIZE, 0, VFIO_USER_F_DMA_REGION_FILE_IO, fileno(file)), 0);
    close(memory), close(ends[0]), close(ends[1]), fclose(file);
}

static void
use_interrupts(void)
{
    int nonblocking = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), blocking = eventfd(0, EFD_CLOEXEC), ends[2];
    const uint32_t assign = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    uint64_t count;

    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(set_irqs(assign, 0, 1, nonblocking), 0);
    CHECK_EQ(set_irqs(assign, 2047, 1, blocking), 0);
    CHECK(set_irqs(assign, 1, 1, ends[0]) != 0);
    work(TRIGGER, 0);
    work(TRIGGER, 2047);
    CHECK_EQ(read(nonblocking, &count, sizeof(count)), (ssize_t)sizeof(count));
    CHECK_EQ(read(blocking, &count, sizeof(count)), (ssize_t)sizeof(count));
    CHECK_EQ(set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, 0, 1, -1), 0);
    CHECK_EQ(set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK, 0, 1, -1), 0);
    CHECK_EQ(set_irqs(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK, 0, 1, -1), 0);
    CHECK_EQ(set_irqs(assign, 0, 1, blocking), 0);
    CHECK_EQ(set_irqs(assign, 2047, 1, -1), 0);
    work(TRIGGER, 0);
    close(nonblocking), close(blocking), close(ends[0]), close(ends[1]);
}

static void
migrate(void)
{
    static char message[8 + BUFFER];
    struct vfio_user_mig_data data = { .argsz = sizeof(data) + BUFFER, .size = BUFFER };

    memcpy(message, &data, sizeof(data));
    set_state(VFIO_USER_DEVICE_STATE_PRE_COPY);
    CHECK_EQ(ask(VFIO_USER_MIG_DATA_READ, &data, sizeof(data), -1), 0);
    set_state(VFIO_USER_DEVICE_STATE_STOP_COPY);
    CHECK_EQ(ask(VFIO_USER_MIG_DATA_READ, &data, sizeof(data), -1), 0);
    set_state(VFIO_USER_DEVICE_STATE_STOP);
    set_state(VFIO_USER_DEVICE_STATE_RESUMING);
    CHECK_EQ(ask(VFIO_USER_MIG_DATA_WRITE, message, sizeof(message), -1), 0);
    set_state(VFIO_USER_DEVICE_STATE_RUNNING);
}

/* Leaves in the middle of a message, which has a descriptor. */
static void
leave(void)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = { .align = { .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    struct iovec iov = { "1234567", 7 };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                          .msg_controllen = sizeof(control.bytes) };

    memcpy(CMSG_DATA(&control.align), &(int) { STDERR_FILENO }, sizeof(int));
    CHECK_EQ(sendmsg(client, &msg, 0), 7);
    if (twin != -1) {
        close(twin);
    }
    close(client);
}

static void
do_all_that_clients_can(void)
{
    for (int i = 0; i < SESSIONS; i++) {
        enter(i == 1);
        ask_for_everything();
        move_much();
        use_memory();
        use_interrupts();
        migrate();
        leave();
    }
}

/* --- both ----------------------------------------------------------------------- */

/* One server and its clients; how the server ended. */
static int
run(bool nonblocking, const char *list)
{
    int ready[2], enough[2], status;
    char byte = 0;
    pid_t pid;

    CHECK(pipe2(ready, O_CLOEXEC) == 0 && pipe2(enough, O_CLOEXEC) == 0);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0); /* when a check of the client's fails */
        server(nonblocking, list, ready[1], enough[0]);
    }
    close(ready[1]);
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    do_all_that_clients_can();
    client = client_connect(); /* nobody will accept it */
    client_send_version(client);
    CHECK_EQ(write(enough[1], &byte, 1), 1);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    close(client), close(ready[0]), close(enough[0]), close(enough[1]);
    return status;
}

static const char *list_path;

static void
a_blocking_server_makes_these_calls_only(void)
{
    CHECK_EQ(run(false, list_path), 0);
}

static void
a_non_blocking_server_makes_these_calls_only(void)
{
    CHECK_EQ(run(true, list_path), 0);
}

/* The filter works: a call that it does not have ends the server. */
static void
any_other_call_ends_the_server(void)
{
    int status;
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        confine(list_path);
        (void)getppid();
        end_confined(false);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == NOT_IN_THE_LIST);
}

int
main(int argc, char **argv)
{
    CHECK_EQ(argc, 2);
    list_path = strcmp(argv[1], "--trace") == 0 ? NULL : argv[1];
    if (list_path != NULL && !can_confine()) {
        return SKIPPED;
    }
    (void)signal(SIGPIPE, SIG_IGN);
    make_socket_folder();
    RUN(a_blocking_server_makes_these_calls_only);
    RUN(a_non_blocking_server_makes_these_calls_only);
    if (list_path != NULL) {
        RUN(any_other_call_ends_the_server);
    }
    remove_socket_folder();
    return check_result();
}
