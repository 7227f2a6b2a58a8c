/*
 * Every call that the library makes in a session is made to fail, one at a time,
 * with each error that it can have. After each, a request is answered or the
 * connection is reported lost; the next client is served as ever; and in the end
 * nothing is left.
 *
 * Each fault has a process of its own, so that one that crashes or hangs is told
 * of like any other.
 *
 *   test-faults                     all of it
 *   test-faults KIND CALL N ERRNO   one fault, in this process
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../c/check.h"
#include "session.h"
#include "shim.h"

static char folder[] = "/tmp/libvfio-user-faults-XXXXXX";
char socket_path[sizeof(folder) + 16];

/* What each call may fail with, of what its manual page says and what can happen to
 * one that is made properly. */
static const int errors[SHIM_CALLS][10] = {
    [SHIM_ACCEPT4] = { EAGAIN, EINTR, ECONNABORTED, EMFILE, ENFILE, ENOBUFS, ENOMEM, EPERM },
    [SHIM_BIND] = { EADDRINUSE, EACCES, ENOENT, ENOMEM, EROFS, ENOTDIR, ELOOP },
    [SHIM_CLOSE] = { EINTR, EIO, ENOSPC, EDQUOT },
    [SHIM_EPOLL_CREATE1] = { EMFILE, ENFILE, ENOMEM },
    [SHIM_EPOLL_CTL] = { ENOMEM, ENOSPC },
    [SHIM_EVENTFD] = { EMFILE, ENFILE, ENODEV, ENOMEM },
    [SHIM_FCNTL] = { EBADF, EINVAL },
    [SHIM_FSTAT] = { ENOMEM, EOVERFLOW, EIO },
    [SHIM_FSTATFS] = { EINTR, EIO, ENOMEM, ENOSYS, EOVERFLOW },
    [SHIM_KCMP] = { EPERM, ENOSYS, EBADF },
    [SHIM_LISTEN] = { EADDRINUSE, EOPNOTSUPP },
    [SHIM_LSTAT] = { EACCES, ENOENT, ENOMEM, ELOOP },
    [SHIM_MADVISE] = { EAGAIN, EINVAL, ENOMEM, EIO },
    [SHIM_MALLOC] = { ENOMEM },
    [SHIM_MMAP] = { EACCES, EAGAIN, EINVAL, ENFILE, ENODEV, ENOMEM, EOVERFLOW, EPERM },
    [SHIM_MUNMAP] = { ENOMEM },
    [SHIM_POLL] = { EINTR, ENOMEM, EINVAL },
    [SHIM_PREAD] = { EINTR, EIO, EAGAIN },
    [SHIM_PWRITE] = { EINTR, EIO, ENOSPC, EFBIG, EDQUOT, EPERM },
    [SHIM_READ] = { EAGAIN, EINTR },
    [SHIM_RECVMSG] = { EAGAIN, EINTR, ECONNRESET, ECONNREFUSED, ENOMEM, ENOTCONN },
    [SHIM_SENDMSG] = { EAGAIN, EINTR, ECONNRESET, ENOBUFS, ENOMEM, ENOTCONN, EPIPE, ETOOMANYREFS },
    [SHIM_SETSOCKOPT] = { ENOMEM, EDOM, ENOPROTOOPT },
    [SHIM_SHUTDOWN] = { ENOTCONN, ENOBUFS },
    [SHIM_SOCKET] = { EACCES, EMFILE, ENFILE, ENOBUFS, ENOMEM },
    [SHIM_SOCKETPAIR] = { EMFILE, ENFILE, ENOMEM, ENOBUFS },
    [SHIM_UNLINK] = { EACCES, EBUSY, EIO, EROFS, ENOMEM },
    [SHIM_WRITE] = { EAGAIN, EINTR },
};

struct fault {
    enum session_kind kind;
    enum shim_call call;
    unsigned long n;
    int error;
};

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

/* What a session may leave behind that was made by the first: what the library
 * makes once for the whole process. */
static struct {
    long blocks, bytes, mappings;
    int descriptors;
} before;

static void
note_what_there_is(void)
{
    before.descriptors = count_descriptors();
    before.blocks = shim_blocks();
    before.bytes = shim_bytes();
    before.mappings = shim_mappings();
}

static void
check_nothing_is_left(const struct fault *fault)
{
    /* What could not be unmapped stays, and a path that could not be removed. */
    CHECK_EQ(shim_mappings() - before.mappings, fault->call == SHIM_MUNMAP && fault->n > 0);
    CHECK_EQ(shim_blocks() - before.blocks, 0);
    CHECK_EQ(shim_bytes() - before.bytes, 0);
    CHECK_EQ(count_descriptors() - before.descriptors, 0);
    if (unlink(socket_path) == 0) {
        CHECK(fault->call == SHIM_UNLINK || fault->call == SHIM_LSTAT);
    }
}

static void
run_session(const struct fault *fault)
{
    shim_arm(fault->call, fault->n, fault->error);
    session_run(fault->kind);
    check_nothing_is_left(fault);
}

/* The exit status of a session that made fewer calls than the fault's number: how many
 * there are varies a little, since a call of the library also ends after a bound of time. */
enum { NOT_REACHED = 4 };

static int unreached;

/* Returns whether the fault was survived. */
static bool
run_apart(const struct fault *fault)
{
    int status;
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        alarm(30);
        run_session(fault);
        if (shim_fired() || fault->kind == SESSION_BLOCKING) {
            _exit(EXIT_SUCCESS);
        }
        _exit(shim_count(fault->call) < fault->n ? NOT_REACHED : 3);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    unlink(socket_path);
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS) {
        return true;
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_REACHED) {
        unreached++;
        return true;
    }
    fprintf(stderr, "  %s: %s number %lu fails with %s: %s %d\n\n", session_names[fault->kind],
            shim_names[fault->call], fault->n, strerrorname_np(fault->error),
            WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return false;
}

static void
warm_up(enum session_kind kind)
{
    struct fault none = { .kind = kind };

    shim_arm(0, 0, 0);
    session_run(kind);
    note_what_there_is();
    run_session(&none);
}

static int
every_fault(enum session_kind kind)
{
    unsigned long counts[SHIM_CALLS];
    int faults = 0, failures = 0;

    warm_up(kind);
    for (int i = 0; i < SHIM_CALLS; i++) {
        counts[i] = shim_count(i);
    }
    for (int call = 0; call < SHIM_CALLS; call++) {
        for (unsigned long n = 1; n <= counts[call]; n++) {
            for (const int *error = errors[call]; *error != 0; error++, faults++) {
                struct fault fault = { kind, call, n, *error };
                failures += !run_apart(&fault);
            }
        }
        fprintf(stderr, "%s: %lu times %s\n", session_names[kind], counts[call], shim_names[call]);
    }
    fprintf(stderr, "%s: %d faults, %d not reached, %d not survived\n", session_names[kind], faults, unreached,
            failures);
    CHECK(faults > 0 && unreached * 20 < faults);
    return failures;
}

static int
lookup(const char *name, const char *const *names, int count)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(name, names[i]) == 0) {
            return i;
        }
    }
    CHECK(!"known name");
    return -1;
}

int
main(int argc, char **argv)
{
    int failures = 0;

    CHECK(mkdtemp(folder) != NULL);
    snprintf(socket_path, sizeof(socket_path), "%s/s", folder);
    if (argc == 5) {
        struct fault fault = { lookup(argv[1], session_names, SESSION_KINDS), lookup(argv[2], shim_names, SHIM_CALLS),
                               strtoul(argv[3], NULL, 10), atoi(argv[4]) };
        warm_up(fault.kind);
        run_session(&fault);
    }
    for (int kind = 0; argc < 5 && kind < SESSION_KINDS; kind++) {
        if (argc == 1 || strcmp(argv[1], session_names[kind]) == 0) {
            failures += every_fault(kind);
        }
    }
    CHECK_EQ(rmdir(folder), 0);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
