/*
 * Live upgrade: the example nvme is replaced by another process of itself, again and
 * again, while its client reads a register all the time. What counts is the longest that
 * a read takes during an upgrade, against the longest without one in the same run.
 *
 * VFU_EXAMPLES: the folder of the example.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

enum { UPGRADES = 40, CSTS = 0x1c };

#define GUEST_SIZE (UINT64_C(4) << 30)

static char control_path[sizeof(socket_path) + 8];
static int client;
static struct series with, without;

/* Starts the example, to take over, or to be taken over from. */
static pid_t
start(bool takes_over)
{
    static char program[256], option[sizeof(control_path) + 16];
    const char *folder = getenv("VFU_EXAMPLES");
    pid_t child;

    CHECK(folder != NULL);
    snprintf(program, sizeof(program), "%s/nvme", folder);
    snprintf(option, sizeof(option), "--%s-over=%s", takes_over ? "take" : "hand", control_path);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char *argv[] = { program, option, takes_over ? NULL : "--size=16M", socket_path, NULL };

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execv(program, argv);
        perror(program);
        _exit(1);
    }
    return child;
}

static void
connect_to(pid_t server)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    strncpy(address.sun_path, socket_path, sizeof(address.sun_path) - 1);
    client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while (connect(client, (struct sockaddr *)&address, sizeof(address)) != 0) {
        CHECK(errno == ENOENT || errno == ECONNREFUSED);
        CHECK_EQ(waitpid(server, NULL, WNOHANG), 0);
        sched_yield();
    }
}

static void
attach(int regions, int memory)
{
    uint64_t size = GUEST_SIZE / regions / 4096 * 4096;
    struct vfio_user_header header;
    char reply[1024];

    client_send_version(client);
    client_recv(client, &header, reply, sizeof(reply));
    for (int i = 0; i < regions; i++) {
        struct vfio_user_dma_map map = {
            .argsz = sizeof(map), .flags = 3, .offset = i * size, .addr = i * size, .size = size };

        client_send_flags(client, i, VFIO_USER_DMA_MAP, 0, &map, sizeof(map), memory);
        client_reply(client, i, VFIO_USER_DMA_MAP, NULL, 0);
    }
}

/* One read of a register; returns what it took, in nanoseconds. */
static uint64_t
read_register(void)
{
    struct vfio_user_region_access access = { .offset = CSTS, .region = 0, .count = 4 };
    char reply[sizeof(access) + 4];
    uint64_t start = bench_clock(CLOCK_MONOTONIC);

    client_send(client, 1, VFIO_USER_REGION_READ, &access, sizeof(access));
    client_reply(client, 1, VFIO_USER_REGION_READ, reply, sizeof(reply));
    return bench_clock(CLOCK_MONOTONIC) - start;
}

/* The longest of all reads until the process has ended, or, without one, of so many. */
static uint64_t
longest(pid_t until, unsigned *count)
{
    uint64_t most = 0;
    unsigned done = 0;

    while (until != -1 ? waitpid(until, NULL, WNOHANG) == 0 : done < *count) {
        uint64_t took = read_register();

        most = took > most ? took : most;
        done++;
    }
    *count = done;
    return most;
}

static void
measure(int regions, double aim)
{
    int memory = memfd_create("guest", MFD_CLOEXEC);
    pid_t server = start(false);
    unsigned reads = 1000;

    CHECK_EQ(ftruncate(memory, GUEST_SIZE), 0);
    connect_to(server);
    attach(regions, memory);
    longest(-1, &reads);
    with.count = without.count = 0;
    for (int i = 0; i < UPGRADES; i++) {
        pid_t next = start(true);

        sample(&with, longest(server, &reads));
        /* As many without. */
        sample(&without, longest(-1, &reads));
        server = next;
    }
    typical(&with); /* sorts */
    typical(&without);
    printf("longest wait of an upgrade, %4d regions: median %.2f ms, lowest %.2f, without one %.2f (aim: %.0f)\n",
           regions, typical(&with) / 1e6, with.values[0] / 1e6, typical(&without) / 1e6, aim);
    close(client);
    kill(server, SIGTERM);
    CHECK_EQ(waitpid(server, NULL, 0), server);
    close(memory);
}

int
main(void)
{
    make_socket_folder();
    snprintf(control_path, sizeof(control_path), "%s.up", socket_path);
    bench_init();
    measure(1, 2);
    measure(64, 2);
    measure(1000, 5);
    remove_socket_folder();
    return 0;
}
