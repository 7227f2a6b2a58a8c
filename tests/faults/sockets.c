/*
 * Every call that vfux_create_ctx_replacing(), vfux_create_ctx_over_fd() and
 * vfux_setup_hand_over_fd() make is made to fail. After each, there is a context that
 * serves, or none, and then the socket is there as it was, or the caller's; and nothing
 * is left.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <vfio-user/libvfio-user-ext.h>

#include "../c/check.h"
#include "shim.h"

static char folder[] = "/tmp/libvfio-user-sockets-XXXXXX";
static struct sockaddr_un address = { .sun_family = AF_UNIX };

static const int errors[SHIM_CALLS][8] = {
    [SHIM_BIND] = { EADDRINUSE, EACCES, ENOMEM, EROFS, ENOSPC },
    [SHIM_CLOSE] = { EINTR, EIO },
    [SHIM_CONNECT] = { EACCES, EAGAIN, EINTR, ENOENT, ENOMEM, EPERM },
    [SHIM_EPOLL_CREATE1] = { EMFILE, ENOMEM },
    [SHIM_EPOLL_CTL] = { ENOMEM, ENOSPC },
    [SHIM_FCNTL] = { EBADF, EINVAL },
    [SHIM_FLOCK] = { EINTR, ENOLCK, EWOULDBLOCK },
    [SHIM_FSTAT] = { ENOMEM, EOVERFLOW, EIO },
    [SHIM_GETPEERNAME] = { ENOTCONN, ENOBUFS },
    [SHIM_GETSOCKOPT] = { ENOPROTOOPT, ENOMEM },
    [SHIM_LISTEN] = { EADDRINUSE, EOPNOTSUPP },
    [SHIM_LSTAT] = { EACCES, ENOENT, ENOMEM, ELOOP },
    [SHIM_OPEN] = { EACCES, EMFILE, ENFILE, ENOSPC, EROFS, ELOOP, EINTR },
    [SHIM_RENAME] = { EACCES, EBUSY, EIO, ENOSPC, EROFS },
    [SHIM_SOCKET] = { EACCES, EMFILE, ENFILE, ENOBUFS, ENOMEM },
    [SHIM_UNLINK] = { EACCES, EBUSY, EIO, EROFS },
};

static int
count_entries(const char *path)
{
    DIR *directory = opendir(path);
    int count = 0;

    CHECK(directory != NULL);
    while (readdir(directory) != NULL) {
        count++;
    }
    closedir(directory);
    return count;
}

static ino_t
inode(void)
{
    struct stat found;

    return lstat(address.sun_path, &found) == 0 ? found.st_ino : 0;
}

static int
make_socket(bool listens)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    CHECK(fd >= 0);
    unlink(address.sun_path);
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    if (listens) {
        CHECK_EQ(listen(fd, 4), 0);
    }
    return fd;
}

static void
check_serves(vfu_ctx_t *ctx, int client)
{
    int fd = client != -1 ? client : socket(AF_UNIX, SOCK_STREAM, 0);
    /* VERSION 0.0, without capabilities. */
    const struct {
        uint16_t id, command;
        uint32_t size, flags, error;
        uint16_t major, minor;
    } version = { 1, 1, sizeof(version), 0, 0, 0, 0 };

    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    if (client == -1) {
        CHECK_EQ(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    }
    CHECK_EQ(write(fd, &version, sizeof(version)), sizeof(version));
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    if (client == -1) {
        close(fd);
    }
}

/* Whether the call failed that was to fail. */
static bool fired;

/* The ways to make a context, one by one. `call` is what fails. */

/* What is beside the socket goes, unless removing it is what failed. */
static void
check_beside(enum shim_call call)
{
    static const char *const names[] = { ".lock", ".new" };
    char path[sizeof(address.sun_path) + 8];

    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof(path), "%s%s", address.sun_path, names[i]);
        if (unlink(path) == 0) {
            CHECK(call == SHIM_UNLINK || call == SHIM_LSTAT || call == SHIM_FSTAT);
        }
    }
}

static void
replace(enum shim_call call)
{
    vfu_ctx_t *ctx;
    ino_t before;

    close(make_socket(true));
    before = inode();
    ctx = VFU(vfux_create_ctx_replacing(address.sun_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI));
    fired = shim_fired();
    if (ctx != NULL) {
        check_serves(ctx, -1);
        vfu_destroy_ctx(ctx);
        /* If it could not tell what it had made, it left it there. */
        CHECK(inode() == 0 || call == SHIM_LSTAT);
    } else {
        CHECK(fired && errno != 0);
        /* As it was, or, where that is what could not be told, made and removed again. */
        CHECK(inode() == before || call == SHIM_LSTAT || call == SHIM_CONNECT);
    }
    /* Another try finds nothing in its way, whatever could not be removed. */
    shim_arm(0, 0, 0);
    if (ctx == NULL) {
        ctx = vfux_create_ctx_replacing(address.sun_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
        CHECK(ctx != NULL);
        check_serves(ctx, -1);
        vfu_destroy_ctx(ctx);
    }
    check_beside(call);
    unlink(address.sun_path);
}

static void
over_listener(enum shim_call call)
{
    int fd = make_socket(true), kept = dup(fd);
    vfu_ctx_t *ctx = VFU(vfux_create_ctx_over_fd(fd, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI));

    (void)call;
    fired = shim_fired();
    if (ctx != NULL) {
        check_serves(ctx, -1);
        vfu_destroy_ctx(ctx);
        CHECK_EQ(fcntl(fd, F_GETFD), -1);
    } else {
        CHECK(fired && errno != 0);
        CHECK_EQ(close(fd), 0);
    }
    CHECK(inode() != 0);
    unlink(address.sun_path);
    close(kept);
}

static void
over_client(enum shim_call call)
{
    int fds[2];
    vfu_ctx_t *ctx;

    (void)call;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    ctx = VFU(vfux_create_ctx_over_fd(fds[0], LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI));
    fired = shim_fired();
    if (ctx != NULL) {
        check_serves(ctx, fds[1]);
        vfu_destroy_ctx(ctx);
        CHECK_EQ(fcntl(fds[0], F_GETFD), -1);
    } else {
        CHECK(fired && errno != 0);
        CHECK_EQ(close(fds[0]), 0);
    }
    close(fds[1]);
}

/* A socket for processes that want to take over: one that is connected, or one that listens. */
static void
hand_over_at(int fd)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, address.sun_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    bool is_set;

    CHECK(ctx != NULL);
    is_set = VFU(vfux_setup_hand_over_fd(ctx, fd)) == 0;
    fired = shim_fired();
    if (is_set) {
        CHECK(vfux_get_hand_over_fd(ctx) >= 0);
    } else {
        CHECK(fired && errno != 0);
        CHECK(vfux_get_hand_over_fd(ctx) == -1 && errno == ENOENT);
    }
    shim_arm(0, 0, 0);
    vfu_destroy_ctx(ctx);
    CHECK_EQ(fcntl(fd, F_GETFD), is_set ? -1 : FD_CLOEXEC);
    if (!is_set) {
        close(fd);
    }
}

static void
hand_over_to_one(enum shim_call call)
{
    int fds[2];

    (void)call;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
    hand_over_at(fds[0]);
    close(fds[1]);
}

static void
hand_over_to_any(enum shim_call call)
{
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    (void)call;
    /* At a name of the kernel's choice. */
    CHECK_EQ(bind(fd, (struct sockaddr *)&address, sizeof(address.sun_family)), 0);
    CHECK_EQ(listen(fd, 1), 0);
    hand_over_at(fd);
}

/* Each call of a kind is made to fail, until there are no more. Returns how many
 * faults that were. */
static int
every_fault(void (*once)(enum shim_call))
{
    int faults = 0, descriptors, files;

    shim_arm(0, 0, 0);
    once(0);
    descriptors = count_entries("/proc/self/fd");
    files = count_entries(folder);
    for (int call = 0; call < SHIM_CALLS; call++) {
        for (const int *error = errors[call]; *error != 0; error++) {
            unsigned long n = 0;
            do {
                n++;
                shim_arm(call, n, *error);
                once(call);
                CHECK_EQ(count_entries("/proc/self/fd"), descriptors);
                CHECK_EQ(count_entries(folder), files);
            } while (fired);
            faults += n - 1;
        }
    }
    CHECK(faults > 0);
    return faults;
}

int
main(void)
{
    CHECK(mkdtemp(folder) != NULL);
    snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", folder);
    fprintf(stderr, "%d faults\n", every_fault(replace) + every_fault(over_listener) + every_fault(over_client) +
                                      every_fault(hand_over_to_one) + every_fault(hand_over_to_any));
    CHECK_EQ(rmdir(folder), 0);
    return EXIT_SUCCESS;
}
