/*
 * Stands between the library and the C library: counts the calls that the library
 * makes, makes one of them fail, and keeps an account of the memory and the
 * mappings that the library has not given back.
 *
 * The functions are defined by the test program itself, in front of those of the
 * C library, so nothing has to be preloaded. They act on calls that are made inside of
 * VFU(), on the thread that makes it; the test's own calls pass untouched.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef SHIM_H
#define SHIM_H

#include <stdbool.h>

enum shim_call {
    SHIM_ACCEPT4,
    SHIM_AIO,
    SHIM_BIND,
    SHIM_CLOSE,
    SHIM_CONNECT,
    SHIM_EPOLL_CREATE1,
    SHIM_EPOLL_CTL,
    SHIM_EVENTFD,
    SHIM_FCNTL,
    SHIM_FLOCK,
    SHIM_FSTAT,
    SHIM_FSTATFS,
    SHIM_GETPEERNAME,
    SHIM_GETSOCKOPT,
    SHIM_KCMP,
    SHIM_LISTEN,
    SHIM_LSTAT,
    SHIM_MADVISE,
    SHIM_MALLOC,
    SHIM_MEMFD_CREATE,
    SHIM_MMAP,
    SHIM_MUNMAP,
    SHIM_OPEN,
    SHIM_POLL,
    SHIM_PREAD,
    SHIM_PWRITE,
    SHIM_READ,
    SHIM_READLINK,
    SHIM_RECVMSG,
    SHIM_RENAME,
    SHIM_SENDMSG,
    SHIM_SETSOCKOPT,
    SHIM_SHUTDOWN,
    SHIM_SOCKET,
    SHIM_SOCKETPAIR,
    SHIM_UNLINK,
    SHIM_WRITE,
    SHIM_CALLS
};

extern const char *const shim_names[SHIM_CALLS];

/* Whether calls of this thread are the library's. */
extern _Thread_local bool shim_on;

/* Evaluates a call of the library. A callback that it makes is not part of it:
 * see SHIM_OUTSIDE. */
#define VFU(call)                           \
    ({                                      \
        shim_on = true;                     \
        __typeof__(call) vfu_result_ = (call); \
        shim_on = false;                    \
        vfu_result_;                        \
    })
#define VFU_VOID(call)   \
    do {                 \
        shim_on = true;  \
        call;            \
        shim_on = false; \
    } while (0)

/* At the start of a callback. */
#define SHIM_OUTSIDE \
    __attribute__((cleanup(shim_back_inside))) bool shim_was_on_ = shim_on; \
    shim_on = false

static inline void
shim_back_inside(bool *was_on)
{
    shim_on = *was_on;
}

/* Counts from 0 again, and makes the n-th call (1 is the first; 0: none) of a
 * kind fail with this errno. */
void shim_arm(enum shim_call call, unsigned long n, int error);

/* Kills the process at the n-th call of any kind but for memory, after shim_arm(0, 0, 0). */
void shim_kill_at(unsigned long n);

/* While it is true, memory is never refused nor counted. */
extern bool shim_spares_memory;

/* How many calls of a kind were made since. */
unsigned long shim_count(enum shim_call call);

/* Whether the call failed that was to fail. */
bool shim_fired(void);

/* Blocks of memory, and mappings, that the library has and will have to give
 * back; the bytes of the former. */
long shim_blocks(void);
long shim_bytes(void);
long shim_mappings(void);

#endif /* SHIM_H */
