/*
 * A seccomp filter that lets through the system calls of a list, for the process
 * that installs it. With any other call it ends, and says which that was.
 *
 * The list has a name on each line; what follows a '#' is a comment.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#ifndef CONFINE_H
#define CONFINE_H

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

/* How a process ends that made another call. */
enum { NOT_IN_THE_LIST = 42 };

struct call {
    const char *name;
    long number;
};

#define CALL(name) { #name, SYS_##name }

/* What the list may have: a name that is missing here fails the test, too. */
static const struct call known_calls[] = {
#if defined(__x86_64__)
    CALL(accept4), CALL(brk), CALL(clock_gettime), CALL(close), CALL(dup), CALL(epoll_create1), CALL(epoll_ctl),
    CALL(eventfd2), CALL(exit), CALL(exit_group), CALL(fcntl), CALL(fstat), CALL(fstatfs), CALL(futex),
    CALL(getpid), CALL(getrandom), CALL(getrlimit), CALL(getsockopt), CALL(gettid), CALL(io_cancel),
    CALL(io_destroy), CALL(io_getevents), CALL(io_pgetevents), CALL(io_setup), CALL(io_submit), CALL(kcmp),
    CALL(listen), CALL(lseek), CALL(madvise), CALL(membarrier), CALL(mincore), CALL(mmap), CALL(mprotect),
    CALL(mremap), CALL(munmap), CALL(newfstatat), CALL(openat), CALL(poll), CALL(ppoll), CALL(pread64),
    CALL(preadv), CALL(preadv2), CALL(prlimit64), CALL(pwrite64), CALL(pwritev), CALL(pwritev2), CALL(read),
    CALL(readlink), CALL(readlinkat), CALL(recvfrom), CALL(recvmsg), CALL(restart_syscall), CALL(rt_sigaction),
    CALL(rt_sigprocmask), CALL(rt_sigreturn), CALL(sched_yield), CALL(sendmsg), CALL(sendto), CALL(setsockopt),
    CALL(shutdown), CALL(sigaltstack), CALL(socketpair), CALL(statx), CALL(tgkill), CALL(unlink), CALL(unlinkat),
    CALL(write), CALL(writev),
#else
    /* The list is one of x86-64: see docs/system-calls.list. */
    { "", -1 },
#endif
};

#undef CALL

/* Without a filter: says to whoever traces this process that the calls up to the
 * next mark are to be looked at. Nobody else asks for a negative priority. */
static inline void
confine_mark(void)
{
    (void)syscall(SYS_getpriority, -1, 0);
}

static inline long
call_number(const char *name)
{
    for (size_t i = 0; i < sizeof(known_calls) / sizeof(known_calls[0]); i++) {
        if (strcmp(known_calls[i].name, name) == 0) {
            return known_calls[i].number;
        }
    }
    fprintf(stderr, "confine.h does not know %s\n", name);
    exit(EXIT_FAILURE);
}

/* In a signal handler; write() and the end of the process are in any list. */
static void
say_which(int number, siginfo_t *info, void *context)
{
    char text[] = "system call ..... is not in the list\n";
    int left = info->si_syscall;

    (void)number, (void)context;
    for (char *digit = text + 16; digit > text + 11; digit--, left /= 10) {
        *digit = '0' + left % 10;
    }
    (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
    _exit(NOT_IN_THE_LIST);
}

static inline void
install(struct sock_filter *code, size_t count)
{
    struct sock_fprog program = { .len = count, .filter = code };

    CHECK_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    CHECK_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);
}

/* From now on the process makes no other calls than those of the list; with NULL
 * it is marked where that would be. */
static inline void
confine(const char *list)
{
    struct sigaction action = { .sa_sigaction = say_which, .sa_flags = SA_SIGINFO };
    struct sock_filter code[512] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    };
    size_t count = 4;
    char line[256];
    FILE *file;

    if (list == NULL) {
        confine_mark();
        return;
    }
    file = fopen(list, "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof(line), file) != NULL) {
        line[strcspn(line, " #\n")] = '\0';
        if (line[0] != '\0') {
            CHECK(count + 3 < sizeof(code) / sizeof(code[0]));
            code[count++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call_number(line), 0, 1);
            code[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
        }
    }
    fclose(file);
    CHECK(count > 4);
    code[count++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    CHECK_EQ(sigaction(SIGSYS, &action, NULL), 0);
    install(code, count);
}

/* The end of a process that was confined. */
static inline void
end_confined(bool is_traced)
{
    if (is_traced) {
        confine_mark();
    }
    _exit(EXIT_SUCCESS);
}

/* Whether this system lets a process have a filter; says why not. */
static inline bool
can_confine(void)
{
    struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
    struct sock_fprog program = { .len = 1, .filter = code };
    int status = 1;
    pid_t pid;

#if !defined(__x86_64__)
    fprintf(stderr, "skipped: the list is of the system calls of x86-64\n");
    return false;
#endif
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        _exit(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
              prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (status != 0) {
        fprintf(stderr, "skipped: this system allows no seccomp filter\n");
    }
    return status == 0;
}

#endif /* CONFINE_H */
