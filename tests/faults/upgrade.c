/*
 * A device is handed over from one process to another, while a third is its client;
 * and either is killed at each system call that it makes for that, or has the call
 * fail. Whatever happens, the client goes on with one of the two, as long as one of
 * them is there, and notices nothing: no request is lost, done twice or answered
 * twice, and no interrupt either.
 *
 *   test-upgrade kills        one process or the other is killed at each step
 *   test-upgrade faults       each call fails with each error that it can have
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <vfio-user/libvfio-user-ext.h>

#include "../c/client.h"
#include "shim.h"

enum { PAGE = 4096, TIMEOUT = 20000, GUEST = 0x100000, GUEST_SIZE = 16 * PAGE };
enum side { OLD, NEW };

static const char *const side_names[] = { "old", "new" };

/* What is to go wrong in which process. */
struct fault {
    enum side side;
    enum shim_call call; /* of this kind, or of any if it is to be killed */
    unsigned long n;
    int error; /* 0: it is killed */
};

static char control_path[sizeof(socket_path) + 8];

/* What the processes tell each other beside the device. */
static struct shared {
    bool fired;
    bool old_fails, new_fails, old_gave;
} *shared;

static int
count_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

/* --- the device: adds up what is written to it, and interrupts each time -------- */

static struct state {
    uint64_t sum, writes;
} state;
static bool is_ours;

static ssize_t
bar_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    uint64_t value;
    SHIM_OUTSIDE;

    CHECK(is_ours);
    CHECK_EQ(count, sizeof(value));
    if (is_write) {
        memcpy(&value, buf, sizeof(value));
        state.sum += value;
        state.writes++;
        CHECK_EQ(vfu_irq_trigger(ctx, 0), 0);
    } else {
        memcpy(buf, offset == 0 ? &state.sum : &state.writes, sizeof(value));
    }
    return count;
}

static int
save_state(vfu_ctx_t *ctx)
{
    return vfux_put_state(ctx, &state, sizeof(state));
}

static int
load_state(vfu_ctx_t *ctx, const void *data, size_t size, uint32_t migration_state)
{
    (void)ctx;
    CHECK_EQ(size, sizeof(state));
    CHECK_EQ(migration_state, VFIO_USER_DEVICE_STATE_RUNNING);
    memcpy(&state, data, size);
    return 0;
}

static void
handed_over(vfu_ctx_t *ctx, bool ours)
{
    (void)ctx;
    is_ours = ours;
}

static void
on_memory(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx, (void)info;
}

static void
set_up(vfu_ctx_t *ctx)
{
    static const vfux_hand_over_callbacks_t callbacks = { VFUX_HAND_OVER_CALLBACKS_VERSION, save_state, load_state,
                                                          handed_over };

    CHECK_EQ(vfu_setup_region(ctx, VFU_PCI_DEV_BAR0_REGION_IDX, PAGE, bar_access, VFU_REGION_FLAG_RW, NULL, 0, -1, 0),
             0);
    CHECK_EQ(vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, 1), 0);
    CHECK_EQ(vfu_setup_device_dma(ctx, 8, on_memory, on_memory), 0);
    CHECK_EQ(vfux_setup_hand_over_callbacks(ctx, &callbacks), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
}

/* Serves until the device has gone elsewhere, or the process is killed. */
static void
serve(vfu_ctx_t *ctx, int descriptors)
{
    bool has_client = !is_ours || descriptors == 0;
    struct pollfd fds[2] = { { .events = POLLIN }, { .events = POLLIN } };

    for (;;) {
        fds[0].fd = vfu_get_poll_fd(ctx);
        fds[1].fd = vfux_get_hand_over_fd(ctx);
        CHECK(poll(fds, 2, -1) > 0);
        if (fds[1].revents != 0) {
            int outcome = VFU(vfux_hand_over(ctx, TIMEOUT));
            shared->fired |= shim_fired();
            if (outcome == 1) {
                shared->old_gave = true;
                vfu_destroy_ctx(ctx);
                _exit(0);
            }
            if (outcome == -1) {
                shared->old_fails = true;
                CHECK(descriptors == 0 || count_descriptors() <= descriptors);
            }
        }
        if (fds[0].revents != 0) {
            if (!has_client) {
                has_client = vfu_attach_ctx(ctx) == 0;
            } else if (vfu_run_ctx(ctx) < 0) {
                CHECK_EQ(errno, ENOTCONN);
                pause();
            }
        }
    }
}

static void
arm(const struct fault *fault, enum side side)
{
    if (fault->side != side || fault->n == 0) {
        shim_arm(0, 0, 0);
    } else if (fault->error == 0) {
        shim_kill_at(fault->n);
    } else {
        shim_arm(fault->call, fault->n, fault->error);
    }
}

static pid_t
begin(void)
{
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    }
    return child;
}

static pid_t
start_old(const struct fault *fault, int ready)
{
    vfu_ctx_t *ctx;
    pid_t child = begin();

    if (child != 0) {
        return child;
    }
    ctx = vfux_create_ctx_replacing(socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    is_ours = true;
    set_up(ctx);
    CHECK_EQ(vfux_setup_hand_over(ctx, control_path), 0);
    CHECK(vfu_get_poll_fd(ctx) >= 0);
    CHECK_EQ(write(ready, "x", 1), 1);
    shim_spares_memory = true;
    arm(fault, OLD);
    /* The client's connection, its eventfd and its memory come on top. */
    serve(ctx, count_descriptors() + 3);
    abort();
}

static pid_t
start_new(const struct fault *fault)
{
    int before = count_descriptors();
    vfu_ctx_t *ctx;
    pid_t child = begin();

    if (child != 0) {
        return child;
    }
    shim_spares_memory = true;
    arm(fault, NEW);
    ctx = VFU(vfux_create_ctx_taking_over(control_path, TIMEOUT, LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                                          VFU_DEV_TYPE_PCI));
    shared->fired |= shim_fired();
    if (ctx != NULL) {
        int taken;

        set_up(ctx);
        taken = VFU(vfux_take_over(ctx, TIMEOUT));
        shared->fired |= shim_fired();
        if (taken == 1) {
            CHECK(is_ours);
            serve(ctx, 0);
        }
        CHECK_EQ(taken, -1);
        CHECK(!is_ours);
        VFU_VOID(vfu_destroy_ctx(ctx));
        shared->fired |= shim_fired();
    }
    CHECK_EQ(count_descriptors(), before);
    shared->new_fails = true;
    _exit(0);
}

/* --- the client ------------------------------------------------------------------ */

static struct {
    int fd, event;
    uint16_t id;
    uint64_t sum, writes, interrupts;
} client;

struct access {
    struct vfio_user_region_access head;
    uint64_t value;
};

/* Whether it is sent: there may be nobody any more. */
static bool
send_command(uint16_t cmd, uint32_t flags, const void *payload, size_t size)
{
    struct {
        struct vfio_user_header header;
        char payload[sizeof(struct access)];
    } message = { .header = {
        .msg_id = ++client.id, .cmd = cmd, .msg_size = sizeof(message.header) + size, .flags = flags } };

    memcpy(message.payload, payload, size);
    return send(client.fd, &message, message.header.msg_size, MSG_NOSIGNAL) == message.header.msg_size;
}

static bool
write_value(uint64_t value, uint32_t flags)
{
    struct access access = { { .offset = 0, .region = 0, .count = sizeof(value) }, value };

    client.sum += value;
    client.writes++;
    return send_command(VFIO_USER_REGION_WRITE, flags, &access, sizeof(access));
}

/* Whether there is anybody who answers; a request is on the way. */
static bool
is_answered(void)
{
    struct pollfd socket = { .fd = client.fd, .events = POLLIN };
    char byte;

    CHECK_EQ(poll(&socket, 1, TIMEOUT), 1);
    return recv(client.fd, &byte, 1, MSG_PEEK) == 1;
}

/* Writes, some of them posted, one of them in two pieces, and reads what came of it.
 * False if there is nobody any more. */
static bool
round_trip(void)
{
    struct access access = { .head = { .offset = 0, .region = 0, .count = sizeof(uint64_t) } };
    struct vfio_user_region_access echo;
    struct {
        struct vfio_user_header header;
        struct access access;
    } pieces = { .header = { .cmd = VFIO_USER_REGION_WRITE, .msg_size = sizeof(pieces) },
                 .access = { { .offset = 0, .region = 0, .count = sizeof(uint64_t) }, 5 } };
    uint16_t first;
    uint64_t count;

    if (!write_value(1, VFIO_USER_F_NO_REPLY) || !write_value(2, VFIO_USER_F_TYPE_COMMAND)) {
        return false;
    }
    first = client.id;
    pieces.header.msg_id = ++client.id;
    client.sum += 5;
    client.writes++;
    if (send(client.fd, &pieces, 21, MSG_NOSIGNAL) != 21 ||
        send(client.fd, (char *)&pieces + 21, sizeof(pieces) - 21, MSG_NOSIGNAL) != (ssize_t)sizeof(pieces) - 21 ||
        !is_answered()) {
        return false;
    }
    client_reply(client.fd, first, VFIO_USER_REGION_WRITE, &echo, sizeof(echo));
    if (!is_answered()) {
        return false;
    }
    client_reply(client.fd, first + 1, VFIO_USER_REGION_WRITE, &echo, sizeof(echo));
    for (access.head.offset = 0; access.head.offset < 16; access.head.offset += 8) {
        if (!send_command(VFIO_USER_REGION_READ, VFIO_USER_F_TYPE_COMMAND, &access.head, sizeof(access.head)) ||
            !is_answered()) {
            return false;
        }
        client_reply(client.fd, client.id, VFIO_USER_REGION_READ, &access, sizeof(access));
        CHECK_EQ(access.value, access.head.offset == 0 ? client.sum : client.writes);
    }
    CHECK_EQ(read(client.event, &count, sizeof(count)), sizeof(count));
    client.interrupts += count;
    CHECK_EQ(client.interrupts, client.writes);
    return true;
}

static void
attach(void)
{
    struct vfio_irq_set set = { .argsz = sizeof(set),
                                .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
                                .index = VFU_DEV_MSIX_IRQ,
                                .count = 1 };
    struct vfio_user_dma_map map = { .argsz = sizeof(map), .flags = 3, .addr = GUEST, .size = GUEST_SIZE };
    int memory = memfd_create("guest", MFD_CLOEXEC);
    struct vfio_user_header header;
    char reply[1024];

    memset(&client, 0, sizeof(client));
    client.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    client.fd = client_connect();
    client_send_version(client.fd);
    client_recv(client.fd, &header, reply, sizeof(reply));
    client_send_flags(client.fd, ++client.id, VFIO_USER_DEVICE_SET_IRQS, VFIO_USER_F_TYPE_COMMAND, &set, sizeof(set),
                      client.event);
    client_reply(client.fd, client.id, VFIO_USER_DEVICE_SET_IRQS, NULL, 0);
    CHECK_EQ(ftruncate(memory, GUEST_SIZE), 0);
    client_send_flags(client.fd, ++client.id, VFIO_USER_DMA_MAP, VFIO_USER_F_TYPE_COMMAND, &map, sizeof(map), memory);
    client_reply(client.fd, client.id, VFIO_USER_DMA_MAP, NULL, 0);
    close(memory);
}

/* --- one attempt ------------------------------------------------------------------ */

static int goes_on_with_old, goes_on_with_new, is_alone;

static bool
has_ended(pid_t child, int *status, int how)
{
    pid_t ended = *status == -1 ? waitpid(child, status, how) : child;

    CHECK(ended == 0 || ended == child);
    if (ended == child) {
        CHECK((WIFEXITED(*status) && WEXITSTATUS(*status) == 0) ||
              (WIFSIGNALED(*status) && WTERMSIG(*status) == SIGKILL));
    }
    return ended == child;
}

/* Returns whether the fault happened. */
static bool
attempt(const struct fault *fault)
{
    int pipes[2], old_status = -1, new_status = -1;
    pid_t old, new;
    char byte;
    bool goes_on, fired;

    if (getenv("UPGRADE_VERBOSE") != NULL) {
        fprintf(stderr, "%s: %s number %lu: %s\n", side_names[fault->side], shim_names[fault->call], fault->n,
                fault->error == 0 ? "killed" : strerror(fault->error));
    }
    memset(shared, 0, sizeof(*shared));
    CHECK_EQ(pipe(pipes), 0);
    old = start_old(fault, pipes[1]);
    CHECK_EQ(read(pipes[0], &byte, 1), 1);
    close(pipes[0]);
    close(pipes[1]);
    attach();
    CHECK(round_trip());
    new = start_new(fault);
    do {
        goes_on = round_trip();
    } while (goes_on && !has_ended(old, &old_status, WNOHANG) && !has_ended(new, &new_status, WNOHANG));
    for (int i = 0; i < 5 && goes_on; i++) {
        goes_on = round_trip();
    }
    fired = shared->fired || (fault->error == 0 && ((old_status != -1 && WIFSIGNALED(old_status)) ||
                                                    (new_status != -1 && WIFSIGNALED(new_status))));
    if (!goes_on) {
        /* Both have gone: the old one had been told that the new one goes on; or it was
         * killed before that one had everything. */
        if (fault->side == OLD) {
            has_ended(new, &new_status, 0);
        } else {
            has_ended(old, &old_status, 0);
        }
        CHECK(fault->error == 0 && (fault->side == OLD ? shared->new_fails : shared->old_gave));
        fired = true;
        is_alone++;
    } else if (has_ended(old, &old_status, WNOHANG)) {
        goes_on_with_new++;
    } else {
        goes_on_with_old++;
    }
    kill(old, SIGKILL);
    kill(new, SIGKILL);
    has_ended(old, &old_status, 0);
    has_ended(new, &new_status, 0);
    close(client.fd);
    close(client.event);
    return fired;
}

static void
kills(enum side side)
{
    struct fault fault = { .side = side };

    goes_on_with_old = goes_on_with_new = is_alone = 0;
    do {
        fault.n++;
    } while (attempt(&fault));
    fprintf(stderr, "%s process killed at %lu steps: %d times the old one goes on, %d times the new one, %d times none\n",
            side_names[side], fault.n - 1, goes_on_with_old, goes_on_with_new, is_alone);
    /* The last one was the one that nothing happened in. */
    CHECK(fault.n > 20);
    CHECK(side == OLD ? goes_on_with_new > 2 : goes_on_with_old > 10);
    /* Once it has said that it goes on, the new one only has its own affairs to settle: some steps, more where the
     * old one takes its time to end. */
    CHECK(side == OLD || is_alone < goes_on_with_old / 2);
}

/* That the other process has gone is not pretended: both would go on, rightly. */
static const int errors[SHIM_CALLS][6] = {
    [SHIM_ACCEPT4] = { EAGAIN, ECONNABORTED, EMFILE, ENOMEM },
    [SHIM_CLOSE] = { EINTR, EIO },
    [SHIM_CONNECT] = { EACCES, EAGAIN, ECONNREFUSED },
    [SHIM_EPOLL_CREATE1] = { EMFILE, ENOMEM },
    [SHIM_EPOLL_CTL] = { ENOMEM, ENOSPC },
    [SHIM_EVENTFD] = { EMFILE, ENOMEM },
    [SHIM_FCNTL] = { EBADF, EINVAL },
    [SHIM_FSTAT] = { ENOMEM, EIO },
    [SHIM_GETSOCKOPT] = { ENOMEM },
    [SHIM_LSTAT] = { EACCES, ENOMEM },
    [SHIM_MEMFD_CREATE] = { EMFILE, ENOMEM, ENOSYS },
    [SHIM_MMAP] = { EACCES, ENOMEM },
    [SHIM_POLL] = { EINTR, ENOMEM },
    [SHIM_PREAD] = { EINTR, EIO },
    [SHIM_PWRITE] = { EINTR, EIO, ENOSPC },
    [SHIM_RECVMSG] = { EAGAIN, EINTR, ECONNRESET, ENOMEM },
    [SHIM_SENDMSG] = { EAGAIN, EINTR, ENOBUFS, ETOOMANYREFS },
    [SHIM_SOCKET] = { EACCES, EMFILE },
};

static void
faults(enum side side)
{
    int count = 0;

    goes_on_with_old = goes_on_with_new = is_alone = 0;
    for (int call = 0; call < SHIM_CALLS; call++) {
        for (int i = 0; i < 6 && errors[call][i] != 0; i++) {
            struct fault fault = { side, call, 0, errors[call][i] };
            do {
                fault.n++;
                count++;
                CHECK(fault.n < 300);
            } while (attempt(&fault));
        }
    }
    fprintf(stderr, "%d faults in the %s process: %d times the old one goes on, %d times the new one\n", count,
            side_names[side], goes_on_with_old, goes_on_with_new);
    CHECK(goes_on_with_old > 5 && is_alone == 0);
}

int
main(int argc, char **argv)
{
    make_socket_folder();
    snprintf(control_path, sizeof(control_path), "%s.c", socket_path);
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && argc == 2);
    for (int side = OLD; side <= NEW; side++) {
        if (strcmp(argv[1], "kills") == 0) {
            kills(side);
        } else {
            faults(side);
        }
    }
    unlink(socket_path);
    unlink(control_path);
    remove_socket_folder();
    return EXIT_SUCCESS;
}
