/*
 * 4 KiB random reads from the example nvme, 32 at a time: the server looks at the
 * doorbells in shared memory and the client at the completion queue, each on a
 * processor of its own, so that no message is sent at all. Against two floors: a
 * thread that only follows the same rings and copies the data, without a library
 * and without looking at what it is told; and the copies alone. The server is
 * stopped while a floor is measured, and a floor's thread runs on its processor.
 *
 * VFU_EXAMPLES: the folder of the example. VFU_BENCH_UNDER: a command to start it
 * with, like a profiler's, whose options are separated by spaces.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#include "bench.h"

#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum {
    PAGE = 4096,
    DEPTH = 32,
    ENTRIES = 64,     /* of the I/O queues */
    ADMIN_ENTRIES = 16,
    ROUNDS = 20,
    READS = 50000,    /* in a round */
};

/* Where things are in the guest's memory. */
enum {
    GUEST_ADDRESS = 0x100000,
    ADMIN_SQ = 0,
    ADMIN_CQ = PAGE,
    IDENTIFY_DATA = 2 * PAGE,
    IO_SQ = 3 * PAGE,
    IO_CQ = 4 * PAGE,
    FLOOR_SQ = 5 * PAGE,
    FLOOR_CQ = 6 * PAGE,
    FLOOR_DOORBELLS = 7 * PAGE,
    BUFFERS = 16 * PAGE,
    GUEST_SIZE = 64 << 20,
};

/* The registers of a controller, and what is written to them. */
enum {
    REG_CC = 0x14,
    REG_CSTS = 0x1c,
    REG_AQA = 0x24,
    REG_ASQ = 0x28,
    REG_ACQ = 0x30,
    REG_DOORBELLS = 0x1000,
    CC_ENABLE = 1 | 6 << 16 | 4 << 20,
    CSTS_RDY = 1,
};

enum { ADMIN_CREATE_SQ = 1, ADMIN_CREATE_CQ = 5, ADMIN_IDENTIFY = 6, IO_WRITE = 1, IO_READ = 2 };

struct command {
    uint8_t opcode, flags;
    uint16_t cid;
    uint32_t nsid;
    uint64_t reserved, mptr, prp1, prp2;
    uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};

struct completion {
    uint32_t result, reserved;
    uint16_t sq_head, sq_id, cid;
    _Atomic uint16_t status; /* bit 0: the phase */
};

_Static_assert(sizeof(struct command) == 64 && sizeof(struct completion) == 16, "as the specification says");

/* A pair of queues, as their driver sees them. */
struct queues {
    struct command *sq;
    struct completion *cq;
    _Atomic uint32_t *sq_tail, *cq_head; /* the doorbells */
    uint16_t entries, tail, head;
    uint16_t phase;
};

static int client;
static pid_t server;
static char *guest, *disk; /* the disk: the floors' */
static uint32_t block_shift;
static uint64_t disk_pages;
static struct queues admin, io, bare;
static struct series by_library, by_library_too, by_bare_ring, by_copy;

/* Starts the example on the first processor, with a disk in memory. */
static void
start_server(const char *size)
{
    static char path[256], under[256], socket_option[64], size_option[32];
    const char *folder = getenv("VFU_EXAMPLES"), *prefix = getenv("VFU_BENCH_UNDER");
    char *argv[32];
    int argc = 0;

    CHECK(folder != NULL);
    snprintf(path, sizeof(path), "%s/nvme", folder);
    snprintf(under, sizeof(under), "%s", prefix != NULL ? prefix : "");
    snprintf(socket_option, sizeof(socket_option), "--socket-path=%s", socket_path);
    snprintf(size_option, sizeof(size_option), "--size=%s", size);
    for (char *word = strtok(under, " "); word != NULL && argc < 24; word = strtok(NULL, " ")) {
        argv[argc++] = word;
    }
    argv[argc++] = path;
    argv[argc++] = socket_option;
    argv[argc++] = size_option;
    argv[argc++] = "--poll-doorbells";
    argv[argc] = NULL;
    server = fork();
    CHECK(server >= 0);
    if (server == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        stay_on(0, false);
        execvp(argv[0], argv);
        perror(argv[0]);
        _exit(1);
    }
}

/* Connects as soon as the server listens. */
static void
connect_to_server(void)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };

    strncpy(address.sun_path, socket_path, sizeof(address.sun_path) - 1);
    client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(client >= 0);
    while (connect(client, (struct sockaddr *)&address, sizeof(address)) != 0) {
        CHECK(errno == ENOENT || errno == ECONNREFUSED);
        CHECK_EQ(waitpid(server, NULL, WNOHANG), 0);
        sched_yield();
    }
    client_send_version(client);
    client_recv_version(client);
}

static void
stop_server(void)
{
    close(client);
    CHECK_EQ(kill(server, SIGTERM), 0);
    CHECK_EQ(waitpid(server, NULL, 0), server);
    unlink(socket_path); /* the program that it was started under may have ended it */
}

static void
region_write(uint32_t region, uint64_t offset, const void *data, uint32_t count)
{
    struct vfio_user_region_access reply;

    client_send_region_write(client, 2, VFIO_USER_F_TYPE_COMMAND, region, offset, data, count);
    client_reply(client, 2, VFIO_USER_REGION_WRITE, &reply, sizeof(reply));
    CHECK_EQ(reply.count, count);
}

static void
write_register(uint64_t offset, uint32_t value)
{
    region_write(VFU_PCI_DEV_BAR0_REGION_IDX, offset, &value, sizeof(value));
}

static uint32_t
read_register(uint64_t offset)
{
    struct {
        struct vfio_user_region_access access;
        uint32_t value;
    } reply;

    client_send_region_read(client, 3, VFU_PCI_DEV_BAR0_REGION_IDX, offset, sizeof(reply.value));
    client_reply(client, 3, VFIO_USER_REGION_READ, &reply, sizeof(reply.access) + sizeof(reply.value));
    return reply.value;
}

/* Gives the server the guest's memory. */
static void
map_guest(void)
{
    struct vfio_user_dma_map map = {
        .argsz = sizeof(map), .flags = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE,
        .addr = GUEST_ADDRESS, .size = GUEST_SIZE };
    int fd = memfd_create("guest", MFD_CLOEXEC);
    struct vfio_user_header header;
    char reply[64];

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, GUEST_SIZE), 0);
    guest = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    CHECK(guest != MAP_FAILED);
    client_send_flags(client, 4, VFIO_USER_DMA_MAP, VFIO_USER_F_TYPE_COMMAND, &map, sizeof(map), fd);
    client_recv(client, &header, reply, sizeof(reply));
    CHECK_EQ(header.error_no, 0);
    close(fd);
}

/* Maps the page of BAR 0 with the doorbells. */
static _Atomic uint32_t *
map_doorbells(void)
{
    struct vfio_region_info request = { .argsz = 512, .index = VFU_PCI_DEV_BAR0_REGION_IDX };
    struct {
        struct vfio_user_header header;
        struct vfio_region_info info;
        char rest[512];
    } reply;
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    struct iovec iov = { &reply, sizeof(reply) };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                          .msg_controllen = sizeof(control) };
    char *page;
    int fd;

    client_send(client, 5, VFIO_USER_DEVICE_GET_REGION_INFO, &request, sizeof(request));
    CHECK(recvmsg(client, &msg, MSG_CMSG_CLOEXEC) >= (ssize_t)(sizeof(reply.header) + sizeof(reply.info)));
    CHECK_EQ(reply.header.error_no, 0);
    CHECK(reply.info.flags & VFIO_REGION_INFO_FLAG_MMAP);
    CHECK(CMSG_FIRSTHDR(&msg) != NULL); /* the descriptor came with the first bytes */
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
    page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, reply.info.offset + REG_DOORBELLS);
    CHECK(page != MAP_FAILED);
    close(fd);
    return (_Atomic uint32_t *)page;
}

/* Queues whose memory is at these offsets in the guest's. */
static struct queues
make_queues(size_t sq, size_t cq, uint16_t entries, _Atomic uint32_t *doorbells)
{
    memset(guest + cq, 0, PAGE);
    return (struct queues) {
        .sq = (struct command *)(guest + sq), .cq = (struct completion *)(guest + cq),
        .sq_tail = doorbells, .cq_head = doorbells + 1, .entries = entries, .phase = 1 };
}

static inline void
put(struct queues *q, const struct command *command)
{
    q->sq[q->tail] = *command;
    q->tail = q->tail + 1 == q->entries ? 0 : q->tail + 1;
}

static inline void
ring(struct queues *q)
{
    atomic_store_explicit(q->sq_tail, q->tail, memory_order_release);
}

/* The next completion, if there is one: its command. */
static inline int
take(struct queues *q)
{
    struct completion *c = &q->cq[q->head];
    uint16_t status = atomic_load_explicit(&c->status, memory_order_acquire), cid;

    if ((status & 1) != q->phase) {
        return -1;
    }
    CHECK_EQ(status >> 1, 0);
    cid = c->cid;
    q->head++;
    if (q->head == q->entries) {
        q->head = 0;
        q->phase ^= 1;
    }
    return cid;
}

static inline void
give_back(struct queues *q)
{
    atomic_store_explicit(q->cq_head, q->head, memory_order_release);
}

static void
execute(struct command command)
{
    put(&admin, &command);
    ring(&admin);
    while (take(&admin) < 0) {
    }
    give_back(&admin);
}

/* Enables the controller, with a queue pair for I/O that does not interrupt. */
static void
start_controller(void)
{
    uint16_t enable = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
    _Atomic uint32_t *doorbells;
    const unsigned char *identify = (unsigned char *)guest + IDENTIFY_DATA;
    uint64_t blocks;

    region_write(VFU_PCI_DEV_CFG_REGION_IDX, PCI_COMMAND, &enable, sizeof(enable));
    write_register(REG_AQA, (ADMIN_ENTRIES - 1) << 16 | (ADMIN_ENTRIES - 1));
    write_register(REG_ASQ, GUEST_ADDRESS + ADMIN_SQ);
    write_register(REG_ASQ + 4, 0);
    write_register(REG_ACQ, GUEST_ADDRESS + ADMIN_CQ);
    write_register(REG_ACQ + 4, 0);
    write_register(REG_CC, CC_ENABLE);
    while ((read_register(REG_CSTS) & CSTS_RDY) == 0) {
    }
    doorbells = map_doorbells();
    admin = make_queues(ADMIN_SQ, ADMIN_CQ, ADMIN_ENTRIES, doorbells);
    execute((struct command) { .opcode = ADMIN_IDENTIFY, .nsid = 1, .prp1 = GUEST_ADDRESS + IDENTIFY_DATA });
    memcpy(&blocks, identify, sizeof(blocks));
    block_shift = identify[128 + 4 * (identify[26] & 0xf) + 2];
    CHECK(block_shift >= 9 && block_shift <= 12);
    disk_pages = blocks >> (12 - block_shift);
    CHECK(disk_pages > 0);
    io = make_queues(IO_SQ, IO_CQ, ENTRIES, doorbells + 2);
    execute((struct command) { .opcode = ADMIN_CREATE_CQ, .prp1 = GUEST_ADDRESS + IO_CQ,
                               .cdw10 = (ENTRIES - 1) << 16 | 1, .cdw11 = 1 });
    execute((struct command) { .opcode = ADMIN_CREATE_SQ, .prp1 = GUEST_ADDRESS + IO_SQ,
                               .cdw10 = (ENTRIES - 1) << 16 | 1, .cdw11 = 1 << 16 | 1 });
}

/* What the pages of a disk begin with, so that a read that went astray shows. */
static inline uint64_t
mark_of(uint64_t page)
{
    return page ^ 0x9e3779b97f4a7c15;
}

static inline uint64_t
next_random(void)
{
    static uint64_t state = 1;

    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static inline uint64_t *
buffer(unsigned int slot)
{
    return (uint64_t *)(guest + BUFFERS + (size_t)slot * PAGE);
}

static inline void
transfer(struct queues *q, uint8_t opcode, unsigned int slot, uint64_t page)
{
    uint64_t lba = page << (12 - block_shift);

    put(q, &(struct command) {
        .opcode = opcode, .cid = slot, .nsid = 1, .prp1 = GUEST_ADDRESS + BUFFERS + slot * PAGE,
        .cdw10 = lba, .cdw11 = lba >> 32, .cdw12 = (1u << (12 - block_shift)) - 1 });
}

/* So many pages, 32 at a time: reads of any, or writes of one after the other.
 * Nanoseconds for each. */
static double
transfers(struct queues *q, uint8_t opcode, uint64_t count)
{
    uint64_t pages[DEPTH], given = 0, done = 0, begin = now();

    while (done < count) {
        bool some = false;
        int slot;

        /* The queues are empty at first: then slots are used for the first time. */
        while (given < DEPTH && given < count) {
            pages[given] = opcode == IO_WRITE ? given : next_random() % disk_pages;
            *buffer(given) = mark_of(pages[given]);
            transfer(q, opcode, given, pages[given]);
            given++;
            some = true;
        }
        while ((slot = take(q)) >= 0) {
            CHECK(slot < DEPTH && *buffer(slot) == mark_of(pages[slot]));
            done++;
            some = true;
            if (given < count) {
                pages[slot] = opcode == IO_WRITE ? given : next_random() % disk_pages;
                *buffer(slot) = opcode == IO_WRITE ? mark_of(pages[slot]) : 0;
                transfer(q, opcode, slot, pages[slot]);
                given++;
            }
        }
        if (some) {
            ring(q);
            give_back(q);
        }
    }
    return (now() - begin) * bench_tick / count;
}

static atomic_bool stop;

/* The server of the first floor. It begins where the driver is: the queues are empty. */
static void *
follow_rings(void *driver)
{
    const struct queues *start = driver;
    uint16_t sq_head = start->tail, cq_tail = start->head, phase = start->phase;

    stay_on(0, false);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        uint16_t tail = atomic_load_explicit(bare.sq_tail, memory_order_acquire);

        while (sq_head != tail) {
            const struct command *command = &bare.sq[sq_head];
            struct completion *completion = &bare.cq[cq_tail];
            uint64_t lba = command->cdw10 | (uint64_t)command->cdw11 << 32;

            memcpy(guest + (command->prp1 - GUEST_ADDRESS), disk + (lba << block_shift), PAGE);
            sq_head = sq_head + 1 == bare.entries ? 0 : sq_head + 1;
            completion->result = completion->reserved = 0;
            completion->sq_head = sq_head;
            completion->sq_id = 1;
            completion->cid = command->cid;
            atomic_store_explicit(&completion->status, phase, memory_order_release);
            if (++cq_tail == bare.entries) {
                cq_tail = 0;
                phase ^= 1;
            }
        }
    }
    return NULL;
}

static double
bare_ring(void)
{
    struct queues start = bare;
    pthread_t thread;
    double time;

    stop = false;
    CHECK_EQ(pthread_create(&thread, NULL, follow_rings, &start), 0);
    transfers(&bare, IO_READ, DEPTH); /* until it is there */
    time = transfers(&bare, IO_READ, READS);
    stop = true;
    CHECK_EQ(pthread_join(thread, NULL), 0);
    return time;
}

/* The copies of the second floor. */
static void *
copy(void *time)
{
    uint64_t begin;

    stay_on(0, false);
    begin = now();
    for (int i = 0; i < READS; i++) {
        uint64_t page = next_random() % disk_pages;

        memcpy(buffer(i % DEPTH), disk + page * PAGE, PAGE);
        CHECK(*buffer(i % DEPTH) == mark_of(page));
    }
    *(double *)time = (now() - begin) * bench_tick / READS;
    return NULL;
}

static double
copies(void)
{
    pthread_t thread;
    double time;

    CHECK_EQ(pthread_create(&thread, NULL, copy, &time), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    return time;
}

/* A disk of the floors' own, of the same size and in the same kind of memory. */
static void
make_disk(void)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);

    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, disk_pages * PAGE), 0);
    disk = mmap(NULL, disk_pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    CHECK(disk != MAP_FAILED);
    close(fd);
    for (uint64_t page = 0; page < disk_pages; page++) {
        uint64_t mark = mark_of(page);
        memcpy(disk + page * PAGE, &mark, sizeof(mark));
    }
}

static void
measure(const char *size)
{
    char name[64];
    double typical_time, least_time;

    start_server(size);
    connect_to_server();
    map_guest();
    start_controller();
    make_disk();
    bare = make_queues(FLOOR_SQ, FLOOR_CQ, ENTRIES, (_Atomic uint32_t *)(guest + FLOOR_DOORBELLS));
    transfers(&io, IO_WRITE, disk_pages);
    for (int i = 0; i < ROUNDS; i++) {
        double time = transfers(&io, IO_READ, READS);
        int status;

        sample(&by_library, time);
        sample(&by_library_too, time);
        CHECK_EQ(kill(server, SIGSTOP), 0);
        CHECK_EQ(waitpid(server, &status, WUNTRACED), server);
        CHECK(WIFSTOPPED(status));
        sample(&by_bare_ring, bare_ring());
        sample(&by_copy, copies());
        CHECK_EQ(kill(server, SIGCONT), 0);
    }
    typical_time = typical(&by_library);
    least_time = by_library.values[0];
    snprintf(name, sizeof(name), "from %s, / the rings and a copy", size);
    report(name, &by_library, &by_bare_ring, 1, 0);
    snprintf(name, sizeof(name), "from %s, / a copy", size);
    report(name, &by_library_too, &by_copy, 1, 0);
    printf("from %s: %.0f reads a second (%.0f), at least 1000000\n", size, 1e9 / typical_time, 1e9 / least_time);
    munmap(disk, disk_pages * PAGE);
    munmap(guest, GUEST_SIZE);
    stop_server();
}

int
main(void)
{
    bench_init();
    make_socket_folder();
    stay_on(0, true);
    heading("nvme: 4 KiB random reads, 32 at a time");
    measure("64M");
    measure("1G");
    remove_socket_folder();
    return 0;
}
