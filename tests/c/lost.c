/*
 * A client takes memory away that the device uses: which memory is refused where
 * the device wants none such, and what the guard against it does. Each test is a
 * process of its own, since the guard is for good.
 *
 * SPDX-License-Identifier: BSD-3-Clause
 */

#define _GNU_SOURCE
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "lost.h"

static int tests_skipped;

/* A test that cannot run here ends its process so. */
enum { SKIPPED = 77 };

#define SKIP(...)                     \
    do {                              \
        fprintf(stderr, "  skipped: " __VA_ARGS__); \
        fprintf(stderr, "\n");        \
        _exit(SKIPPED);               \
    } while (0)

#define RUN_APART(test)                                           \
    do {                                                          \
        int status_;                                              \
        if (check_skips(#test))                                   \
            break;                                                \
        fprintf(stderr, "%s\n", #test);                           \
        status_ = status_of(test);                                \
        if (WIFEXITED(status_) && WEXITSTATUS(status_) == SKIPPED) \
            tests_skipped++;                                      \
        else                                                      \
            CHECK_EQ(status_, 0);                                 \
        check_tests_run++;                                        \
    } while (0)

static ssize_t
no_access(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    (void)ctx, (void)buf, (void)offset, (void)is_write;
    return count;
}

/* A device with one region, of memory that its client then truncates. */
static void
make_truncated(struct device *device, bool guarded)
{
    if (guarded) {
        CHECK_EQ(vfux_guard_dma(), 0);
    }
    make_device(device, no_access);
    attach(device);
    device->memory = make_memory(GUEST_SIZE, 0);
    CHECK_EQ(map(device, GUEST, GUEST_SIZE, device->memory), 0);
    CHECK_EQ(ftruncate(device->memory, PAGE), 0);
}

static void
touch_without_guard(void)
{
    struct device device;
    struct entry entry;

    make_truncated(&device, false);
    *get(&device, GUEST + PAGE, PAGE, &entry) = 1;
}

static void
read_without_guard(void)
{
    struct device device;
    struct entry entry;
    char page[PAGE];

    make_truncated(&device, false);
    get(&device, GUEST + PAGE, PAGE, &entry);
    vfu_sgl_read(device.ctx, (dma_sg_t *)entry.bytes, 1, page, VFU_SGL_DIRECT_ACCESS);
}

static void
without_the_guard_the_process_dies(void)
{
    CHECK(died_of_sigbus(status_of(touch_without_guard)));
    CHECK(died_of_sigbus(status_of(read_without_guard)));
}

static int
sealed(size_t size, unsigned int flags, int seals)
{
    int memory = make_memory(size, flags | MFD_ALLOW_SEALING);

    if (memory != -1) {
        CHECK_EQ(fcntl(memory, F_ADD_SEALS, seals), 0);
    }
    return memory;
}

static void
only_memory_that_stays_is_taken(void)
{
    struct device device;
    const uint32_t rw = VFIO_USER_F_DMA_REGION_READ | VFIO_USER_F_DMA_REGION_WRITE;
    int zero = open("/dev/zero", O_RDWR);

    make_device(&device, no_access);
    CHECK_FAILS(vfux_setup_dma_policy(device.ctx, 2), EINVAL);
    CHECK_EQ(vfux_setup_dma_policy(device.ctx, VFUX_DMA_POLICY_LASTING), 0);
    attach(&device);
    device.memory = make_memory(GUEST_SIZE, MFD_ALLOW_SEALING);
    CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), EPERM);
    CHECK_EQ(device.refusals, 1);
    CHECK_EQ(fcntl(device.memory, F_ADD_SEALS, F_SEAL_GROW), 0);
    CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), EPERM);
    CHECK_EQ(map(&device, GUEST, PAGE, zero), EPERM);
    CHECK_EQ(device.refusals, 3);
    CHECK_EQ(device.regions, 0);

    CHECK_EQ(fcntl(device.memory, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), 0);
    CHECK_EQ(map(&device, GUEST + GUEST_SIZE, GUEST_SIZE, -1), 0);
    close(device.memory);
    device.memory = make_memory(GUEST_SIZE, 0);
    CHECK_EQ(map_flags(&device, GUEST + 2 * GUEST_SIZE, GUEST_SIZE, rw | VFIO_USER_F_DMA_REGION_FILE_IO,
                       device.memory), 0);
    CHECK_EQ(device.refusals, 3);
    CHECK_EQ(device.regions, 3);
    CHECK_FAILS(vfux_setup_dma_policy(device.ctx, VFUX_DMA_POLICY_ANY), EEXIST);

    close(zero);
    end_device(&device);
}

/* With the seal and without, as a file on hugetlbfs has none. */
static void
huge_pages_are_among_it(void)
{
    enum { HUGE = 2 << 20 };
    struct device device;
    int plain = sealed(HUGE, MFD_HUGETLB, 0), huge = sealed(HUGE, MFD_HUGETLB, F_SEAL_SHRINK), error;

    if (plain == -1 || huge == -1) {
        SKIP("no huge pages of 2 MiB: %s", strerror(errno));
        return;
    }
    make_device(&device, no_access);
    CHECK_EQ(vfux_setup_dma_policy(device.ctx, VFUX_DMA_POLICY_LASTING), 0);
    attach(&device);
    error = map(&device, HUGE, HUGE, plain);
    if (error == ENOMEM) {
        /* What it is was looked at before. */
        SKIP("no huge page is free: vm.nr_hugepages");
    } else {
        CHECK_EQ(error, 0);
        CHECK_EQ(map(&device, 2 * HUGE, HUGE, huge), 0);
        CHECK_EQ(device.regions, 2);
        CHECK_EQ(device.refusals, 0);
    }
    close(plain);
    close(huge);
    end_device(&device);
}

static void
the_lost_region_is_told_of(void)
{
    struct device device;
    struct entry kept, lost, other;
    char page[PAGE];
    volatile char *memory, *first;
    int poll_fd;

    make_truncated(&device, true);
    CHECK_EQ(vfux_guard_dma(), 0);
    poll_fd = vfu_get_poll_fd(device.ctx);
    first = get(&device, GUEST, PAGE, &kept);
    first[0] = 'k';
    memory = get(&device, GUEST + 3 * PAGE, PAGE, &lost);
    CHECK(!is_lost(&device, &lost));
    CHECK(!readable(poll_fd));

    CHECK_EQ(memory[5], 0);
    CHECK(is_lost(&device, &lost));
    CHECK(is_lost(&device, &kept));
    CHECK(readable(poll_fd));
    CHECK_EQ(device.losses, 0);
    CHECK_EQ(vfu_run_ctx(device.ctx), 0);
    CHECK_EQ(device.losses, 1);
    CHECK_EQ(device.loss_lines, 1);
    CHECK_EQ(device.lost_iova, GUEST);
    CHECK_EQ(device.lost_offset, 3 * PAGE);
    CHECK(!readable(poll_fd));

    /* What is there can be used, and is not told of again. */
    memory[5] = 7;
    CHECK_EQ(memory[5], 7);
    CHECK_EQ(get(&device, GUEST + 15 * PAGE, PAGE, &other)[0], 0);
    CHECK_EQ(first[0], 'k');
    CHECK_EQ(pread(device.memory, page, 1, 0), 1);
    CHECK_EQ(page[0], 'k');
    CHECK_EQ(vfu_run_ctx(device.ctx), 0);
    CHECK_EQ(device.losses, 1);
    CHECK_FAILS(vfu_sgl_read(device.ctx, (dma_sg_t *)other.bytes, 1, page, VFU_SGL_DIRECT_ACCESS), EIO);
    CHECK_FAILS(vfu_sgl_write(device.ctx, (dma_sg_t *)other.bytes, 1, page, VFU_SGL_DIRECT_ACCESS), EIO);

    /* The same map again is the same region; another one is not lost. */
    CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), 0);
    CHECK(is_lost(&device, &lost));
    CHECK_EQ(ftruncate(device.memory, GUEST_SIZE), 0);
    CHECK_EQ(unmap(&device, GUEST, GUEST_SIZE), 0);
    CHECK(!is_lost(&device, &lost));
    CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), 0);
    get(&device, GUEST, PAGE, &other)[0] = 'n';
    CHECK(!is_lost(&device, &other));
    CHECK_EQ(pread(device.memory, page, 1, 0), 1);
    CHECK_EQ(page[0], 'n');
    end_device(&device);
}

static void
direct_access_is_guarded(void)
{
    struct device device;
    struct entry entry;
    char page[PAGE];

    make_truncated(&device, true);
    get(&device, GUEST + PAGE, PAGE, &entry);
    memset(page, 1, sizeof(page));
    CHECK_FAILS(vfu_sgl_read(device.ctx, (dma_sg_t *)entry.bytes, 1, page, VFU_SGL_DIRECT_ACCESS), EIO);
    CHECK_EQ(page[17], 0);
    get(&device, GUEST + 2 * PAGE, PAGE, &entry);
    CHECK_FAILS(vfu_sgl_write(device.ctx, (dma_sg_t *)entry.bytes, 1, page, VFU_SGL_DIRECT_ACCESS), EIO);
    /* An unmap tells of it first. */
    CHECK_EQ(unmap(&device, GUEST, GUEST_SIZE), 0);
    CHECK_EQ(device.losses, 1);
    end_device(&device);
    CHECK_EQ(device.losses, 1);
}

static void
after_some_pages_all_of_a_region_is_replaced(void)
{
    struct device device;
    struct entry entry;
    volatile char *memory;

    make_truncated(&device, true);
    memory = get(&device, GUEST, GUEST_SIZE, &entry);
    memory[0] = 's';
    for (int page = 1; page <= 3; page++) {
        memory[page * PAGE] = page;
    }
    CHECK_EQ(memory[0], 's');
    CHECK_EQ(memory[3 * PAGE], 3);
    CHECK_EQ(memory[4 * PAGE], 0);
    CHECK_EQ(memory[0], 0);
    CHECK_EQ(memory[3 * PAGE], 0);
    end_device(&device);
    CHECK_EQ(device.losses, 1);
}

/* How many mappings the process has. */
static int
count_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    int c, lines = 0;

    while ((c = fgetc(maps)) != EOF) {
        lines += c == '\n';
    }
    fclose(maps);
    return lines;
}

static void
a_client_cannot_use_up_the_mappings(void)
{
    enum { PAGES = 4096 };
    struct device device;
    struct entry entry;
    volatile char *memory;
    int before;

    CHECK_EQ(vfux_guard_dma(), 0);
    make_device(&device, no_access);
    attach(&device);
    device.memory = make_memory(PAGES * PAGE, 0);
    CHECK_EQ(map(&device, GUEST, PAGES * PAGE, device.memory), 0);
    CHECK_EQ(ftruncate(device.memory, 0), 0);
    before = count_mappings();
    memory = get(&device, GUEST, PAGES * PAGE, &entry);
    for (int page = 0; page < PAGES; page += 2) {
        CHECK_EQ(memory[page * PAGE], 0);
    }
    CHECK(count_mappings() <= before + 8);
    end_device(&device);
}

static void
huge_pages_are_replaced_as_a_whole(void)
{
    enum { HUGE = 2 << 20 };
    struct device device;
    struct entry entry;
    volatile char *memory;
    int fd = make_memory(2 * HUGE, MFD_HUGETLB);
    void *test;

    if (fd == -1) {
        SKIP("no huge pages of 2 MiB: %s", strerror(errno));
    }
    test = mmap(NULL, 2 * HUGE, PROT_READ, MAP_SHARED, fd, 0);
    if (test == MAP_FAILED) {
        SKIP("no two huge pages are free: vm.nr_hugepages");
    }
    munmap(test, 2 * HUGE);
    CHECK_EQ(vfux_guard_dma(), 0);
    make_device(&device, no_access);
    attach(&device);
    device.memory = fd;
    CHECK_EQ(map(&device, GUEST, 2 * HUGE, fd), 0);
    memory = get(&device, GUEST, 2 * HUGE, &entry);
    memory[0] = 'k';
    CHECK_EQ(ftruncate(fd, HUGE), 0);
    memory[HUGE + 3 * PAGE] = 1;
    memory[HUGE] = 2;
    memory[2 * HUGE - 1] = 3;
    CHECK_EQ(memory[0], 'k');
    CHECK_EQ(memory[HUGE + 3 * PAGE], 1);
    end_device(&device);
    CHECK_EQ(device.losses, 1);
    CHECK_EQ(device.lost_offset, HUGE);
}

static void
a_child_s_losses_are_its_own(void)
{
    struct device device;
    struct entry entry;
    volatile char *memory;
    int status, poll_fd;
    pid_t child;

    make_truncated(&device, true);
    poll_fd = vfu_get_poll_fd(device.ctx);
    memory = get(&device, GUEST + PAGE, PAGE, &entry);
    child = fork();
    if (child == 0) {
        if (memory[0] != 0 || !is_lost(&device, &entry)) {
            _exit(EXIT_FAILURE);
        }
        vfu_destroy_ctx(device.ctx);
        _exit(device.losses == 1 ? EXIT_SUCCESS : EXIT_FAILURE);
    }
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    CHECK(!readable(poll_fd));
    CHECK(!is_lost(&device, &entry));
    CHECK_EQ(memory[0], 0);
    CHECK(readable(poll_fd));
    CHECK_EQ(vfu_run_ctx(device.ctx), 0);
    CHECK_EQ(device.losses, 1);
    end_device(&device);
}

/* Two threads that fault on one page at the same time: what either wrote stays. */
enum { MEETINGS = 300 };

static pthread_barrier_t barrier;
static volatile char *meeting_place;

static void *
meet(void *number)
{
    for (int i = 0; i < MEETINGS * 4; i++) {
        pthread_barrier_wait(&barrier);
        meeting_place[(uintptr_t)number] = 'a' + (uintptr_t)number;
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void
two_threads_fault_on_one_page(void)
{
    struct device device;
    struct entry entry;
    pthread_t threads[2];

    CHECK_EQ(vfux_guard_dma(), 0);
    make_device(&device, no_access);
    attach(&device);
    device.memory = make_memory(GUEST_SIZE, 0);
    pthread_barrier_init(&barrier, NULL, 3);
    for (uintptr_t i = 0; i < 2; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, meet, (void *)i), 0);
    }
    for (int i = 0; i < MEETINGS; i++) {
        CHECK_EQ(ftruncate(device.memory, GUEST_SIZE), 0);
        CHECK_EQ(map(&device, GUEST, GUEST_SIZE, device.memory), 0);
        CHECK_EQ(ftruncate(device.memory, 0), 0);
        /* The fourth page is where all of the region is replaced. */
        for (int page = 0; page < 4; page++) {
            meeting_place = get(&device, GUEST + page * PAGE, PAGE, &entry);
            pthread_barrier_wait(&barrier);
            pthread_barrier_wait(&barrier);
            CHECK_EQ(meeting_place[0], 'a');
            CHECK_EQ(meeting_place[1], 'b');
        }
        CHECK_EQ(unmap(&device, GUEST, GUEST_SIZE), 0);
        CHECK_EQ(device.losses, i + 1);
    }
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    end_device(&device);
}

/*
 * Eight tenants of one process, each a thread with a device and its client. The
 * device copies a page of the guest's to the next, in the region callback.
 */
enum { TENANTS = 8, VICTIM = 2, SPARSE = 5, CHURNER = 6, ROUNDS = 2000, HALF = ROUNDS / 2 };

struct tenant {
    struct device device; /* first: what a context has as its private pointer */
    int number;
    atomic_int rounds;
    int failures;
};

static struct tenant tenants[TENANTS];
static atomic_bool truncated;
static char tmpfs[64];

static ssize_t
copy_page(vfu_ctx_t *ctx, char *buf, size_t count, loff_t offset, bool is_write)
{
    struct device *device = vfu_get_private(ctx);
    struct entry from, to;
    volatile char *source, *target;

    (void)buf, (void)offset;
    CHECK(is_write);
    source = get(device, GUEST, PAGE, &from);
    target = get(device, GUEST + 8 * PAGE, PAGE, &to);
    memcpy((char *)target, (const char *)source, PAGE);
    if (is_lost(device, &from) || is_lost(device, &to)) {
        errno = EIO;
        return -1;
    }
    return count;
}

static int
kick(struct device *device)
{
    struct region_message message = { .access = { .region = VFU_PCI_DEV_BAR0_REGION_IDX, .count = 4 } };

    return request(device, VFIO_USER_REGION_WRITE, &message, sizeof(message.access) + 4, -1);
}

static void
one_round(struct tenant *tenant, int round)
{
    struct device *device = &tenant->device;
    char expected[PAGE], is[PAGE];
    int error;

    memset(expected, tenant->number * 16 + round % 13 + 1, sizeof(expected));
    if (tenant->number != SPARSE || tmpfs[0] == 0) {
        CHECK_EQ(pwrite(device->memory, expected, PAGE, 0), PAGE);
        if (tenant->number == VICTIM && atomic_load(&truncated)) {
            CHECK_EQ(ftruncate(device->memory, PAGE), 0);
        }
    }
    error = kick(device);
    tenant->failures += error != 0;
    if (error == 0 && !(tenant->number == VICTIM && round >= HALF)) {
        CHECK_EQ(pread(device->memory, is, PAGE, 8 * PAGE), PAGE);
        CHECK_MEM_EQ(is, expected, PAGE);
    } else {
        CHECK_EQ(error, EIO);
    }
    if (tenant->number == CHURNER) {
        CHECK_EQ(map(device, 2 * GUEST, GUEST_SIZE, device->memory), 0);
        CHECK_EQ(unmap(device, 2 * GUEST, GUEST_SIZE), 0);
    }
}

static void *
run_tenant(void *argument)
{
    struct tenant *tenant = argument;

    for (int round = 0; round < ROUNDS; round++) {
        if (round == HALF && tenant->number == VICTIM) {
            CHECK_EQ(ftruncate(tenant->device.memory, PAGE), 0);
            atomic_store(&truncated, true);
        }
        one_round(tenant, round);
        atomic_fetch_add(&tenant->rounds, 1);
    }
    return NULL;
}

/* A file with a hole, where there is no room to fill it. */
static int
make_sparse(void)
{
    char path[128], filler[PAGE] = { 1 };
    int fd, full;

    if (tmpfs[0] == 0) {
        return make_memory(GUEST_SIZE, 0);
    }
    snprintf(path, sizeof(path), "%s/guest", tmpfs);
    fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK_EQ(ftruncate(fd, GUEST_SIZE), 0);
    CHECK_EQ(pwrite(fd, filler, PAGE, 0), PAGE);
    snprintf(path, sizeof(path), "%s/full", tmpfs);
    full = open(path, O_RDWR | O_CREAT, 0600);
    while (write(full, filler, PAGE) == PAGE) {
    }
    CHECK_EQ(errno, ENOSPC);
    close(full);
    return fd;
}

static void
mount_small_tmpfs(void)
{
    snprintf(tmpfs, sizeof(tmpfs), "%s/full", socket_folder);
    CHECK_EQ(mkdir(tmpfs, 0700), 0);
    if (mount("none", tmpfs, "tmpfs", 0, "size=64k") != 0) {
        fprintf(stderr, "  without a full file system: mount: %s\n", strerror(errno));
        CHECK_EQ(rmdir(tmpfs), 0);
        tmpfs[0] = 0;
    }
}

static void
of_eight_tenants_seven_notice_nothing(void)
{
    pthread_t threads[TENANTS];
    bool is_full;

    CHECK_EQ(vfux_guard_dma(), 0);
    mount_small_tmpfs();
    is_full = tmpfs[0] != 0;
    for (int i = 0; i < TENANTS; i++) {
        struct tenant *tenant = &tenants[i];

        make_device(&tenant->device, copy_page);
        attach(&tenant->device);
        tenant->number = i;
        tenant->device.memory = i == SPARSE ? make_sparse() : make_memory(GUEST_SIZE, 0);
        CHECK_EQ(map(&tenant->device, GUEST, GUEST_SIZE, tenant->device.memory), 0);
    }
    for (int i = 0; i < TENANTS; i++) {
        CHECK_EQ(pthread_create(&threads[i], NULL, run_tenant, &tenants[i]), 0);
    }
    for (int i = 0; i < TENANTS; i++) {
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    }
    for (int i = 0; i < TENANTS; i++) {
        struct device *device = &tenants[i].device;
        bool is_lost = i == VICTIM || (i == SPARSE && is_full);

        CHECK_EQ(device->losses, is_lost);
        CHECK_EQ(device->loss_lines, is_lost);
        CHECK_EQ(tenants[i].failures, i == VICTIM ? ROUNDS - HALF : is_lost ? ROUNDS : 0);
        CHECK_EQ(device->lost_offset, is_lost ? 8 * PAGE : 0);
        end_device(device);
    }
    if (is_full) {
        CHECK_EQ(umount2(tmpfs, MNT_DETACH), 0);
        CHECK_EQ(rmdir(tmpfs), 0);
    }
}

int
main(void)
{
    make_socket_folder();
    RUN_APART(without_the_guard_the_process_dies);
    RUN_APART(only_memory_that_stays_is_taken);
    RUN_APART(huge_pages_are_among_it);
    RUN_APART(the_lost_region_is_told_of);
    RUN_APART(direct_access_is_guarded);
    RUN_APART(after_some_pages_all_of_a_region_is_replaced);
    RUN_APART(a_client_cannot_use_up_the_mappings);
    RUN_APART(huge_pages_are_replaced_as_a_whole);
    RUN_APART(a_child_s_losses_are_its_own);
    RUN_APART(two_threads_fault_on_one_page);
    RUN_APART(of_eight_tenants_seven_notice_nothing);
    /* Those that died have left their sockets. */
    for (int i = 0; i < 100; i++) {
        snprintf(socket_path, sizeof(socket_path), "%s/%d", socket_folder, i);
        unlink(socket_path);
    }
    remove_socket_folder();
    fprintf(stderr, "%d of the tests skipped\n", tests_skipped);
    return check_result();
}
