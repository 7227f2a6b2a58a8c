/* See shim.h.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* gives fstat() and others the names of fstat64() and others */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "shim.h"

const char *const shim_names[SHIM_CALLS] = {
    [SHIM_ACCEPT4] = "accept4",
    [SHIM_AIO] = "aio",
    [SHIM_BIND] = "bind",
    [SHIM_CLOSE] = "close",
    [SHIM_CONNECT] = "connect",
    [SHIM_EPOLL_CREATE1] = "epoll_create1",
    [SHIM_EPOLL_CTL] = "epoll_ctl",
    [SHIM_EVENTFD] = "eventfd",
    [SHIM_FCNTL] = "fcntl",
    [SHIM_FLOCK] = "flock",
    [SHIM_FSTAT] = "fstat",
    [SHIM_FSTATFS] = "fstatfs",
    [SHIM_GETPEERNAME] = "getpeername",
    [SHIM_GETSOCKOPT] = "getsockopt",
    [SHIM_KCMP] = "kcmp",
    [SHIM_LISTEN] = "listen",
    [SHIM_LSTAT] = "lstat",
    [SHIM_MADVISE] = "madvise",
    [SHIM_MALLOC] = "malloc",
    [SHIM_MEMFD_CREATE] = "memfd_create",
    [SHIM_MMAP] = "mmap",
    [SHIM_MUNMAP] = "munmap",
    [SHIM_OPEN] = "open",
    [SHIM_POLL] = "poll",
    [SHIM_PREAD] = "pread",
    [SHIM_PWRITE] = "pwrite",
    [SHIM_READ] = "read",
    [SHIM_READLINK] = "readlink",
    [SHIM_RECVMSG] = "recvmsg",
    [SHIM_RENAME] = "rename",
    [SHIM_SENDMSG] = "sendmsg",
    [SHIM_SETSOCKOPT] = "setsockopt",
    [SHIM_SHUTDOWN] = "shutdown",
    [SHIM_SOCKET] = "socket",
    [SHIM_SOCKETPAIR] = "socketpair",
    [SHIM_UNLINK] = "unlink",
    [SHIM_WRITE] = "write",
};

_Thread_local bool shim_on;
bool shim_spares_memory;

static atomic_ulong counts[SHIM_CALLS];
static atomic_bool fired;
static enum shim_call fault_call;
static unsigned long fault_n;
static int fault_error;
static atomic_long mappings;
static atomic_ulong steps, kill_step;

void
shim_arm(enum shim_call call, unsigned long n, int error)
{
    for (int i = 0; i < SHIM_CALLS; i++) {
        atomic_store(&counts[i], 0);
    }
    fault_call = call;
    fault_n = n;
    fault_error = error;
    atomic_store(&fired, false);
}

void
shim_kill_at(unsigned long n)
{
    shim_arm(0, 0, 0);
    atomic_store(&steps, 0);
    atomic_store(&kill_step, n);
}

unsigned long
shim_count(enum shim_call call)
{
    return atomic_load(&counts[call]);
}

bool
shim_fired(void)
{
    return atomic_load(&fired);
}

long
shim_mappings(void)
{
    return atomic_load(&mappings);
}

/* Whether this call is the library's and has to fail; errno is set then. */
static bool
fails(enum shim_call call)
{
    if (!shim_on || (call == SHIM_MALLOC && shim_spares_memory)) {
        return false;
    }
    if (call != SHIM_MALLOC && kill_step != 0 && atomic_fetch_add(&steps, 1) + 1 == kill_step) {
        kill(getpid(), SIGKILL);
    }
    if (atomic_fetch_add(&counts[call], 1) + 1 != fault_n || call != fault_call) {
        return false;
    }
    atomic_store(&fired, true);
    errno = fault_error;
    return true;
}

/* --- memory ------------------------------------------------------------------ */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t align, size_t size);
extern void __libc_free(void *block);

/* The library's blocks, by address; a hash table that never moves. */
enum { SLOTS = 1 << 18 };
#define REMOVED ((void *)1)

static struct {
    void *block;
    size_t size;
} table[SLOTS];
static atomic_flag table_lock = ATOMIC_FLAG_INIT;
static atomic_long blocks, bytes;

long
shim_blocks(void)
{
    return atomic_load(&blocks);
}

long
shim_bytes(void)
{
    return atomic_load(&bytes);
}

static size_t
place_of(const void *block)
{
    return (uintptr_t)block * 0x9e3779b97f4a7c15 >> 46;
}

static void
lock_table(void)
{
    while (atomic_flag_test_and_set(&table_lock)) {
    }
}

static void *
remember(void *block, size_t size)
{
    size_t at = place_of(block);

    if (!shim_on || block == NULL) {
        return block;
    }
    lock_table();
    while (table[at].block != NULL && table[at].block != REMOVED) {
        at = (at + 1) % SLOTS;
    }
    table[at].block = block;
    table[at].size = size;
    atomic_flag_clear(&table_lock);
    atomic_fetch_add(&blocks, 1);
    atomic_fetch_add(&bytes, size);
    return block;
}

/* Returns whether it was the library's. */
static bool
forget(void *block)
{
    bool found;
    size_t at = place_of(block);

    if (block == NULL || atomic_load(&blocks) == 0) {
        return false;
    }
    lock_table();
    while (table[at].block != NULL && table[at].block != block) {
        at = (at + 1) % SLOTS;
    }
    found = table[at].block == block;
    if (found) {
        atomic_fetch_sub(&blocks, 1);
        atomic_fetch_sub(&bytes, table[at].size);
        /* An empty place behind lets searches end here, too. */
        table[at].block = table[(at + 1) % SLOTS].block == NULL ? NULL : REMOVED;
    }
    atomic_flag_clear(&table_lock);
    return found;
}

void *
malloc(size_t size)
{
    return fails(SHIM_MALLOC) ? NULL : remember(__libc_malloc(size), size);
}

void *
calloc(size_t n, size_t size)
{
    return fails(SHIM_MALLOC) ? NULL : remember(__libc_calloc(n, size), n * size);
}

void *
realloc(void *old, size_t size)
{
    bool ours;
    void *new;

    if (fails(SHIM_MALLOC)) {
        return NULL;
    }
    ours = forget(old);
    new = __libc_realloc(old, size);
    if (ours) {
        bool on = shim_on;
        shim_on = true;
        remember(new, size);
        shim_on = on;
        return new;
    }
    return old == NULL ? remember(new, size) : new;
}

void *
memalign(size_t align, size_t size)
{
    return fails(SHIM_MALLOC) ? NULL : remember(__libc_memalign(align, size), size);
}

void *
aligned_alloc(size_t align, size_t size)
{
    return memalign(align, size);
}

int
posix_memalign(void **out, size_t align, size_t size)
{
    void *block = memalign(align, size);

    if (block == NULL) {
        return ENOMEM;
    }
    *out = block;
    return 0;
}

void
free(void *block)
{
    forget(block);
    __libc_free(block);
}

/* --- system calls ------------------------------------------------------------ */

static void *
next(const char *name)
{
    bool on = shim_on;
    void *function;

    shim_on = false;
    function = dlsym(RTLD_NEXT, name);
    shim_on = on;
    if (function == NULL) {
        abort();
    }
    return function;
}

/* Defines a function of the C library with an int or ssize_t result. */
#define INTERPOSE(result, name, call, parameters, arguments) \
    result name parameters                                   \
    {                                                        \
        static result(*_Atomic real) parameters;             \
        if (real == NULL) {                                  \
            real = (result(*) parameters)next(#name);        \
        }                                                    \
        return fails(call) ? -1 : real arguments;            \
    }

INTERPOSE(int, accept4, SHIM_ACCEPT4, (int s, struct sockaddr *a, socklen_t *l, int f), (s, a, l, f))
INTERPOSE(int, bind, SHIM_BIND, (int s, const struct sockaddr *a, socklen_t l), (s, a, l))
INTERPOSE(int, connect, SHIM_CONNECT, (int s, const struct sockaddr *a, socklen_t l), (s, a, l))
INTERPOSE(int, epoll_create1, SHIM_EPOLL_CREATE1, (int f), (f))
INTERPOSE(int, epoll_ctl, SHIM_EPOLL_CTL, (int e, int op, int fd, struct epoll_event *ev), (e, op, fd, ev))
INTERPOSE(int, eventfd, SHIM_EVENTFD, (unsigned n, int f), (n, f))
INTERPOSE(int, flock, SHIM_FLOCK, (int fd, int how), (fd, how))
INTERPOSE(int, fstat, SHIM_FSTAT, (int fd, struct stat *s), (fd, s))
INTERPOSE(int, fstat64, SHIM_FSTAT, (int fd, struct stat64 *s), (fd, s))
INTERPOSE(int, fstatfs64, SHIM_FSTATFS, (int fd, struct statfs64 *s), (fd, s))
INTERPOSE(int, getpeername, SHIM_GETPEERNAME, (int s, struct sockaddr *a, socklen_t *l), (s, a, l))
INTERPOSE(int, getsockopt, SHIM_GETSOCKOPT, (int s, int l, int o, void *restrict v, socklen_t *restrict n),
          (s, l, o, v, n))
INTERPOSE(int, listen, SHIM_LISTEN, (int s, int n), (s, n))
INTERPOSE(int, lstat, SHIM_LSTAT, (const char *p, struct stat *s), (p, s))
INTERPOSE(int, lstat64, SHIM_LSTAT, (const char *p, struct stat64 *s), (p, s))
INTERPOSE(int, statx, SHIM_LSTAT, (int d, const char *restrict p, int f, unsigned m, struct statx *restrict s),
          (d, p, f, m, s))
INTERPOSE(int, madvise, SHIM_MADVISE, (void *a, size_t n, int how), (a, n, how))
INTERPOSE(int, memfd_create, SHIM_MEMFD_CREATE, (const char *n, unsigned f), (n, f))
INTERPOSE(int, poll, SHIM_POLL, (struct pollfd *f, nfds_t n, int t), (f, n, t))
INTERPOSE(ssize_t, pread64, SHIM_PREAD, (int fd, void *b, size_t n, off64_t at), (fd, b, n, at))
INTERPOSE(ssize_t, pwrite64, SHIM_PWRITE, (int fd, const void *b, size_t n, off64_t at), (fd, b, n, at))
INTERPOSE(ssize_t, read, SHIM_READ, (int fd, void *b, size_t n), (fd, b, n))
INTERPOSE(ssize_t, readlink, SHIM_READLINK, (const char *restrict p, char *restrict b, size_t n), (p, b, n))
INTERPOSE(ssize_t, recv, SHIM_RECVMSG, (int s, void *b, size_t n, int f), (s, b, n, f))
INTERPOSE(ssize_t, recvmsg, SHIM_RECVMSG, (int s, struct msghdr *m, int f), (s, m, f))
/* One way of sending or the other: a matter of what is sent. */
INTERPOSE(ssize_t, send, SHIM_SENDMSG, (int s, const void *b, size_t n, int f), (s, b, n, f))
INTERPOSE(ssize_t, sendmsg, SHIM_SENDMSG, (int s, const struct msghdr *m, int f), (s, m, f))
INTERPOSE(int, rename, SHIM_RENAME, (const char *from, const char *to), (from, to))
INTERPOSE(int, setsockopt, SHIM_SETSOCKOPT, (int s, int l, int o, const void *v, socklen_t n), (s, l, o, v, n))
INTERPOSE(int, shutdown, SHIM_SHUTDOWN, (int s, int how), (s, how))
INTERPOSE(int, socket, SHIM_SOCKET, (int d, int t, int p), (d, t, p))
INTERPOSE(int, socketpair, SHIM_SOCKETPAIR, (int d, int t, int p, int s[2]), (d, t, p, s))
INTERPOSE(int, unlink, SHIM_UNLINK, (const char *p), (p))
INTERPOSE(ssize_t, write, SHIM_WRITE, (int fd, const void *b, size_t n), (fd, b, n))

/* Linux closes the descriptor whatever it says. */
int
close(int fd)
{
    bool failed = fails(SHIM_CLOSE);
    int error = errno;
    int result = (int)syscall(SYS_close, fd);

    if (failed) {
        errno = error;
        return -1;
    }
    return result;
}

int
fcntl(int fd, int cmd, ...)
{
    static int (*_Atomic real)(int, int, ...);
    va_list arguments;
    long argument;

    if (real == NULL) {
        real = (int (*)(int, int, ...))next("fcntl");
    }
    va_start(arguments, cmd);
    argument = va_arg(arguments, long);
    va_end(arguments);
    return fails(SHIM_FCNTL) ? -1 : real(fd, cmd, argument);
}

int
open(const char *path, int flags, ...)
{
    static int (*_Atomic real)(const char *, int, ...);
    va_list arguments;
    unsigned mode;

    if (real == NULL) {
        real = (int (*)(const char *, int, ...))next("open");
    }
    va_start(arguments, flags);
    mode = va_arg(arguments, unsigned);
    va_end(arguments);
    return fails(SHIM_OPEN) ? -1 : real(path, flags, mode);
}

/* Calls that are made without the C library's functions. */
static const struct {
    long number;
    enum shim_call call;
} raw_calls[] = {
    { SYS_io_getevents, SHIM_AIO }, { SYS_io_setup, SHIM_AIO },
    { SYS_io_submit, SHIM_AIO },     { SYS_kcmp, SHIM_KCMP },        { SYS_ppoll, SHIM_POLL },
    { SYS_recvmsg, SHIM_RECVMSG },   { SYS_write, SHIM_WRITE },
};

long
syscall(long number, ...)
{
    static long (*_Atomic real)(long, ...);
    va_list arguments;
    long a[6];

    if (real == NULL) {
        real = (long (*)(long, ...))next("syscall");
    }
    va_start(arguments, number);
    for (int i = 0; i < 6; i++) {
        a[i] = va_arg(arguments, long);
    }
    va_end(arguments);
    for (size_t i = 0; i < sizeof(raw_calls) / sizeof(raw_calls[0]); i++) {
        if (raw_calls[i].number == number && fails(raw_calls[i].call)) {
            return -1;
        }
    }
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void *
mmap64(void *at, size_t size, int prot, int flags, int fd, off64_t offset)
{
    static void *(*_Atomic real)(void *, size_t, int, int, int, off64_t);
    void *mapping;

    if (real == NULL) {
        real = (void *(*)(void *, size_t, int, int, int, off64_t))next("mmap64");
    }
    if (fails(SHIM_MMAP)) {
        return MAP_FAILED;
    }
    mapping = real(at, size, prot, flags, fd, offset);
    if (shim_on && mapping != MAP_FAILED && !(flags & MAP_FIXED)) {
        atomic_fetch_add(&mappings, 1);
    }
    return mapping;
}

void *
mmap(void *at, size_t size, int prot, int flags, int fd, off_t offset)
{
    return mmap64(at, size, prot, flags, fd, offset);
}

int
munmap(void *at, size_t size)
{
    static int (*_Atomic real)(void *, size_t);

    if (real == NULL) {
        real = (int (*)(void *, size_t))next("munmap");
    }
    if (fails(SHIM_MUNMAP)) {
        return -1;
    }
    if (shim_on) {
        atomic_fetch_sub(&mappings, 1);
    }
    return real(at, size);
}
