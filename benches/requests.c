/*
 * What the library adds to the system calls of a request. Client and server are
 * one thread here, so nothing is measured but the call of vfu_run_ctx(): against
 * the system calls that it cannot do without, on a socket of the same kind with
 * the same bytes in it.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

enum { BAR_SIZE = 0x10000, ROUNDS = 20000, BURST = 64, DEPTH = 32, BURSTS = 2000 };
enum { READ_SIZE = 32, REPLY_SIZE = 32 + 4, WRITE_SIZE = 32 + 4, WRITE_REPLY_SIZE = 32 };

static vfu_ctx_t *ctx;
static int client;
/* The floor's socket: [0] is the client's end. */
static int bare[2];
static char memory[BAR_SIZE], scratch[BAR_SIZE];
static struct series subject, floor_of;
static double overhead;

static ssize_t
bar_access(vfu_ctx_t *c, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)c;
    if (is_write) {
        memcpy(memory + offset, buf, count);
    } else {
        memcpy(buf, memory + offset, count);
    }
    return count;
}

static void
start(void)
{
    ctx = vfu_create_ctx(VFU_TRANS_SOCK, socket_path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);
    CHECK(ctx != NULL);
    CHECK_EQ(vfu_setup_region(ctx, 0, BAR_SIZE, bar_access, VFU_REGION_FLAG_RW | VFU_REGION_FLAG_MEM, NULL, 0,
                              -1, 0), 0);
    CHECK_EQ(vfu_realize_ctx(ctx), 0);
    client = client_connect();
    client_send_version(client);
    CHECK_EQ(vfu_attach_ctx(ctx), 0);
    client_recv_version(client);
    CHECK(vfu_get_poll_fd(ctx) >= 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, bare), 0);
    overhead = clock_cost();
}

/* A call of the library that handles `count` requests. */
static void
timed_run(int count)
{
    uint64_t begin = now();
    int done = vfu_run_ctx(ctx);
    uint64_t end = now();

    CHECK_EQ(done, count);
    sample(&subject, (end - begin) * bench_tick - overhead);
}

/* As timed_floor(), but the receive is one that can take descriptors: only
 * recvmsg() can. */
static void
timed_recvmsg_floor(size_t size, size_t reply)
{
    static char control[1024];
    struct iovec iov = { scratch, sizeof(scratch) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                          .msg_controllen = sizeof(control) };
    uint64_t begin = now();
    ssize_t got = recvmsg(bare[1], &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    ssize_t sent = send(bare[1], scratch, reply, MSG_DONTWAIT | MSG_NOSIGNAL);
    uint64_t end = now();

    CHECK_EQ(got, size);
    CHECK_EQ(sent, reply);
    sample(&floor_of, (end - begin) * bench_tick - overhead);
}

/* One recv of a request, of `size` bytes, and one send of its reply, if any. */
static void
timed_floor(size_t size, size_t reply)
{
    uint64_t begin = now();
    ssize_t got = recv(bare[1], scratch, sizeof(scratch), MSG_DONTWAIT);
    ssize_t sent = reply > 0 ? send(bare[1], scratch, reply, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    uint64_t end = now();

    CHECK_EQ(got, size);
    CHECK_EQ(sent, reply);
    sample(&floor_of, (end - begin) * bench_tick - overhead);
}

static void
one_read(bool with_recvmsg)
{
    const char *name = with_recvmsg ? "4-byte read: run_ctx / recvmsg + send" : "4-byte read: run_ctx / recv + send";

    for (int i = 0; i < ROUNDS; i++) {
        client_send_region_read(client, i, 0, 8, 4);
        timed_run(1);
        client_read(client, scratch, REPLY_SIZE);
        client_send_region_read(bare[0], i, 0, 8, 4);
        if (with_recvmsg) {
            timed_recvmsg_floor(READ_SIZE, REPLY_SIZE);
        } else {
            timed_floor(READ_SIZE, REPLY_SIZE);
        }
        client_read(bare[0], scratch, REPLY_SIZE);
    }
    report(name, &subject, &floor_of, 1, with_recvmsg ? 0 : 1.25);
}

static void
one_write(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        client_send_region_write(client, i, 0, 0, 8, "1234", 4);
        timed_run(1);
        client_read(client, scratch, WRITE_REPLY_SIZE);
        client_send_region_write(bare[0], i, 0, 0, 8, "1234", 4);
        timed_floor(WRITE_SIZE, WRITE_REPLY_SIZE);
        client_read(bare[0], scratch, WRITE_REPLY_SIZE);
    }
    report("4-byte write: run_ctx / recv + send", &subject, &floor_of, 1, 1.25);
}

static char burst[BURST * WRITE_SIZE];

/* The writes as one stretch of bytes. */
static void
make_burst(void)
{
    for (int i = 0; i < BURST; i++) {
        struct vfio_user_header header = { .msg_id = i, .cmd = VFIO_USER_REGION_WRITE, .msg_size = WRITE_SIZE,
                                           .flags = VFIO_USER_F_NO_REPLY };
        struct vfio_user_region_access access = { .offset = 8 * i, .region = 0, .count = 4 };
        char *at = burst + i * WRITE_SIZE;

        memcpy(at, &header, sizeof(header));
        memcpy(at + sizeof(header), &access, sizeof(access));
    }
}

/* Whether each write was sent by itself or all by one call, run_ctx receives
 * them all at once; the floor receives them one by one, as they are. */
static void
posted_writes(bool separately)
{
    const char *name = separately ? "posted write of 64, each sent by itself / recv"
                                  : "posted write of 64, sent together / recv";

    for (int round = 0; round < BURSTS; round++) {
        uint64_t begin, end;

        for (int at = 0; at < (int)sizeof(burst);) {
            int part = separately ? WRITE_SIZE : (int)sizeof(burst);
            CHECK_EQ(send(client, burst + at, part, 0), part);
            CHECK_EQ(send(bare[0], burst + at, part, 0), part);
            at += part;
        }
        timed_run(BURST);
        begin = now();
        for (int i = 0; i < BURST; i++) {
            (void)!recv(bare[1], scratch, WRITE_SIZE, MSG_DONTWAIT);
        }
        end = now();
        sample(&floor_of, (end - begin) * bench_tick - overhead);
        CHECK(recv(bare[1], scratch, 1, MSG_DONTWAIT) == -1);
    }
    report(name, &subject, &floor_of, BURST, -6);
}

/* The same burst, against one recv of all of it: what handling one costs. */
static void
posted_writes_at_once(void)
{
    for (int round = 0; round < BURSTS; round++) {
        for (int i = 0; i < BURST; i++) {
            CHECK_EQ(send(client, burst + i * WRITE_SIZE, WRITE_SIZE, 0), WRITE_SIZE);
            CHECK_EQ(send(bare[0], burst + i * WRITE_SIZE, WRITE_SIZE, 0), WRITE_SIZE);
        }
        timed_run(BURST);
        timed_floor(sizeof(burst), 0);
    }
    report("posted write of 64 / share of one recv of all", &subject, &floor_of, BURST, 0);
}

static void
pipelined_reads(void)
{
    for (int round = 0; round < BURSTS; round++) {
        for (int i = 0; i < DEPTH; i++) {
            client_send_region_read(client, i, 0, 8 * i, 4);
            client_send_region_read(bare[0], i, 0, 8 * i, 4);
        }
        timed_run(DEPTH);
        client_read(client, scratch, DEPTH * REPLY_SIZE);
        timed_floor(DEPTH * READ_SIZE, DEPTH * REPLY_SIZE);
        client_read(bare[0], scratch, DEPTH * REPLY_SIZE);
    }
    report("read, 32 pipelined / share of recv + send", &subject, &floor_of, DEPTH, 0);
    for (int round = 0; round < BURSTS; round++) {
        uint64_t begin, end;

        for (int i = 0; i < DEPTH; i++) {
            client_send_region_read(client, i, 0, 8 * i, 4);
            client_send_region_read(bare[0], i, 0, 8 * i, 4);
        }
        timed_run(DEPTH);
        client_read(client, scratch, DEPTH * REPLY_SIZE);
        begin = now();
        for (int i = 0; i < DEPTH; i++) {
            (void)!recv(bare[1], scratch, READ_SIZE, MSG_DONTWAIT);
            (void)!send(bare[1], scratch, REPLY_SIZE, MSG_DONTWAIT);
        }
        end = now();
        sample(&floor_of, (end - begin) * bench_tick - overhead);
        client_read(bare[0], scratch, DEPTH * REPLY_SIZE);
    }
    report("read, 32 pipelined / recv + send each", &subject, &floor_of, DEPTH, 0);
}

static void
idle_poll(void)
{
    static char control[4096];
    struct iovec iov = { scratch, sizeof(scratch) };
    struct msghdr msg;

    for (int i = 0; i < ROUNDS; i++) {
        uint64_t begin, end;
        ssize_t got;

        timed_run(0);
        msg = (struct msghdr){ .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                               .msg_controllen = sizeof(control) };
        begin = now();
        got = recvmsg(bare[1], &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        end = now();
        CHECK_EQ(got, -1);
        sample(&floor_of, (end - begin) * bench_tick - overhead);
    }
    report("idle run_ctx / empty recvmsg", &subject, &floor_of, 1, 0);
}

int
main(void)
{
    bench_init();
    make_socket_folder();
    start();
    make_burst();
    heading("requests, in one thread");
    one_read(false);
    one_read(true);
    one_write();
    posted_writes(true);
    posted_writes(false);
    posted_writes_at_once();
    pipelined_reads();
    idle_poll();
    close(client);
    CHECK_FAILS(vfu_run_ctx(ctx), ENOTCONN);
    vfu_destroy_ctx(ctx);
    remove_socket_folder();
    return 0;
}
